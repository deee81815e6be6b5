"""One flipped bit in a part: it counts as damaged, and is made again."""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.embed import embed, read_embeddings, read_results
from clip_jax.embed.encoding import ABOUT, encoded
from clip_jax.embed.footer import footer_length, read_footer
from clip_jax.embed.results import finished_job, parts_of
from clip_jax.search import search
from tests.embedding_jobs import QUIET, contents
from tests.pictures import bmp

pytestmark = pytest.mark.usefixtures("compiled_once")

SIX = {**QUIET, "rows_per_part": 6}
TABLES = {"parquet": "part-{}.parquet", "npy": "metadata/metadata_{}.parquet"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six pictures, of which one is damaged."""
    folder = tmp_path_factory.mktemp("in") / "pictures"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.bmp").write_bytes(bmp(i) if i != 2 else b"bad")
    return folder


@pytest.fixture(scope="module", params=["parquet", "npy"])
def whole(request, folder, model, tmp_path_factory) -> Path:
    """A finished job in each format, to be read only."""
    out = tmp_path_factory.mktemp(request.param) / "out"
    embed(folder, model, out, format=request.param, **SIX)
    return out


@pytest.fixture
def out(whole, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def format_of(out: Path) -> Literal["parquet", "npy"]:
    return "npy" if (out / "metadata").exists() else "parquet"


def table_of(out: Path, name: str = "000000-000000") -> Path:
    return out / TABLES[format_of(out)].format(name)


def errors_of(out: Path) -> Path:
    (path,) = (out / "errors").iterdir()
    return path


def flips(data: bytes, step: int):
    """The data with one bit flipped: in every `step`th bit of the footer."""
    begin = len(data) - footer_length(data)
    for bit in range(8 * begin, 8 * len(data), step):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def as_before_seals(path: Path) -> None:
    """Leaves a part as the versions did that wrote no CRC of the footer."""
    data = path.read_bytes()
    about = json.loads(pq.read_metadata(path).metadata[ABOUT])
    about.pop("chunk", None)
    table = pq.read_table(path)
    embeddings = {
        name: table[name].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        for name in table.column_names
        if name == "embedding"
    }
    footer = read_footer(data)
    assert footer is not None
    pictures = None
    if footer.digests is not None:
        pictures = np.frombuffer(data, "<u8", footer.rows, footer.digests)
    table = table.drop_columns(list(embeddings)).replace_schema_metadata(None)
    data = encoded(table, embeddings, about, pictures)
    path.write_bytes(re.sub(rb'"footer": "[0-9a-f]{8}"', b'"other_": "00000000"', data))


def test_each_flipped_bit_in_a_parts_footer_is_noticed(out):
    parts, path = parts_of(str(out), finished_job(str(out))), table_of(out)
    data, whole = path.read_bytes(), parts.finished("000000-000000")
    assert whole is not None and whole.rows == 5
    for damaged in flips(data, step=41):
        path.write_bytes(damaged)
        assert parts.finished("000000-000000") is None
        assert parts.footer("000000-000000") is None
    path.write_bytes(data)
    assert parts.finished("000000-000000") == whole


def test_each_flipped_bit_in_the_footer_of_errors_is_noticed(out):
    parts, path = parts_of(str(out), finished_job(str(out))), errors_of(out)
    data = path.read_bytes()
    assert len(parts.errors("000000-000000")) == 1
    for damaged in flips(data, step=41):
        path.write_bytes(damaged)
        assert parts.errors("000000-000000") == []


def test_a_part_of_an_earlier_version_without_a_seal_is_valid(out, folder, model):
    as_before_seals(table_of(out))
    footer = read_footer(table_of(out).read_bytes())
    assert footer is not None and not footer.is_sealed
    before = contents(out)
    assert embed(folder, model, out, format=format_of(out), **SIX).parts == 0
    assert {k: v for k, v in contents(out).items() if "stamps" not in k} == {
        k: v for k, v in before.items() if "stamps" not in k
    }


def test_damage_of_a_footer_without_a_seal_is_no_traceback(out):
    path = table_of(out)
    as_before_seals(path)
    parts, data = parts_of(str(out), finished_job(str(out))), path.read_bytes()
    whole = parts.finished("000000-000000")
    assert whole is not None
    noticed = count = 0
    for damaged in flips(data, step=53):
        path.write_bytes(damaged)
        found, count = parts.finished("000000-000000"), count + 1
        if found is None:
            noticed += 1
            continue
        table = pq.read_table(path)  # whole in what is read of it
        assert table["key"].to_pylist() == [f"{i}.bmp" for i in (0, 1, 3, 4, 5)]
        parts.read("000000-000000", 0)
    assert noticed > count / 4


@pytest.mark.parametrize("field", ["shard_rows", "errors", "rows", "failed", "fingerprint"])
@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_part_whose_metadata_lacks_a_field_is_made_again(out, folder, model, field, is_sealed):
    path = table_of(out)
    if not is_sealed:
        as_before_seals(path)
    data, before = path.read_bytes(), contents(out)
    place = data.rindex(b'{"beside"')  # not the copy in Arrow's own schema
    damaged = data[:place] + data[place:].replace(
        b'"%s' % field.encode(), b'"X' + field[1:].encode()
    )
    assert damaged != data
    path.write_bytes(damaged)
    if field == "failed" and not is_sealed:  # it was not written by all versions
        return
    assert embed(folder, model, out, format=format_of(out), **SIX).parts == 1
    if is_sealed:
        assert contents(out) == before


@pytest.mark.parametrize("value", ["[]", "null", '"6"', "-1", "1.0", "true"])
def test_a_number_of_another_kind_in_the_metadata_is_damage(out, value):
    path = table_of(out)
    parts = parts_of(str(out), finished_job(str(out)))
    about = json.loads(pq.read_metadata(path).metadata[ABOUT])
    written = parts.read("000000-000000", 0)
    assert written is not None
    inside = written.part.embeddings if format_of(out) == "parquet" else {}
    for field in ("rows", "errors", "shard_rows", "beside", "failed"):
        other = about | {field: json.loads(value)}
        path.write_bytes(encoded(written.part.columns, inside, other))
        if (field, value) == ("failed", "[]"):
            assert parts.finished("000000-000000") is None
        elif read_footer(path.read_bytes()) is not None:
            raise AssertionError(field)


def test_a_part_whose_key_has_another_type_is_damaged(out, folder, model):
    path, parts = table_of(out), parts_of(str(out), finished_job(str(out)))
    written = parts.read("000000-000000", 0)
    assert written is not None
    about = json.loads(pq.read_metadata(path).metadata[ABOUT])
    inside = written.part.embeddings if format_of(out) == "parquet" else {}
    for name in ("key", parts.path_column):
        columns = written.part.columns
        position = columns.column_names.index(name)
        changed = columns.set_column(position, name, columns[name].cast(pa.binary()))
        path.write_bytes(encoded(changed, inside, about))
        assert parts.finished("000000-000000") is None
    assert embed(folder, model, out, format=format_of(out), **SIX).parts == 1


def test_readers_of_a_damaged_part_say_what_to_do(out, model, whole):
    path = table_of(out)
    data = path.read_bytes()
    path.write_bytes(next(flips(data, step=4000)))
    again = "is damaged: run the same clip-jax embed command again"
    with pytest.raises(ValueError, match=again):
        search(out, model, "a")
    if format_of(out) == "parquet":
        with pytest.raises(ValueError, match=again):
            read_embeddings(out)
        with pytest.raises(ValueError, match=again):
            read_results(str(out), ["key"])


def test_rows_whose_reasons_are_lost_are_counted(out):
    if format_of(out) == "npy":
        return
    good = read_results(str(out), ["key"])
    assert len(good.problems) == 1 and good.problems[0].startswith("2.bmp: ")
    data = errors_of(out).read_bytes()
    errors_of(out).write_bytes(next(flips(data, step=2000)))
    assert ["why is lost" in text for text in read_results(str(out), ["key"]).problems] == [True]
    shutil.rmtree(out / "errors")
    assert len(read_results(str(out), ["key"]).problems) == 1


def test_a_copy_of_a_part_under_another_number_is_not_read(folder, model, tmp_path):
    out = tmp_path / "out"
    embed(folder, model, out, **QUIET, rows_per_part=2)
    keys = read_embeddings(out).to_table()["key"].to_pylist()
    before = contents(out)
    for number in ("000007-000001", "000000-000009"):
        shutil.copy(table_of(out, "000000-000000"), table_of(out, number))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_embeddings(out).to_table()["key"].to_pylist() == keys
        assert len(search(out, model, "a", k=50)) == len(keys)
    for number in ("000007-000001", "000000-000009"):
        with pytest.raises(ValueError, match=f"remove .*{number}"):
            embed(folder, model, out, **QUIET, rows_per_part=2)
        table_of(out, number).unlink()
    shutil.copy(table_of(out, "000000-000000"), table_of(out, "000000-000002"))
    assert embed(folder, model, out, **QUIET, rows_per_part=2).parts == 1
    assert contents(out) == before


def test_parts_of_another_job_under_other_numbers_are_left_alone(folder, model, tmp_path):
    for name, rows in (("out", 2), ("other", 3)):
        embed(folder, model, tmp_path / name, **QUIET, rows_per_part=rows)
    out, other = tmp_path / "out", table_of(tmp_path / "other", "000000-000001")
    for number in ("000003-000000", "000000-000009"):
        shutil.copy(other, table_of(out, number))
    before = contents(out)
    assert embed(folder, model, out, **QUIET, rows_per_part=2).parts == 0
    assert contents(out) == before
    assert len(read_embeddings(out).to_table()) == 5
