"""Embedding jobs whose file system, descriptors or memory fail them."""

import builtins
import errno
import glob
import json
import os
from pathlib import Path

import pytest

import clip_jax
from clip_jax.cli import main
from clip_jax.embed import Columns, embed
from clip_jax.embed.engines import local
from clip_jax.sources import input_files
from clip_jax.sources.parquet import ParquetShard
from clip_jax.storage import Disk
from tests import torture_embed
from tests.archives import parquet, write_tar
from tests.embedding_jobs import QUIET, contents, errors
from tests.pictures import noise

pa = pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


OPTIONS = {"rows_per_part": 4, **QUIET}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, str]:
    """Pictures in a folder, in shards, and by their names in a table."""
    root = tmp_path_factory.mktemp("sources")
    images = {f"{i:02d}.png": noise(i) for i in range(8)}
    (root / "folder").mkdir()
    for name, image in images.items():
        (root / "folder" / name).write_bytes(image)
    for shard in range(2):
        write_tar(root / f"{shard}.tar", images)
    parquet(root / "in.parquet", {"image": [f"folder/{name}" for name in images]})
    return {"folder": f"{root}/folder", "tar": f"{root}/*.tar", "table": f"{root}/in.parquet"}


def test_no_fault_of_the_file_system_loses_doubles_or_changes_a_row(monkeypatch):
    monkeypatch.setattr(local, "encoder_of", local.encoder_of)  # which the program replaces
    ends = torture_embed.run_faults(40, seed=2000)
    assert sum(ends.values()) == 40
    assert sum(count for end, count in ends.items() if "stopped" in end) >= 10


@pytest.mark.parametrize("source", ["folder", "tar", "table"])
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_what_the_machine_lacks_is_no_rows_fault(
    sources, model, tmp_path, monkeypatch, source, code
):
    embed(sources[source], model, tmp_path / "undisturbed", **OPTIONS)
    open_, os_open, calls = builtins.open, os.open, []

    def check(path, flags=os.O_RDONLY):
        is_input = str(path).endswith((".png", ".tar")) and flags == os.O_RDONLY
        calls.append(path) if is_input else None
        if is_input and len(calls) > 3:
            raise OSError(code, os.strerror(code), str(path))

    def limited(path, *args, **options):
        check(path)
        return open_(path, *args, **options)

    def os_limited(path, flags, *args, **options):
        check(path, flags)
        return os_open(path, flags, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", limited)
        patch.setattr(os, "open", os_limited)
        with pytest.raises(OSError):
            for _ in range(9):  # a shard is opened once
                embed(sources[source], model, tmp_path / "out", **OPTIONS)
                for part in (tmp_path / "out").glob("part-*"):
                    part.unlink()
    assert errors(tmp_path / "out") == {}
    embed(sources[source], model, tmp_path / "out", **OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_pattern_loses_no_file_that_can_not_be_seen_for_a_moment(
    sources, model, tmp_path, monkeypatch
):
    for name in ("stat", "listdir"):
        call = getattr(os, name)

        def fails(path, *args, _call=call, **options):
            if str(path).endswith((".tar", "sources0")):
                raise OSError(errno.EIO, "Input/output error", str(path))
            return _call(path, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fails)
            with pytest.raises(OSError, match="Input/output error"):
                embed(sources["tar"], model, tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_patterns_fit_what_pythons_own_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.tar", "a/.2.tar", "b/1.tar", "b/12.tar", "c/d/1.tar", ".e/1.tar", "[x].tar"):
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        Path(name).touch()
    Path("b/13.tar").mkdir()
    Path("b/14.tar").symlink_to("nowhere")
    patterns = ["*/*.tar", "*/1.tar", "b/1?.tar", "[ab]/[!2].tar", "*/.*.tar", "**/*.tar", "?.tar"]
    for pattern in (*patterns, ".*/*.tar", "[[]x].tar", f"{tmp_path}/*/*", "no/*.tar", "*/d/*"):
        found = Disk().glob(pattern)
        assert sorted(found) == sorted(filter(os.path.isfile, glob.glob(pattern))), pattern


def test_a_file_that_can_not_be_read_for_a_moment_changes_no_columns_type(
    model, tmp_path, monkeypatch
):
    columns, out = Columns(others=("n",)), tmp_path / "out"
    parquet(tmp_path / "in.parquet", {"caption": [*"abcdef"], "n": [1, 2, 3, 4, 5, 6]})

    def run() -> dict[str, bytes]:
        embed(tmp_path / "in.parquet", model, out, columns=columns, **OPTIONS)
        return contents(out)

    schema, seen = ParquetShard.schema, []

    def unreadable(self):
        if seen:
            raise OSError(errno.EIO, "Input/output error")
        seen.append(self)
        return schema(self)

    with monkeypatch.context() as patch:
        # The schema could be read a moment before.
        patch.setattr(ParquetShard, "schema", unreadable)
        with pytest.raises(OSError, match="no file with the column 'n' can be read now: start the"):
            run()
    assert not out.exists()
    undisturbed = run()
    (out / "part-000000-000000.parquet").unlink()
    monkeypatch.setattr(input_files, "column_types", lambda *_: {"n": pa.int8()})
    assert run() == undisturbed
    monkeypatch.undo()
    note = json.loads((out / "job.json").read_text())
    (out / "job.json").write_text(json.dumps(note | {"types": "AAAA"}))
    with pytest.raises(ValueError, match="job.json is damaged"):
        run()


def test_memory_that_runs_out_is_no_pictures_fault(sources, model, tmp_path, monkeypatch):
    pixels, calls = clip_jax.Preprocess.pixels, []

    def starved(self, image):
        calls.append(image)
        if len(calls) > 5:
            raise MemoryError
        return pixels(self, image)

    monkeypatch.setattr(clip_jax.Preprocess, "pixels", starved)
    with pytest.raises((MemoryError, OSError)):
        embed(sources["folder"], model, tmp_path / "out", **OPTIONS)
    assert errors(tmp_path / "out") == {}
    monkeypatch.undo()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM])
def test_parts_that_can_not_be_looked_at_are_not_embedded_again(
    sources, model, tmp_path, monkeypatch, code
):
    embed(sources["folder"], model, tmp_path / "out", **OPTIONS)
    read, before = Disk.read, contents(tmp_path / "out")

    def limited(self, path):
        if "part-" in path:
            raise OSError(code, os.strerror(code), path)
        return read(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "read", limited)
        with pytest.raises(OSError, match=os.strerror(code)):
            embed(sources["folder"], model, tmp_path / "out", **OPTIONS)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "clip-jax: memory has run out: give the process more"),
        (MemoryError("Unable to allocate 9 GiB"), "others (Unable to allocate 9 GiB)"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nMore"),
            "memory has run out: use smaller batches (RESOURCE_EXHAUSTED: Out of memory",
        ),
        (RuntimeError("can't start new thread"), "clip-jax: no further thread can be started"),
    ],
)
def test_what_the_machine_lacks_is_said_in_a_line(monkeypatch, capsys, error, message):
    from clip_jax.cli import models

    def run(arguments):
        raise error

    monkeypatch.setattr(models, "run", run)
    assert main(["models"]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_another_runtime_error_is_a_defect_of_ours(monkeypatch):
    from clip_jax.cli import models

    def run(arguments):
        raise RuntimeError("a defect")

    monkeypatch.setattr(models, "run", run)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["models"])
