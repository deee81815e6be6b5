"""Embedding jobs: where they write, and what a disk or store that fails leaves."""

import errno
import os
import sys

import pytest

from clip_jax import attempts
from clip_jax import storage as storage_module
from clip_jax.embed import embed, read_embeddings
from tests.embedding_jobs import COUNT, QUIET, contents
from tests.pictures import noise

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


def test_a_full_disk_leaves_no_half_of_a_part(pictures, undisturbed, model, tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device.*part-"):
        embed(pictures, model, tmp_path / "out", rows_per_part=7, **QUIET)
    left = contents(tmp_path / "out")
    assert 1 < len(left) < len(contents(undisturbed))
    monkeypatch.undo()
    embed(pictures, model, tmp_path / "out", rows_per_part=7, **QUIET)
    assert contents(tmp_path / "out") == contents(undisturbed)


def test_an_output_that_can_not_be_written_is_refused(pictures, model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        embed(pictures, model, tmp_path / "file" / "out", **QUIET)
    with pytest.raises(OSError):  # where nobody may write, whoever it is
        embed(pictures, model, "/proc/clip-jax", **QUIET)


def test_parts_on_an_object_store_are_one_put_each(pictures, undisturbed, model, monkeypatch):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    puts, pipe = [], memory.pipe_file

    def counted(path, value, **options):
        puts.append(path)
        return pipe(path, value, **options)

    monkeypatch.setattr(memory, "pipe_file", counted)
    out = "memory://bucket/out"
    embed(pictures, model, out, rows_per_part=7, **QUIET)
    assert len(puts) == len(set(puts)) == len(contents(undisturbed))
    for name, content in contents(undisturbed).items():
        assert memory.cat_file(f"/bucket/out/{name}") == content
    assert read_embeddings(out).count_rows() == COUNT
    assert embed(pictures, model, out, rows_per_part=7, **QUIET).parts == 0
    memory.rm_file("/bucket/out/part-000000-000002.parquet")
    assert embed(pictures, model, out, rows_per_part=7, **QUIET).parts == 1


def test_an_address_on_this_machine_is_its_path(pictures, undisturbed, model, tmp_path):
    out = tmp_path / "new" / "out"
    embed(f"file://{pictures}", model, f"file://{out}/", rows_per_part=7, **QUIET)
    assert contents(out) == contents(undisturbed)
    assert read_embeddings(f"file://{out}").count_rows() == COUNT


def test_a_store_with_real_folders_makes_them(tmp_path):
    path = f"file://{tmp_path}/new/folder/a.txt"
    storage_module.storage(path).write(path, b"x")
    assert (tmp_path / "new" / "folder" / "a.txt").read_bytes() == b"x"


def test_a_store_that_can_not_be_reached_stops_the_job(pictures, model, tmp_path, monkeypatch):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for name in ("a.png", "b.png"):
        memory.pipe_file(f"/far/{name}", noise(1))

    def unreachable(*args, **options):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(attempts, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(memory, "cat_file", unreachable)
    with pytest.raises(OSError, match="can't be reached: RuntimeError: no route to host. Check"):
        embed("memory://far", model, tmp_path / "out", **QUIET)
    monkeypatch.setattr(memory, "find", unreachable)
    with pytest.raises(OSError, match="memory://far can't be reached"):
        embed("memory://far", model, tmp_path / "out", **QUIET)
    with pytest.raises(OSError, match="memory://.*can't be reached"):
        embed(pictures, model, "memory://far/out", **QUIET)


@pytest.mark.parametrize(
    ("module", "out", "extra"), [("pyarrow", "out", "embed"), ("fsspec", "memory://x", "remote")]
)
def test_a_missing_extra_is_named(pictures, model, tmp_path, monkeypatch, module, out, extra):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"clip-jax-flax\[{extra}\]"):
        embed(pictures, model, out if "://" in out else tmp_path / out, **QUIET)
