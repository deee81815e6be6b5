"""Embedding jobs that go on: `verify`, and what an earlier version has begun."""

import json
import os
import shutil
from pathlib import Path

import pytest

from clip_jax.embed import embed
from clip_jax.embed.encoding import ABOUT, encoded
from clip_jax.embed.results import finished_job, parts_of
from clip_jax.file_stat import Stat
from clip_jax.sources import lines
from tests.embedding_jobs import KINDS, TWO_A_PART, contents, lasting, lose, rows, some, write_input
from tests.pictures import bmp

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("compiled_once")
import pyarrow.parquet as pq  # noqa: E402


def test_verify_reads_everything_again_and_sees_what_no_time_tells(
    model, tmp_path, monkeypatch, counted
):
    monkeypatch.setattr(Stat, "stamp", "the same")
    source, out = write_input(tmp_path / "a.tar", some(6)), tmp_path / "out"
    embed(source, model, out, **TWO_A_PART)
    lose(out, 2)
    summary = embed(source, model, out, verify=True, **TWO_A_PART)
    assert (summary.verified, summary.rows, counted["compared"]) == (4, 2, 4)
    assert str(summary).startswith("4 rows verified: as in the input\n2 rows in 1 part")
    before = contents(out)
    write_input(source, [*some(5), ("05", bmp(55))])
    assert embed(source, model, out, **TWO_A_PART).parts == 0
    with pytest.raises(ValueError, match="of other pictures: rows 4 to 5 .* that of '05' is ano"):
        embed(source, model, out, verify=True, dry_run=True, **TWO_A_PART)
    assert contents(out) == before


def test_pictures_that_a_table_names_are_compared_by_verify(model, tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.bmp").write_bytes(bmp(i))
    (tmp_path / "t.csv").write_text("image\n" + "".join(f"{i}.bmp\n" for i in range(4)))
    embed(tmp_path / "t.csv", model, tmp_path / "out", **TWO_A_PART)
    (tmp_path / "3.bmp").write_bytes(bmp(9))
    os.utime(tmp_path / "t.csv")
    assert embed(tmp_path / "t.csv", model, tmp_path / "out", **TWO_A_PART).parts == 0
    with pytest.raises(ValueError, match="of other pictures: rows 2 to 3 .* '3.bmp' is another"):
        embed(tmp_path / "t.csv", model, tmp_path / "out", verify=True, **TWO_A_PART)


def test_a_table_that_names_other_pictures_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BEGINNING", 9)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            (tmp_path / folder / f"{i}.bmp").write_bytes(bmp(i))
        (tmp_path / folder / "t.csv").write_text("key,image\n" + "k,0.bmp\nl,1.bmp\n")
    embed(tmp_path / "a" / "t.csv", model, tmp_path / "out", **TWO_A_PART)
    # Another folder with the same is none.
    assert embed(tmp_path / "b" / "t.csv", model, tmp_path / "out", **TWO_A_PART).parts == 0
    (tmp_path / "b" / "t.csv").write_text("key,image\n" + "k,0.bmp\nl,2.bmp\n")
    with pytest.raises(ValueError, match="of other pictures: .* where that of 'l' was .*/1.bmp"):
        embed(tmp_path / "b" / "t.csv", model, tmp_path / "out", **TWO_A_PART)


def test_verify_refuses_what_can_not_be_read(model, tmp_path):
    source, out = write_input(tmp_path / "in", some(4)), tmp_path / "out"
    embed(source, model, out, **TWO_A_PART)
    (source / "03.bmp").unlink()
    (source / "03.bmp").symlink_to("nowhere")
    assert embed(source, model, out, **TWO_A_PART).parts == 0
    with pytest.raises(ValueError, match="rows 2 to 3 of the input can't be verified: No such"):
        embed(source, model, out, verify=True, **TWO_A_PART)


def test_verify_reads_parts_on_a_store_whole(model, tmp_path):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    source, out = write_input(tmp_path / "in", some(6)), "memory://verify/out"
    embed(source, model, out, **TWO_A_PART)
    name = "/verify/out/part-000000-000001.parquet"
    good = memory.cat_file(name)
    memory.pipe_file(name, good[:40] + bytes([good[40] ^ 1]) + good[41:])
    assert embed(source, model, out, **TWO_A_PART).parts == 0
    assert embed(source, model, out, verify=True, **TWO_A_PART).parts == 1
    assert memory.cat_file(name) == good


def as_before(out: Path) -> None:
    """Leaves an output as the version before stamps and digests did."""
    parts = parts_of(str(out), finished_job(str(out)))
    for name in parts.names():
        written = parts.read(name, 0)
        assert written is not None
        path = out / f"part-{name}.parquet"
        about = json.loads(pq.read_metadata(path).metadata[ABOUT])
        about.pop("failed", None)
        times = path.stat()
        about["contents"] = "0123abcd"  # sizes of a folder's pictures
        path.write_bytes(encoded(written.part.columns, written.part.embeddings, about))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    shutil.rmtree(out / "stamps")


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_of_an_earlier_version_goes_on_where_its_files_are_older_than_its_parts(
    model, tmp_path, kind
):
    source, out = write_input(tmp_path / f"a.{kind}", [*some(5), ("05", b"bad")]), tmp_path / "out"
    embed(source, model, out, **TWO_A_PART)
    undisturbed = rows(out)
    as_before(out)
    lose(out, 1)
    summary = embed(source, model, out, **TWO_A_PART)
    assert (summary.parts, summary.rows_before, summary.errors) == (1, 3, 1)
    assert rows(out) == undisturbed
    assert embed(source, model, out, retry_errors=True, **TWO_A_PART).errors == 1
    assert rows(out) == undisturbed


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_of_an_earlier_version_is_refused_in_one_line_where_that_can_not_be_told(
    model, tmp_path, kind
):
    source, out = write_input(tmp_path / f"a.{kind}", some(4)), tmp_path / "out"
    embed(source, model, out, **TWO_A_PART)
    as_before(out)
    lose(out, 1)
    before = contents(out)
    write_input(source, [("00", bmp(8)), *some(4)[1:]])
    for options in ({}, {"verify": True}):
        with pytest.raises(ValueError, match="can't be told: an earlier version of clip-jax") as e:
            embed(source, model, out, **options, **TWO_A_PART)
        assert "\n" not in str(e.value)
    assert contents(out) == before


def test_texts_of_an_earlier_version_are_compared_themselves(model, tmp_path):
    source, out = tmp_path / "t.txt", tmp_path / "out"
    source.write_text("a\nb\nc\nd\n")
    embed(source, model, out, **TWO_A_PART)
    undisturbed = lasting(out)
    as_before(out)
    lose(out, 1)
    os.utime(source)
    assert embed(source, model, out, **TWO_A_PART).parts == 1
    assert rows(out)["caption"] == ["a", "b", "c", "d"]
    assert lasting(out).keys() == undisturbed.keys()
