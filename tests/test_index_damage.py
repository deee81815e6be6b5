"""Indexes that are cut, damaged, stale or another job's are refused; nothing half-written stays."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import clip_jax
from clip_jax import locks
from clip_jax.embed import embed
from clip_jax.embed.results import finished_job
from clip_jax.search import approximate, build, build_index, open_index, search
from clip_jax.search.index import Index
from clip_jax.search.index_file import NUMBER, read_head
from clip_jax.search.lists import Lists
from tests.archives import parquet
from tests.calls import runner
from tests.embedding_jobs import QUIET, contents
from tests.limits import files_end_at
from tests.models import SMALL_VIT

pytest.importorskip("pyarrow")
faiss = pytest.importorskip("faiss")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]

COUNT, DIM = 300, SMALL_VIT.embed_dim
OPTIONS = {"rows_per_part": 60, **QUIET}


def captions(path: Path, count: int, word: str = "number") -> Path:
    return parquet(path, {"caption": [f"{word} {i}" for i in range(count)]})


@pytest.fixture(scope="module")
def root(compiled_once, model, tmp_path_factory) -> Path:
    """A model, captions, and their embeddings with an index."""
    root = tmp_path_factory.mktemp("index")
    clip_jax.save(model, root / "model")
    captions(root / "in.parquet", COUNT)
    embed(root / "in.parquet", root / "model", root / "out", **OPTIONS)
    built(root / "out", kind="pq")
    return root


@pytest.fixture
def out(root, tmp_path) -> Path:
    return Path(shutil.copytree(root / "out", tmp_path / "out"))


@pytest.fixture
def run(capsys):
    return runner(capsys)


def built(out: Path, **options):
    return build_index(out, progress=False, threads=1, **options)


def refused(run, out: Path, message: str) -> None:
    """The search says that in one line, and finds nothing."""
    status, printed, err = run("search", out, "x", "--approximate")
    assert (status, printed, len(err)) == (1, "", 1), err
    assert message in err[0], err


# --- damage


def test_an_index_that_is_cut_anywhere_never_gets_to_faiss(root, out, monkeypatch):
    monkeypatch.setattr(faiss, "deserialize_index", lambda *_: pytest.fail("was read"))
    data = (out / "index.faiss").read_bytes()
    rng = random.Random(0)
    for size in [0, 1, 8, len(data) - 1, *(rng.randrange(len(data)) for _ in range(30))]:
        (out / "index.faiss").write_bytes(data[:size])
        with pytest.raises(ValueError, match=rf"damaged or cut: run clip-jax index {out}$"):
            open_index(out)
    (out / "index.faiss").write_bytes(data + b"\0")
    with pytest.raises(ValueError, match="damaged or cut"):
        open_index(out)


def test_a_damaged_head_never_gets_to_faiss(root, out, monkeypatch):
    monkeypatch.setattr(faiss, "deserialize_index", lambda *_: pytest.fail("was read"))
    data = bytearray((out / "index.faiss").read_bytes())
    begin = int(read_head(str(out / "index.faiss")).offsets[-1])
    rng = random.Random(0)
    for place in [begin, len(data) - 1, *(rng.randrange(begin, len(data)) for _ in range(60))]:
        hurt = data.copy()
        hurt[place] ^= 1 << rng.randrange(8)
        (out / "index.faiss").write_bytes(hurt)
        with pytest.raises(ValueError, match="damaged or cut"):
            open_index(out)


def test_damaged_lists_are_never_searched(out, run, monkeypatch):
    monkeypatch.setattr(approximate, "PROBES", 1000)
    data = bytearray((out / "index.faiss").read_bytes())
    end = int(read_head(str(out / "index.faiss")).offsets[-1])
    for place in (0, end // 2, end - 1):
        hurt = data.copy()
        hurt[place] ^= 1
        (out / "index.faiss").write_bytes(hurt)
        index = open_index(out)
        with pytest.raises(ValueError, match="damaged or cut"):
            index.search(np.eye(1, DIM, dtype=np.float32), 3)
    refused(run, out, "index.faiss is damaged or cut: run clip-jax index")
    assert built(out, kind="pq").is_new  # as the message says
    assert (out / "index.faiss").read_bytes() == data
    assert run("search", out, "x", "--approximate")[0] == 0


def test_an_index_that_faiss_can_not_read_is_built_again(out, run, monkeypatch):
    def fail(data):
        raise RuntimeError("Error in read_index: \nIndex type 0x41 not recognized")

    monkeypatch.setattr(faiss, "deserialize_index", fail)
    refused(run, out, "which is of faiss ")


# --- another job, other parts


def test_no_index_says_how_to_build_one(out, run):
    (out / "index.faiss").unlink()
    refused(run, out, f"{out} has no index: run clip-jax index {out}")
    with pytest.raises(FileNotFoundError):
        open_index(out)


def test_the_index_of_another_job_is_refused_with_both_fingerprints(
    root, model, out, run, tmp_path
):
    captions(tmp_path / "in.parquet", COUNT, "another")
    embed(tmp_path / "in.parquet", root / "model", tmp_path / "other", **OPTIONS)
    shutil.copy(out / "index.faiss", tmp_path / "other")
    theirs, ours = (finished_job(str(o))["fingerprint"] for o in (out, tmp_path / "other"))
    refused(run, tmp_path / "other", f"is the index of another job, {theirs}; this one is {ours}")
    assert built(tmp_path / "other").is_new


def test_a_job_that_has_grown_needs_its_index_built_again(root, out, run, tmp_path):
    shutil.copy(root / "in.parquet", tmp_path / "a.parquet")
    source = tmp_path / "*.parquet"
    embed(source, root / "model", tmp_path / "job", **OPTIONS)
    built(tmp_path / "job")
    captions(tmp_path / "b.parquet", 70, "more")
    embed(source, root / "model", tmp_path / "job", extend=True, **OPTIONS)
    refused(run, tmp_path / "job", "the job has 2 more parts (70 rows); run clip-jax index")
    done = built(tmp_path / "job")
    assert done.is_new and done.rows == COUNT + 70
    hits = search(tmp_path / "job", None, "more 69", 1, approximate=True)
    assert hits[0]["caption"] == "more 69"


def test_parts_that_have_changed_or_are_gone_are_named(root, model, out, run, tmp_path):
    parts = sorted(out.glob("part-*"))
    parts[1].unlink()
    refused(run, out, "000000-000001 is missing or damaged; run clip-jax index")
    shutil.copy(root / "out" / parts[1].name, out)
    job = finished_job(str(out))
    index = Index(str(out), job)
    rows = index.parts()
    assert rows == [[f"000000-{i:06d}", 60, rows[i][2]] for i in range(5)]
    assert len({mark for _, _, mark in rows}) == 5
    changed = [*rows[:2], [rows[2][0], 60, 0], *rows[3:]]
    assert approximate._differences(changed, rows) == "000000-000002 has changed"


def test_a_part_whose_embeddings_are_damaged_is_named(root, model, out, run):
    part = out / "part-000000-000003.parquet"
    data = bytearray(part.read_bytes())
    rows = open_index(out).embeddings(range(180, 240))
    begin = data.index(rows.tobytes())
    data[begin : begin + rows.nbytes] = np.full(rows.shape, np.nan, np.float32).tobytes()
    part.write_bytes(data)
    refused(run, out, "000000-000003 can't be read: run the same clip-jax embed command again")
    (out / "index.faiss").unlink()
    status, _, err = run("index", out)
    assert status == 1 and "000000-000003 is damaged: run the same clip-jax embed" in err[0]
    assert not (out / "index.faiss").exists()
    assert embed(root / "in.parquet", model, out, **OPTIONS).parts == 1
    assert run("index", out)[0] == 0


# --- what can't be built


@pytest.mark.parametrize("argv", [("index",), ("search", "x", "--approximate")])
def test_without_faiss_the_extra_is_named(out, run, argv, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    status, printed, err = run(argv[0], out, *argv[1:])
    assert (status, printed, len(err)) == (1, "", 1)
    assert err[0].endswith("by faiss: pip install 'clip-jax-flax[index]'")


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (("--kind", "hnsw"), 2, "--kind"),
        (("--memory", "0"), 2, "expected a number above 0"),
        (("--threads", "0"), 2, "from 1 on"),
        (("--memory", "0.001"), 1, "300 rows takes 0.0044 GB of memory at least. Got 0.001"),
    ],
)
def test_mistakes_are_said_in_a_line(out, run, argv, status, message):
    (out / "index.faiss").unlink()
    code, printed, err = run("index", out, *argv)
    assert (code, printed, len(err)) == (status, "", 1)
    assert message in err[0]
    assert not list(out.glob("*index*"))


def test_what_is_no_job_or_has_few_rows_is_said(model, run, tmp_path):
    status, _, err = run("index", tmp_path)
    assert status == 1 and "is no output of clip-jax embed" in err[0]
    captions(tmp_path / "in.parquet", 3)
    embed(tmp_path / "in.parquet", model, tmp_path / "out", **OPTIONS)
    status, _, err = run("index", tmp_path / "out", "--kind", "pq")
    assert status == 1 and "of kind pq needs at least 256 rows. Got 3" in err[0]
    for kind in ("flat", "ivf", "sq8"):
        assert built(tmp_path / "out", kind=kind).rows == 3
    with pytest.raises(ValueError, match="one of flat, ivf, sq8, pq. Got 'hnsw'"):
        built(tmp_path / "out", kind="hnsw")


@pytest.mark.parametrize("size", [4096, 22_000])  # of the codes, of the index
def test_a_full_disk_leaves_the_index_before(out, run, size):
    before = contents(out)
    with files_end_at(size):
        status, printed, err = run("index", out, "--kind", "flat")
    place = out if size == 4096 else out / "index.faiss"
    assert (status, printed) == (1, "")
    assert err == [f"clip-jax: {place}: {os.strerror(errno.EFBIG)}"]
    assert contents(out) == before


def test_a_twin_is_refused_and_what_a_killed_one_left_is_removed(out, run, monkeypatch):
    monkeypatch.setattr(locks, "DYING", 0.2)
    with locks.locked(out / build.LOCK, "it"):
        status, _, err = run("index", out, "--kind", "flat")
        assert status == 1 and f"is at work in the index of {out}" in err[0]
    before = contents(out).keys()
    left = out / f".index.faiss.{'0' * 12}-1-00000000-0.aside"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))  # of another machine, long ago
    assert run("index", out, "--kind", "flat")[0] == 0
    assert contents(out).keys() == before


def test_ctrl_c_leaves_nothing(out):
    (out / "index.faiss").unlink()
    before, rng = contents(out), random.Random(0)
    argv = [sys.executable, "-m", "clip_jax", "index", str(out), "--kind", "pq"]
    slow = "import faiss, sys, time; train = faiss.IndexIVFPQ.train\n"
    slow += "faiss.IndexIVFPQ.train = lambda *a: (time.sleep(60), train(*a))\n"
    slow += "from clip_jax.cli import program; sys.argv = sys.argv[1:]; program()"
    for program in (argv, [sys.executable, "-c", slow, *argv[2:]]):
        process = subprocess.Popen(program, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not (out / build.LOCK).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        if process.returncode == 0:  # it was done
            (out / "index.faiss").unlink()
        else:
            assert process.returncode == 130 and said.count(b"\n") == 1, said
            assert b"nothing is left half-written" in said
        assert contents(out) == before


# --- lists


@pytest.mark.parametrize("memory", [1, 1000, 10**6])
def test_lists_are_written_in_order_however_little_memory_there_is(tmp_path, memory):
    rng = np.random.default_rng(0)
    places, codes = rng.integers(0, 7, 500), rng.integers(0, 256, (500, 5), np.uint8)
    places[places == 3] = 4  # one is empty
    lists = Lists(str(tmp_path), 7, 500, 5)
    for begin in range(0, 500, 90):
        lists.add(places[begin : begin + 90], codes[begin : begin + 90])
    with open(tmp_path / "x", "wb") as file:
        sizes, _ = lists.write(file, memory)
    lists.close()
    assert sizes.tolist() == np.bincount(places, minlength=7).tolist()
    data = (tmp_path / "x").read_bytes()
    for place in range(7):
        numbers = np.flatnonzero(places == place)
        expected = codes[numbers].tobytes() + numbers.astype("<i8").tobytes()
        assert data[: len(expected)] == expected
        data = data[len(numbers) * (5 + NUMBER) :]
    assert not data and os.listdir(tmp_path) == ["x"]
