"""Calls of the encoder beside the gathering of rows, and rows handed over in groups."""

import concurrent.futures
import threading
from typing import Any

import numpy as np
import pytest

from clip_jax import loading as loading_module
from clip_jax.embed import embed, read_embeddings
from clip_jax.embed.ahead import calling
from clip_jax.embed.counts import Counts
from clip_jax.embed.engines import local
from clip_jax.loading import Loader, loading
from clip_jax.sources import Record
from tests.embedding_jobs import COUNT

SOON = 20.0  # seconds within which a thread that is not stuck has gone on


def loader_of(threads_seen=None):
    class Recording(Loader):
        def __call__(self, chunk, row, record):
            if threads_seen is not None:
                threads_seen.append(threading.current_thread().name)
            return super().__call__(chunk, row, record)

    return Recording(preprocess=None, context_length=77, exif_transpose=False)


def records(count, size=0):
    for row in range(count):
        yield "chunk", row, Record(f"key {row}", caption="a word", size=size)


@pytest.mark.parametrize("num_threads", [1, 2, 5, 16])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
def test_rows_come_in_order_whatever_their_groups(num_threads, count):
    with loading(records(count), loader_of(), num_threads=num_threads, read_ahead=1 << 20) as rows:
        assert [loaded.row for loaded in rows] == list(range(count))


def test_rows_that_fill_the_memory_are_handed_over_one_by_one():
    """A group would wait for room that only its own rows can give back."""
    given = loading(records(30, size=900), loader_of(), num_threads=16, read_ahead=2000)
    with given as rows, concurrent.futures.ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: [loaded.row for loaded in rows]).result(SOON)
    assert found == list(range(30))


def test_rows_before_an_error_of_the_source_are_given():
    def failing():
        yield from records(11)
        raise OSError("the store is gone")

    found = []
    with loading(failing(), loader_of(), num_threads=16, read_ahead=1 << 20) as rows:
        with pytest.raises(OSError, match="the store is gone"):
            for loaded in rows:
                found.append(loaded.row)
    assert found == list(range(11))


def test_few_threads_get_rows_one_by_one(monkeypatch):
    sizes = []
    submit = concurrent.futures.ThreadPoolExecutor.submit

    def recorded(self, call, *args):
        sizes.append(len(args[0]))
        return submit(self, call, *args)

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "submit", recorded)
    for num_threads, largest in ((2, 1), (4, 2), (16, loading_module.GROUP), (64, 8)):
        sizes.clear()
        with loading(records(50), loader_of(), num_threads=num_threads, read_ahead=1 << 20) as rows:
            list(rows)
        assert max(sizes) == largest and sum(sizes) == 50


def test_a_call_runs_beside_its_caller_and_one_at_a_time():
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(SOON)
        return "slow"

    counts = Counts()
    with calling(counts, is_threaded=True) as ahead:
        first = ahead.submit(slow)
        assert begun.wait(SOON) and not first.done()  # while this thread goes on
        threading.Timer(0.2, go_on.set).start()
        second = ahead.submit(lambda: "next")  # which waits for the first
        assert first.done()
        assert (first.result(), second.result(SOON)) == ("slow", "next")
    assert counts.summary().blocked >= 0.1


@pytest.mark.parametrize("is_threaded", [True, False])
def test_the_error_of_a_call_reaches_the_caller(is_threaded):
    def fail():
        raise ValueError("of the encoder")

    with calling(Counts(), is_threaded=is_threaded) as ahead:
        with pytest.raises(ValueError, match="of the encoder"):
            ahead.submit(fail)
            ahead.submit(lambda: None)


def test_without_a_thread_a_call_is_over_when_it_is_submitted():
    with calling(Counts(), is_threaded=False) as ahead:
        done = []
        assert ahead.submit(lambda: done.append(1)).done()
        assert done == [1]


def beside(monkeypatch):
    """As on an accelerator, where the device computes beside the threads that decode."""
    monkeypatch.setattr(
        local, "calling", lambda counts, is_threaded: calling(counts, is_threaded=True)
    )


@pytest.mark.long
@pytest.mark.usefixtures("compiled_once")
def test_a_job_beside_its_device_writes_the_same_bytes(pictures, model, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    embed(pictures, model, tmp_path / "plain", rows_per_part=7, batch_size=2, progress=False)
    beside(monkeypatch)
    embed(
        pictures,
        model,
        tmp_path / "beside",
        rows_per_part=7,
        batch_size=2,
        num_threads=16,
        progress=False,
    )
    names = sorted(
        path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*.parquet")
    )
    assert len(names) > 2
    for name in names:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "beside" / name).read_bytes()


@pytest.mark.long
@pytest.mark.usefixtures("compiled_once")
def test_an_error_of_the_device_ends_a_job_and_the_same_call_goes_on(
    pictures, model, tmp_path, monkeypatch
):
    pytest.importorskip("pyarrow")
    beside(monkeypatch)
    images, calls = local.Encoder.images, []

    def failing(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise RuntimeError("the device is gone")
        return images(self, pixels)

    monkeypatch.setattr(local.Encoder, "images", failing)
    options: Any = {"rows_per_part": 7, "batch_size": 2, "progress": False}
    with pytest.raises(RuntimeError, match="the device is gone"):
        embed(pictures, model, tmp_path, **options)
    monkeypatch.setattr(local.Encoder, "images", images)
    embed(pictures, model, tmp_path, **options)
    found = read_embeddings(tmp_path).to_table()
    assert found.num_rows == COUNT == len(set(found["key"].to_pylist()))
    norms = np.linalg.norm(np.array(found["embedding"].to_pylist()), axis=1)
    np.testing.assert_allclose(norms, 1, atol=2e-3)
