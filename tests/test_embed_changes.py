"""Inputs and outputs that change under an embedding job: nothing is lost, and nothing is mixed."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

import clip_jax
from clip_jax.embed import embed, job, read_embeddings
from clip_jax.embed.part_builder import PartBuilder
from clip_jax.search import search
from clip_jax.sources.patterns import expand
from tests.archives import parquet, write_tar
from tests.embedding_jobs import QUIET, TWO_A_PART, contents, some, write_input
from tests.models import SMALL_VIT, small

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("compiled_once")


def keys(out) -> list[str]:
    return read_embeddings(out).to_table(["key"])["key"].to_pylist()


def append(path: Path, key: str, data: bytes) -> None:
    """As `tar rf`: into the zeros at the end, so that the size often stays."""
    (path.parent / f"{key}.bmp").write_bytes(data)
    with tarfile.open(path, "a") as tar:
        tar.add(path.parent / f"{key}.bmp", f"{key}.bmp")


@pytest.fixture
def shard(tmp_path):
    """A tar file with room for one more picture, and what that is."""
    *first, (key, data) = some(4)
    path = tmp_path / "a.tar"
    write_input(path, first)
    return path, key, data


@pytest.mark.parametrize("verify", [False, True])
def test_a_row_appended_within_the_size_of_a_tar_file_is_embedded(model, tmp_path, shard, verify):
    path, key, data = shard
    size, out = path.stat().st_size, tmp_path / "out"
    embed(path, model, out, **TWO_A_PART)
    before = keys(out)
    append(path, key, data)
    assert path.stat().st_size == size
    embed(path, model, out, verify=verify, **TWO_A_PART)
    assert keys(out) == [*before, key]
    assert embed(path, model, out, verify=True, **TWO_A_PART).rows == 0


def test_a_row_taken_out_within_the_size_of_a_tar_file_is_refused(model, tmp_path, shard):
    path, key, data = shard
    out = tmp_path / "out"
    shutil.copy(path, tmp_path / "three.tar")
    append(path, key, data)
    embed(path, model, out, **TWO_A_PART)
    before = contents(out)
    shutil.copy(tmp_path / "three.tar", path)
    with pytest.raises(ValueError, match="the file has 3 rows and had 4"):
        embed(path, model, out, **TWO_A_PART)
    # A part that is found unchanged is noted as such, so that it isn't compared again.
    after = contents(out)
    assert {k: v for k, v in after.items() if not k.startswith("stamps")} == {
        k: v for k, v in before.items() if not k.startswith("stamps")
    }


def test_a_row_appended_during_the_run_is_told(model, tmp_path, shard, monkeypatch):
    path, key, data = shard
    save = PartBuilder.save

    def save_and_append(self, parts):
        save(self, parts)
        if not (path.parent / f"{key}.bmp").exists():
            append(path, key, data)

    monkeypatch.setattr(PartBuilder, "save", save_and_append)
    with pytest.raises(ValueError, match="changed during the run: it has 4 rows and had 3"):
        embed(path, model, tmp_path / "out", **TWO_A_PART)
    embed(path, model, tmp_path / "out", **TWO_A_PART)
    assert len(keys(tmp_path / "out")) == 4


def test_data_after_the_end_of_a_tar_file_are_an_error_row(model, tmp_path):
    for name, members in (("a", some(2)), ("b", some(4)[2:])):
        write_input(tmp_path / f"{name}.tar", members)
    joined = tmp_path / "c.tar"
    joined.write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    summary = embed(joined, model, tmp_path / "out", **TWO_A_PART)
    assert (summary.rows, summary.errors) == (2, 1)


def test_an_output_that_is_another_jobs_by_now_is_left_alone(model, tmp_path, monkeypatch):
    source, out = tmp_path / "in.tar", tmp_path / "out"
    write_input(source, some(6))
    other = small(SMALL_VIT, seed=1)
    save, saved = PartBuilder.save, []

    def save_and_be_replaced(self, parts):
        save(self, parts)
        saved.append(1)
        if len(saved) == 1:
            shutil.rmtree(out)
            with monkeypatch.context() as patch:
                patch.setattr(PartBuilder, "save", save)
                patch.setattr(job, "_alone", lambda *args: _unlocked())
                embed(source, other, out, **TWO_A_PART)

    monkeypatch.setattr(PartBuilder, "save", save_and_be_replaced)
    with pytest.raises(ValueError, match="holds the output of another job"):
        embed(source, model, out, **TWO_A_PART)
    digest = json.loads((out / "job.json").read_text())["identity"]["model"]
    assert digest == clip_jax.nn.model_digest(other)
    assert len(search(out, other, "a", k=10)) == 6


def _unlocked():
    import contextlib

    return contextlib.nullcontext(lambda: None)


def test_an_output_that_is_removed_during_the_run_is_told(model, tmp_path, monkeypatch):
    source, out = tmp_path / "in.tar", tmp_path / "out"
    write_input(source, some(6))
    save, saved = PartBuilder.save, []

    def save_and_remove(self, parts):
        save(self, parts)
        saved.append(1)
        if len(saved) == 1:
            shutil.rmtree(out)

    monkeypatch.setattr(PartBuilder, "save", save_and_remove)
    with pytest.raises(FileNotFoundError, match="was removed during the run; start the same"):
        embed(source, model, out, **TWO_A_PART)
    monkeypatch.setattr(PartBuilder, "save", save)
    embed(source, model, out, **TWO_A_PART)
    assert len(keys(out)) == 6


def test_copies_of_parts_beside_them_are_no_rows(model, tmp_path):
    source, out = tmp_path / "in.tar", tmp_path / "out"
    write_input(source, some(4))
    embed(source, model, out, **TWO_A_PART)
    shutil.copy(out / "part-000000-000000.parquet", out / "part-000000-000000 (1).parquet")
    assert len(keys(out)) == 4
    assert len(search(out, model, "a", k=10)) == 4


def test_a_part_beyond_the_end_of_a_folder_is_refused_by_name(model, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for key, data in some(4):
        (folder / f"{key}.bmp").write_bytes(data)
    embed(folder, model, out, **QUIET, rows_per_part=4)
    shutil.copy(out / "part-000000-000000.parquet", out / "part-000000-000007.parquet")
    with pytest.raises(ValueError, match=r"remove .*part-000000-000007\.parquet"):
        embed(folder, model, out, **QUIET, rows_per_part=4)


def test_braces_that_name_billions_of_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="names 100,000,000,000 files, more than 10,000,000"):
        expand(str(tmp_path / "g{0..99999999999}.txt"))


def test_a_tar_file_of_zeros_after_its_end_is_whole(model, tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a.bmp": some(1)[0][1]})
    with path.open("ab") as file:
        file.write(bytes(3 << 20))
    summary = embed(path, model, tmp_path / "out", **QUIET)
    assert (summary.rows, summary.errors) == (1, 0)


def test_a_pattern_that_matches_the_jobs_own_parts_is_refused(model, tmp_path):
    names, pictures = zip(*some(3), strict=True)
    parquet(tmp_path / "a.parquet", {"key": names, "image": pictures})
    embed(tmp_path / "*.parquet", model, tmp_path, **TWO_A_PART)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"matches a part that this job has written, .*/part-0000"):
        embed(tmp_path / "*.parquet", model, tmp_path, **TWO_A_PART)
    assert contents(tmp_path) == before
    # The parts of another job are an input like any other.
    assert embed(tmp_path / "a.parquet", model, tmp_path / "out", **TWO_A_PART).rows == 3


def test_the_output_stays_where_it_is_if_the_working_folder_changes(model, tmp_path, monkeypatch):
    source, elsewhere = tmp_path / "in.tar", tmp_path / "elsewhere"
    write_input(source, some(6))
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    save = PartBuilder.save

    def save_and_leave(self, parts):
        save(self, parts)
        os.chdir(elsewhere)

    monkeypatch.setattr(PartBuilder, "save", save_and_leave)
    embed(source, model, "out", **TWO_A_PART)
    assert len(keys(tmp_path / "out")) == 6
    assert list(elsewhere.iterdir()) == []
