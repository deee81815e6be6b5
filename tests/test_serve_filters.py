"""The conditions of `clip-jax serve` on columns of times and of categories."""

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.serve.filters import matching, parse
from clip_jax.serve.refusals import Refusal
from clip_jax.sources.where import OPERATORS, Condition, Value, number_of

pa = pytest.importorskip("pyarrow")

# Each at five in the morning, in UTC.
DAYS = [datetime.datetime(2020, 1, day, 5) for day in (1, 2, 3)]
COLUMNS = {
    "taken": pa.array(DAYS, pa.timestamp("us")),
    "seconds": pa.array(DAYS, pa.timestamp("s")),
    "nanos": pa.array(DAYS, pa.timestamp("ns")),
    "zoned": pa.array(DAYS, pa.timestamp("us", "Europe/Berlin")),
    "day": pa.array([moment.date() for moment in DAYS]),
    "hour": pa.array([datetime.time(hour) for hour in (1, 9, 23)]),
    "lang": pa.array(["en", "de", None]).dictionary_encode(),
    "tags": pa.array([["a"], ["b"], None]),
}
TYPES = {name: column.type for name, column in COLUMNS.items()}


def met(text: str) -> list[bool]:
    condition = parse(text, TYPES)
    return matching(condition, pa.chunked_array([COLUMNS[condition.name]])).tolist()


@pytest.mark.parametrize("name", ["taken", "seconds", "nanos", "zoned"])
@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (">=2020-01-02", [False, True, True]),
        (">=2020-01-02T05:00", [False, True, True]),
        (">2020-01-02T05:00", [False, False, True]),
        (">=2020-01-02 06:00", [False, False, True]),
        ("=2020-01-02T05:00:00Z", [False, True, False]),
        ("=2020-01-02T06:00:00+01:00", [False, True, False]),
        ("<2020-01", [False, False, False]),
        (">=2020", [True, True, True]),
        (" in 2020-01-01T05:00,2020-01-03T05:00", [True, False, True]),
    ],
)
def test_moments_are_compared_as_moments_however_they_are_written(name, rest, expected):
    assert met(name + rest) == expected


def test_days_are_compared_as_days():
    assert met("day=2020-01-02") == [False, True, False]
    assert met("day!=2020-01-02") == [True, False, True]
    assert met("day<2020-01-02T00:00") == [True, False, False]


def test_times_of_day_are_compared():
    assert met("hour>=09:00") == [False, True, True]


@pytest.mark.parametrize("value", ["soon", "''", "2020-13-01", "20", "9" * 400, "nan", "\0"])
def test_what_is_no_moment_is_refused(value):
    with pytest.raises(Refusal, match="taken has times: taken>=2020-01-31 or"):
        parse(f"taken>={value}", TYPES)


def test_categories_are_compared_as_what_they_stand_for():
    assert met("lang=de") == [False, True, False]
    assert met("lang!=de") == [True, False, False]
    assert met("lang~E") == [True, True, False]


@pytest.mark.parametrize("operator", ["=", "~"])
def test_lists_are_refused(operator):
    with pytest.raises(Refusal, match="tags is list"):
        parse(f"tags{operator}a", TYPES)


NUMBERS = st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6, width=32)
TEXTS = st.text(max_size=4) | NUMBERS.map(repr) | st.sampled_from(["+7", " 7 ", "07", "7.", ".5"])
VALUES = TEXTS.map(lambda text: Value(text, None if text != text.strip() else number_of(text)))


@given(st.lists(TEXTS | st.none(), max_size=6), st.sampled_from(OPERATORS), VALUES)
@settings(max_examples=400, deadline=None)
def test_texts_meet_the_conditions_that_they_meet_in_jobs(texts, operator, value):
    condition = Condition("text", operator, (value,))
    expected = [condition.holds(text) for text in texts]
    for type_ in (pa.string(), pa.large_string()):
        column = pa.chunked_array([pa.array(texts, type_)])
        assert matching(condition, column).tolist() == expected
        assert matching(parse(str(condition), {"text": type_}), column).tolist() == expected


@given(st.lists(NUMBERS | st.none(), max_size=6), st.sampled_from(OPERATORS[:6]), NUMBERS)
@settings(max_examples=200, deadline=None)
def test_numbers_meet_the_conditions_that_they_meet_in_jobs(numbers, operator, number):
    condition = Condition("number", operator, (Value(repr(number), number),))
    column = pa.chunked_array([pa.array(numbers, pa.float64())])
    assert matching(condition, column).tolist() == [condition.holds(each) for each in numbers]


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, "1e300"])
@pytest.mark.parametrize("type_", ["float16", "float32", "float64", "int64", "uint64", "string"])
def test_numbers_beyond_a_columns_type_are_compared(type_, number):
    values = pa.array([1, 2, None]).cast(type_)
    column = pa.chunked_array([values])
    for operator, holds in (("<", number[0] != "-"), (">", number[0] == "-"), ("=", False)):
        condition = parse(f"x{operator}{number}", {"x": values.type})
        assert matching(condition, column).tolist() == [holds, holds, False]


@pytest.mark.parametrize("name", ["a=b", "in in in", "~", "'x'", 'say "a"', "café"])
def test_names_of_columns_need_no_quotes_here(name):
    for rest, operator, value in (("= 3", "=", "3"), (" in 3,4", "in", "3"), ("~x", "~", "x")):
        condition = parse(name + rest, {name: pa.string(), "in": pa.string()})
        assert (condition.name, condition.operator) == (name, operator)
        assert condition.values[0].text == value
