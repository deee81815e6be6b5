"""Rows chosen by conditions on their columns: how these are written, and what they take."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.embed import embed
from clip_jax.sources import Where, open_input, open_pairs
from clip_jax.sources.where import OPERATORS, Condition, Value, number_of
from tests.archives import parquet, write_table, write_tar
from tests.embedding_jobs import QUIET, errors, lasting, rows
from tests.pictures import noise

pytestmark = pytest.mark.usefixtures("compiled_once")

NUMBERS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.text(max_size=8).map(Value) | NUMBERS.map(repr).map(lambda t: Value(t, number_of(t)))
CONDITIONS = st.builds(
    lambda name, operator, values: Condition(
        name, operator, tuple(values if operator == "in" else values[:1])
    ),
    st.text(min_size=1, max_size=8),
    st.sampled_from(OPERATORS),
    st.lists(VALUES, min_size=1, max_size=3),
)


@given(CONDITIONS)
@settings(max_examples=300, deadline=None)
def test_a_condition_is_what_it_is_written_as(condition):
    assert Where.of(str(condition)) == Where((condition,))


@given(st.text(max_size=20) | st.text("ab\"'=<>!in ,()1.", max_size=14))
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_condition_or_refused_in_one_sentence(text):
    try:
        where = Where.of(text)
    except ValueError as error:
        assert "expected" in str(error) or "several values" in str(error)
    else:
        assert Where.of(where.written()) == where


@given(NUMBERS, st.sampled_from(OPERATORS[:6]), NUMBERS)
def test_numbers_compare_as_pythons_do(found, operator, number):
    expected = eval(f"found {operator.replace('=', '==') if operator == '=' else operator} number")
    where = Where.of(f"x{operator}{number!r}")
    assert where.holds({"x": found}) == expected
    assert where.holds({"x": repr(found)}) == expected  # as a table of text has it


@given(st.text(), st.sampled_from(OPERATORS[:6]), st.text())
def test_text_in_quotes_compares_as_pythons_does(found, operator, text):
    expected = eval(f"found {'==' if operator == '=' else operator} text")
    assert Where((Condition("x", operator, (Value(text),)),)).holds({"x": found}) == expected


@pytest.mark.parametrize(
    ("text", "value", "fits"),
    [
        ("x=en", "en", True),
        ("x = en ", "en", True),
        ("x=='en'", "en", True),
        ("x in en,de", "de", True),
        ("x in ('a,b', c)", "a,b", True),
        ("x in 1, 2.0", 2, True),
        ("x!=en", "de", True),
        ("x!=en", None, False),  # what is missing fits nothing
        ("x<5", math.nan, False),
        ("x!=5", math.nan, False),
        ("x=''", "", True),
        ("x!=''", "", False),
        ("x=7", "07", True),
        ("x='7'", "07", False),  # in quotes it is text
        ("x=7", "seven", False),
        ("x<7", "seven", False),
        ("x!=7", "seven", True),
        ("x=true", True, True),
        ("x=False", False, True),
        ("x!=true", False, True),
        ("x>=2024-05-01", "2024-11-28", True),
        ("x~SEA", "by the sea", True),
        ("x ~ 7", "1972", True),
        ("x~sea", "land", False),
        ("x~sea", None, False),
        ("x~7", 7, False),  # ~ is for text
        ("x=en", ["en"], False),
        ("x=9007199254740993", 9007199254740992, False),  # not as floats
        ('"a col"=1', 1, False),  # another column
    ],
)
def test_what_fits(text, value, fits):
    assert Where.of(text).holds({"x": value}) == fits


@pytest.mark.parametrize(
    "text", ["", "width", "width=>3", "=3", "x=", "x in ", "a='x", "a='b','c'", "x ~"]
)
def test_what_is_no_condition_is_refused_before_anything_is_read(text):
    with pytest.raises(ValueError, match="expected .* Got|expected a value|expected values|sever"):
        open_input("nowhere.csv", where=text)


COUNT = 20
ROWS = [
    {"caption": f"c{i}", "width": i, "lang": "en" if i % 3 else "de", "key": f"k{i}"}
    for i in range(COUNT)
]


def write(folder, kind: str):
    """An input of that kind with pictures and those columns."""
    if kind == "tar":
        members = {}
        for i, row in enumerate(ROWS):
            members |= {f"k{i}.png": noise(i), f"k{i}.json": json.dumps(row).encode()}
        return write_tar(folder / "a.tar", members)
    if kind == "parquet":
        table = {name: [row[name] for row in ROWS] for name in ROWS[0]}
        table["image"] = [noise(i) for i in range(COUNT)]
        return parquet(folder / "a.parquet", table, row_group_size=6)
    for i in range(COUNT):
        (folder / f"{i}.png").write_bytes(noise(i))
    return write_table(folder, kind, [row | {"image": f"{i}.png"} for i, row in enumerate(ROWS)])


@pytest.mark.parametrize("kind", ["tar", "parquet", "csv", "jsonl"])
def test_only_rows_that_fit_are_embedded_and_the_others_are_counted(kind, model, tmp_path):
    source = write(tmp_path, kind)
    whole, some = tmp_path / "whole", tmp_path / "some"
    where = ["width>=5", "lang in en"]
    wanted = [i for i in range(5, COUNT) if i % 3]
    embed(source, model, whole, rows_per_part=3, columns=None, **QUIET)
    summary = embed(source, model, some, rows_per_part=3, where=where, **QUIET)
    assert summary.rows == len(wanted) and not summary.errors
    told = f"{len(wanted)} of {COUNT} rows fit where width>=5 and lang in 'en'"
    assert told in summary.remarks[-1]
    all_rows, found = rows(whole), rows(some)
    assert found["key"] == [f"k{i}" for i in wanted]
    places = [all_rows["key"].index(key) for key in found["key"]]
    np.testing.assert_allclose(
        found["embedding"], [all_rows["embedding"][place] for place in places], atol=1e-6
    )
    assert found["path"] == [all_rows["path"][place] for place in places]


def test_a_stopped_job_of_chosen_rows_goes_on_and_other_conditions_are_another_job(model, tmp_path):
    source, out = write(tmp_path, "parquet"), tmp_path / "out"
    embed(source, model, out, rows_per_part=2, where="width<9", **QUIET)
    there = lasting(out)
    for number in (1, 4):
        (out / f"part-000000-{number:06d}.parquet").unlink()
    summary = embed(source, model, out, rows_per_part=2, where=[" width < 9 "], **QUIET)
    assert (summary.rows, summary.rows_before) == (3, 6) and lasting(out) == there
    dry = embed(source, model, out, rows_per_part=2, where="width<9", dry_run=True, **QUIET)
    assert not dry.rows_to_do
    for where in (None, "width<8", ["width<9", "lang=en"]):
        with pytest.raises(ValueError, match="where"):
            embed(source, model, out, rows_per_part=2, where=where, **QUIET)


def test_a_row_of_which_it_cannot_be_told_whether_it_fits_is_an_error(model, tmp_path):
    members = {"a.png": noise(0), "a.json": b'{"width": 1}', "b.png": noise(1), "b.json": b"{"}
    source = write_tar(tmp_path / "a.tar", members | {"c.png": noise(2), "c.json": b"{}"})
    summary = embed(source, model, tmp_path / "out", where="width=1", **QUIET)
    assert (summary.rows, summary.errors) == (1, 1)
    assert "whether it was asked for can't be told" in errors(tmp_path / "out")["b"]


def test_a_condition_that_no_row_can_fit_is_told(model, tmp_path):
    for kind in ("tar", "parquet", "csv"):
        folder = tmp_path / kind
        folder.mkdir()
        source = write(folder, kind)
        with pytest.raises(ValueError, match="'widht'.*caption"):
            open_input(source, where="widht>3")
        with pytest.raises(ValueError, match="no row of .* fits where width>99: there is no row"):
            embed(source, model, folder / "out", where="width>99", **QUIET)
    source = tmp_path / "parquet" / "a.parquet"
    with pytest.raises(ValueError, match="'width' is int64, and 'wide' is no number"):
        open_input(source, where="width=wide")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(noise(0))
    with pytest.raises(ValueError, match="no columns to choose rows by"):
        open_input(tmp_path / "in", where="width=3")


def test_parquets_own_types_are_compared(tmp_path):
    import datetime
    import decimal

    import pyarrow as pa

    days = [datetime.date(2024, 1, day) for day in range(1, 6)]
    table = {
        "caption": list("abcde"),
        "day": pa.array(days),
        "price": pa.array([decimal.Decimal(f"0.{i}") for i in range(1, 6)]),
        "score": pa.array([0.1, 0.2, 0.3, None, 0.5], pa.float32()),
        "tags": pa.array([["x"]] * 5),
        "kind": pa.array(list("uvuvu")).dictionary_encode(),
    }
    source = parquet(tmp_path / "a.parquet", table)

    def taken(where):
        (shard,) = open_input(source, where=where).shards
        opened = shard.open()
        return "".join(row.caption for row in opened.records(0, len(opened)))

    assert taken("day>=2024-01-03") == "cde"
    assert taken("price=0.3") == "c" and taken("price<=0.3") == "abc"
    assert taken("score=0.3") == "c" and taken("score!=0.3") == "abe"
    assert taken("kind=u") == "ace"
    with pytest.raises(ValueError, match="'tags' is list"):
        taken("tags=x")


def test_a_chosen_file_that_has_got_more_rows_is_extended(model, tmp_path):
    table = [{"caption": f"c{i}", "width": i % 4} for i in range(8)]
    source, out = write_table(tmp_path, "csv", table), tmp_path / "out"
    embed(source, model, out, where="width=1", **QUIET)
    write_table(tmp_path, "csv", [*table, *({"caption": f"d{i}", "width": i} for i in range(3))])
    summary = embed(source, model, out, where="width=1", extend=True, **QUIET)
    assert (summary.rows, summary.rows_before) == (1, 2)
    assert rows(out)["caption"] == ["c1", "c5", "d1"]


@pytest.mark.parametrize("kind", ["tar", "parquet", "csv"])
def test_pairs_to_train_on_are_chosen_and_counted_and_no_fault(kind, tmp_path):
    source = write(tmp_path, kind)
    pairs = open_pairs(source, where=["width>=5", "lang=en"], max_skipped=0)
    wanted = [i for i in range(5, COUNT) if i % 3]
    assert [pairs.key(i) for i in range(len(pairs))] == [f"k{i}" for i in wanted]
    assert [pairs[i].image for i in range(len(pairs))] == [noise(i) for i in wanted]
    assert not pairs.left_out.all()
    assert f"{COUNT - len(wanted)} samples of" in str(pairs.left_out)
    with pytest.raises(ValueError, match="no sample fits where width>99"):
        open_pairs(source, where="width>99")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "date"])
def test_times_are_compared_as_times_in_jobs_and_in_training(unit, tmp_path):
    import datetime

    import pyarrow as pa

    moments = [datetime.datetime(2020, 1, day, 5 * (unit != "date")) for day in range(1, 4)]
    kind = pa.date32() if unit == "date" else pa.timestamp(unit)
    table = {"caption": list("abc"), "jpg": [noise(0)] * 3, "at": pa.array(moments).cast(kind)}
    source = parquet(tmp_path / "a.parquet", table)

    def taken(where):
        (shard,) = open_input(source, where=where).shards
        opened = shard.open()
        found = "".join(row.caption for row in opened.records(0, len(opened)))
        pairs = open_pairs(source, where=where)
        assert "".join(text for i in range(len(pairs)) for text in pairs[i].captions) == found
        return found

    assert taken("at>=2020") == taken("at>=2020-01-01") == "abc"
    assert taken("at>2020-01-01T12:30") == "bc"
    assert taken("at<2020-01-02T12:30+00:00") == "ab"
    assert taken("at in 2020-01-01,2020-01-01T05:00") == "a"
    with pytest.raises(ValueError, match=r"has times, such as .*Got 'soon'"):
        taken("at>=soon")
