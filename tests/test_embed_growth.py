"""Embedding jobs whose input has got more since: what is new goes into parts of its own."""

import gzip
import json
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from clip_jax.embed import embed, read_embeddings
from clip_jax.embed.extensions import INPUTS
from clip_jax.search import search
from tests.embedding_jobs import TWO_A_PART, contents, lose, rows, some, write_input
from tests.pictures import bmp

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("compiled_once")

EXTEND = {"extend": True, **TWO_A_PART}


def begun(kind: str, tmp_path: Path, model, count: int = 4) -> tuple[str, Path]:
    """The source and the output of a finished job."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    add(kind, source, 0, count)
    address = str(source if kind == "folder" else source / f"*.{kind}")
    embed(address, model, out, **TWO_A_PART)
    return address, out


def add(kind: str, source: Path, begin: int, end: int) -> None:
    """Adds pictures: to the folder, or in a new file whose name sorts before all others."""
    new = [(f"{i:02d}", bmp(i)) for i in range(begin, end)]
    write_input(source if kind == "folder" else source / f"{99 - begin}.{kind}", new)


def vectors(out: Path) -> dict[str, np.ndarray]:
    """The embeddings by their keys, none of which may be there twice."""
    found = rows(out)
    assert len(set(found["key"])) == len(found["key"])
    return dict(zip(found["key"], map(np.array, found["embedding"]), strict=True))


def parts(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(out).items() if name.startswith("part-")}


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_what_is_new_goes_into_new_parts_and_the_others_stay_to_the_bit(kind, model, tmp_path):
    source, out = begun(kind, tmp_path, model)
    folder = tmp_path / "in"
    for begin, end in ((4, 7), (7, 8), (8, 12)):  # three extensions in a row
        before = parts(out)
        add(kind, folder, begin, end)
        summary = embed(source, model, out, **EXTEND)
        assert (summary.rows, summary.rows_before) == (end - begin, begin)
        assert before.items() <= parts(out).items()
        again = embed(source, model, out, verify=True, **TWO_A_PART)
        assert (again.parts, again.verified) == (0, end)
    embed(source, model, tmp_path / "anew", **TWO_A_PART)
    extended, anew = vectors(out), vectors(tmp_path / "anew")
    assert extended.keys() == anew.keys() and len(anew) == 12
    assert all((extended[key] == anew[key]).all() for key in anew)
    assert len(search(out, model, "a picture", k=20)) == 12


def test_more_pictures_are_told_where_nobody_said_that_they_are_meant(model, tmp_path):
    source, out = begun("folder", tmp_path, model)
    add("folder", tmp_path / "in", 4, 5)
    with pytest.warns(UserWarning, match="has 1 more picture than when .* was begun"):
        assert embed(source, model, out, **TWO_A_PART).rows == 1
    assert embed(source, model, out, **TWO_A_PART).parts == 0


def test_a_dry_run_counts_what_is_new_and_writes_nothing(model, tmp_path):
    source, out = begun("folder", tmp_path, model)
    add("folder", tmp_path / "in", 4, 9)
    before = contents(out)
    assert embed(source, model, out, dry_run=True, **EXTEND).rows_to_do == 5
    assert contents(out) == before


def test_pictures_that_are_gone_are_refused_by_name(model, tmp_path):
    source, out = begun("folder", tmp_path, model)
    add("folder", tmp_path / "in", 4, 6)
    embed(source, model, out, **EXTEND)
    (tmp_path / "in" / "01.bmp").rename(tmp_path / "in" / "x.bmp")
    (tmp_path / "in" / "05.bmp").unlink()
    before = contents(out)
    with pytest.raises(ValueError, match=r"another job(?s:.*)01.bmp was .*gone\n.*05.bmp was"):
        embed(source, model, out, **EXTEND)
    assert contents(out) == before


def test_a_file_of_other_rows_is_refused_by_name_and_one_with_more_is_extended(model, tmp_path):
    source, out = begun("parquet", tmp_path, model)
    write_input(tmp_path / "in" / "99.parquet", some(6))
    with pytest.raises(
        ValueError, match=r"99\.parquet has another size or content than when it was"
    ):
        embed(source, model, out, **TWO_A_PART)
    assert embed(source, model, out, **EXTEND).rows == 2
    write_input(tmp_path / "in" / "99.parquet", some(9))
    add("parquet", tmp_path / "in", 20, 23)
    assert embed(source, model, out, **EXTEND).rows == 6
    assert sorted(vectors(out)) == [f"{i:02d}" for i in (*range(9), 20, 21, 22)]
    assert embed(source, model, out, verify=True, **TWO_A_PART).verified == 12
    before = parts(out)
    write_input(tmp_path / "in" / "99.parquet", some(9)[::-1] + [("10", bmp(10))])
    with pytest.raises(
        ValueError, match="holds embeddings of other rows: rows 0 to 1 of 99.parquet"
    ):
        embed(source, model, out, **EXTEND)
    assert parts(out) == before
    write_input(tmp_path / "in" / "99.parquet", some(5))
    with pytest.raises(ValueError, match="99.parquet, where the file has"):
        embed(source, model, out, **EXTEND)


def test_lines_added_to_a_table_are_embedded(model, tmp_path):
    table, out = tmp_path / "in.csv", tmp_path / "out"
    table.write_text("caption\na\nb\nc\n")
    embed(table, model, out, **TWO_A_PART)
    for lines in ("d\ne\n", "f\n"):
        table.write_text(table.read_text() + lines)
        assert embed(table, model, out, **EXTEND).rows == len(lines) // 2
    assert rows(out)["caption"] == list("abcdef")
    assert embed(table, model, out, verify=True, **TWO_A_PART).verified == 6
    table.write_text("caption\na\nb\nX\nd\ne\nf\ng\n")
    with pytest.raises(ValueError, match="of other rows: rows 2 to 2 of in.csv, where "):
        embed(table, model, out, **EXTEND)


def test_parts_that_were_missing_when_more_came_are_made(model, tmp_path):
    source, out = begun("folder", tmp_path, model)
    whole = contents(out)
    lose(out, 1)
    add("folder", tmp_path / "in", 4, 7)
    assert embed(source, model, out, **EXTEND).rows == 5
    assert whole["part-000000-000001.parquet"] == contents(out)["part-000000-000001.parquet"]
    for name in ("part-000001-000000.parquet", "part-000000-000000.parquet"):
        data = (out / name).read_bytes()
        (out / name).write_bytes(data[:99] + b"?" + data[100:])
        assert embed(source, model, out, **TWO_A_PART).parts == 1
        assert (out / name).read_bytes() == data


@pytest.mark.filterwarnings("ignore:.*is not finished|.*has no part of some files")
def test_workers_share_what_is_new(model, tmp_path):
    source, out = begun("folder", tmp_path, model)
    add("folder", tmp_path / "in", 4, 11)
    assert embed(source, model, out, shard=(0, 2), **EXTEND).rows < 7
    add("folder", tmp_path / "in", 11, 12)  # between the workers' starts
    assert embed(source, model, out, shard=(1, 2), **EXTEND).rows > 0
    embed(source, model, out, shard=(0, 2), **TWO_A_PART)
    assert sorted(vectors(out)) == [f"{i:02d}.bmp" for i in range(12)]


def test_another_process_that_extends_by_something_else_is_noticed(model, tmp_path, monkeypatch):
    from clip_jax.embed import job

    source, out = begun("folder", tmp_path, model)
    add("folder", tmp_path / "in", 4, 6)
    prepare = job.prepare

    def prepare_and_be_late(*args, **options):
        found = prepare(*args, **options)
        monkeypatch.setattr(job, "prepare", prepare)
        add("folder", tmp_path / "in", 6, 7)
        embed(source, model, out, **EXTEND)
        return found

    monkeypatch.setattr(job, "prepare", prepare_and_be_late)
    with pytest.raises(ValueError, match="has just been extended by another process"):
        embed(source, model, out, **EXTEND)
    assert embed(source, model, out, **TWO_A_PART).parts == 0
    assert len(vectors(out)) == 7


def test_failed_rows_of_all_extensions_are_tried_again(model, tmp_path):
    source, out = begun("folder", tmp_path, model)
    (tmp_path / "in" / "04.bmp").write_bytes(b"no picture")
    assert embed(source, model, out, **EXTEND).errors == 1
    (tmp_path / "in" / "05.bmp").write_bytes(b"nor this")
    assert embed(source, model, out, **EXTEND).errors == 2
    add("folder", tmp_path / "in", 4, 6)
    assert embed(source, model, out, retry_errors=True, **TWO_A_PART).rows == 2
    assert len(vectors(out)) == 6


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_job_of_an_earlier_version_is_extended_where_it_tells_what_it_had(kind, model, tmp_path):
    source, out = begun(kind, tmp_path, model)
    shutil.rmtree(out / INPUTS)
    new = [(f"{i:02d}", bmp(i)) for i in range(4, 6)]
    write_input(tmp_path / "in" if kind == "folder" else tmp_path / "in" / "later.tar", new)
    if kind == "tar":
        (tmp_path / "in" / "later.tar").rename(tmp_path / "in" / "zz.tar")
    assert embed(source, model, out, **EXTEND).rows == 2
    assert len(vectors(out)) == 6
    shutil.rmtree(out / INPUTS)
    with pytest.raises(ValueError, match="another job"):
        embed(source, model, out, **TWO_A_PART)


def test_arrays_are_extended_too(model, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write_input(source, some(3))
    embed(source, model, out, format="npy", **TWO_A_PART)
    write_input(source, some(6))
    assert embed(source, model, out, format="npy", **EXTEND).rows == 3
    assert len(search(out, model, "a", k=9)) == 6


def test_a_damaged_extension_is_told(model, tmp_path):
    source, out = begun("folder", tmp_path, model)
    add("folder", tmp_path / "in", 4, 6)
    embed(source, model, out, **EXTEND)
    note = out / "extension-000001.json"
    text = note.read_text()
    note.write_text(text[:40])
    with pytest.raises(ValueError, match="extension-000001.json is damaged: remove it"):
        read_embeddings(out)
    note.write_text(json.dumps(json.loads(text) | {"extends": "0" * 16}))
    with pytest.raises(ValueError, match="extends another job"):
        embed(source, model, out, **TWO_A_PART)
    note.unlink()  # as the message says: the same extension is made again
    assert embed(source, model, out, **EXTEND).parts == 0
    assert note.read_text() == text
    for path in (out / INPUTS).iterdir():
        assert json.loads(gzip.decompress(path.read_bytes()))


@pytest.mark.parametrize("seed", range(3))
def test_a_folder_that_grows_at_random_between_kills_has_every_picture_once(
    seed, model, tmp_path, monkeypatch
):
    from clip_jax.embed import part_builder

    rng = random.Random(seed)
    source, out = write_input(tmp_path / "in", some(3)), tmp_path / "out"
    save, count = part_builder.PartBuilder.save, 3

    class Killed(Exception):
        pass

    def save_or_die(self, parts):
        if rng.random() < 0.4:
            raise Killed
        save(self, parts)

    monkeypatch.setattr(part_builder.PartBuilder, "save", save_or_die)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(8):
            if rng.random() < 0.6:
                more = rng.randint(1, 3)
                new = [(f"{rng.random():.5f}", bmp(i)) for i in range(count, count + more)]
                write_input(source, new)
                count += more
            try:
                embed(source, model, out, shard=(rng.randrange(2), 2), **EXTEND)
            except Killed:
                pass
    monkeypatch.setattr(part_builder.PartBuilder, "save", save)
    for worker in range(2):
        embed(source, model, out, shard=(worker, 2), **EXTEND)
    assert sorted(vectors(out)) == sorted(path.name for path in source.iterdir())
