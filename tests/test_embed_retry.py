"""Embedding jobs that go on: nothing that is there is replaced by less."""

import os
import random
import shutil
from pathlib import Path

import pytest

from clip_jax import storage as storage_module
from clip_jax.embed import embed
from tests.embedding_jobs import TWO_A_PART, contents, errors, lasting, rows, some, write_input
from tests.pictures import bmp, noise

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("compiled_once")
import pyarrow.parquet as pq  # noqa: E402


def damaged(source: Path, how: str) -> None:
    data = bytearray(source.read_bytes())
    match how:
        case "gone":
            data = bytearray(len(data))
        case "end":
            data[-8:] = b"garbage!"
        case "middle":
            data[len(data) // 2 : len(data) // 2 + 600] = b"?" * 600
    source.write_bytes(data)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("how", ["gone", "middle", "end"])
def test_a_retry_while_a_file_can_not_be_read_keeps_what_is_embedded(model, tmp_path, kind, how):
    for name in "ab":
        pictures = [(f"{name}{i}", noise(ord(name) + i)) for i in range(8)]
        pictures[3] = (pictures[3][0], b"bad")
        write_input(tmp_path / f"{name}.{kind}", pictures)
    source, out = tmp_path / f"*.{kind}", tmp_path / "out"
    embed(source, model, out, **TWO_A_PART)
    before, bad = lasting(out), tmp_path / f"b.{kind}"
    good = bad.read_bytes()
    damaged(bad, how)
    if how == "middle":  # a picture is another now
        with pytest.raises(ValueError, match="of other pictures: rows 4 to 5 of b"):
            embed(source, model, out, retry_errors=True, **TWO_A_PART)
        assert lasting(out) == before
    for _ in range(2 if how != "middle" else 0):
        summary = embed(source, model, out, retry_errors=True, **TWO_A_PART)
        assert (summary.parts, summary.errors) == (0, 2)
        assert lasting(out) == before
    bad.write_bytes(good)
    summary = embed(source, model, out, retry_errors=True, **TWO_A_PART)
    assert (summary.parts, summary.rows_before, summary.errors) == (0, 14, 2)
    assert lasting(out) == before


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_whatever_fails_however_often_no_row_is_lost(model, tmp_path, format, monkeypatch):
    rng, source = random.Random(0), write_input(tmp_path / "in", some(8))
    read, options = storage_module.Disk.read, {**TWO_A_PART, "rows_per_part": 4, "format": format}
    embed(source, model, tmp_path / "undisturbed", **options)
    out, failing, there = tmp_path / "out", set(), set()

    def refuse(self, path):
        if path in failing:
            raise PermissionError(13, "Permission denied", path)
        return read(self, path)

    monkeypatch.setattr(storage_module.Disk, "read", refuse)
    for turn in range(10):
        chosen = rng.sample(sorted(source.iterdir()), k=4 - turn // 3)
        failing = {str(path) for path in chosen}
        if turn % 2:  # so that what is there is compared
            for path in source.iterdir():
                os.utime(path)
        embed(source, model, out, retry_errors=True, **options)
        now = keys(out, format)
        assert there <= now and len(now) + len(errors(out)) == 8, turn
        there = now
    failing = set()
    embed(source, model, out, retry_errors=True, **options)
    assert lasting(out) == lasting(tmp_path / "undisturbed")


def keys(out: Path, format: str) -> set[str]:
    tables = out.glob("part-*" if format == "parquet" else "metadata/*.parquet")
    found = [key for table in tables for key in pq.read_table(table)["key"].to_pylist()]
    assert len(set(found)) == len(found)
    return set(found)


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_a_retry_that_is_killed_between_its_files_loses_nothing(
    model, tmp_path, format, monkeypatch
):
    source, out = write_input(tmp_path / "in", some(6)), tmp_path / "out"
    options = {**TWO_A_PART, "rows_per_part": 6, "format": format}
    embed(source, model, tmp_path / "undisturbed", **options)
    for name in ("01.bmp", "04.bmp"):
        (source / name).write_bytes(b"bad")
    embed(source, model, tmp_path / "begun", **options)
    (source / "01.bmp").write_bytes(bmp(1))
    put = storage_module.Disk.write

    class Killed(BaseException):
        """As SIGKILL: nothing of ours runs after it."""

    for last in range(7):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "begun", out)
        written = []

        def stop(self, path, data, last=last, written=written):
            if len(written) == last:
                raise Killed
            put(self, path, data)
            written.append(path)

        monkeypatch.setattr(storage_module.Disk, "write", stop)
        try:
            embed(source, model, out, retry_errors=True, **options)
        except Killed:
            is_killed = True
        else:
            is_killed = False
        monkeypatch.setattr(storage_module.Disk, "write", put)
        # Nothing can be read now: what is there stays, and nothing else is said of it.
        moved = source.rename(tmp_path / "away")
        source.mkdir()
        for path in moved.iterdir():
            (source / path.name).symlink_to("nowhere")
        embed(source, model, out, retry_errors=True, **options)
        assert len(keys(out, format)) >= 4 and len(errors(out)) == 6 - len(keys(out, format))
        shutil.rmtree(source)
        moved.rename(source)
        embed(source, model, out, retry_errors=True, **options)
        assert len(keys(out, format)) == 5 and set(errors(out)) == {"04.bmp"}
        if not is_killed:
            break
    else:
        pytest.fail("killed at every write")
    assert last >= 3
    (source / "04.bmp").write_bytes(bmp(4))
    embed(source, model, out, retry_errors=True, **options)
    assert lasting(out) == lasting(tmp_path / "undisturbed")


def test_a_part_that_can_not_be_read_for_a_moment_is_not_done_again(model, tmp_path, monkeypatch):
    source, out = write_input(tmp_path / "in", some(4)), tmp_path / "out"
    embed(source, model, out, **TWO_A_PART)
    before, read = contents(out), storage_module.Disk.read

    def refuse(self, path):
        if path.endswith("000001.parquet"):
            raise OSError(5, "Input/output error", path)
        return read(self, path)

    monkeypatch.setattr(storage_module.Disk, "read", refuse)
    with pytest.raises(OSError, match="error: try again, or remove it .*part-000000-000001"):
        embed(source, model, out, **TWO_A_PART)
    assert contents(out) == before


def test_a_row_whose_error_is_lost_is_tried_again(model, tmp_path):
    source, out = write_input(tmp_path / "in", [*some(3), ("03", b"bad")]), tmp_path / "out"
    embed(source, model, out, **TWO_A_PART)
    before = contents(out)
    shutil.rmtree(out / "errors")
    summary = embed(source, model, out, **TWO_A_PART)
    assert (summary.rows, summary.errors, summary.rows_before) == (0, 1, 3)
    assert contents(out) == before


def test_a_file_that_is_found_to_have_more_rows_adds_them(model, tmp_path):
    source, out = write_input(tmp_path / "a.tar", some(8)), tmp_path / "out"
    options = {**TWO_A_PART, "rows_per_part": 3}
    embed(source, model, tmp_path / "undisturbed", **options)
    good = source.read_bytes()
    damaged(source, "middle")
    embed(source, model, out, **options)
    there = rows(out)["key"]
    assert 1 < len(there) < 8
    source.write_bytes(good)
    assert embed(source, model, out, **options).parts == 3
    assert rows(out)["key"] == [f"{i:02d}" for i in range(8)]
    assert lasting(out) == lasting(tmp_path / "undisturbed")


def test_rows_that_could_not_be_compared_are_not_taken_for_the_inputs(model, tmp_path, monkeypatch):
    source, out = write_input(tmp_path / "in", [*some(1), ("01", b"bad")]), tmp_path / "out"
    embed(source, model, out, **TWO_A_PART)
    (source / "00.bmp").write_bytes(bmp(7))
    (source / "01.bmp").write_bytes(bmp(1))
    read = storage_module.Disk.read

    def refuse(self, path):
        if path.endswith("00.bmp"):
            raise PermissionError(13, "Permission denied", path)
        return read(self, path)

    monkeypatch.setattr(storage_module.Disk, "read", refuse)
    assert embed(source, model, out, retry_errors=True, **TWO_A_PART).parts == 1
    assert rows(out)["key"] == ["00.bmp", "01.bmp"]
    monkeypatch.setattr(storage_module.Disk, "read", read)
    with pytest.raises(ValueError, match="that of '00.bmp' is another than before"):
        embed(source, model, out, **TWO_A_PART)
