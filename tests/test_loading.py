"""Rows are loaded ahead of the encoder: bounded in bytes, and not while a CPU computes."""

import threading
import time

import pytest

import clip_jax
from clip_jax.loading import CpuGate, Loader, loading
from clip_jax.sources import Record
from tests.pictures import picture

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.long


def test_what_is_read_ahead_is_bounded_in_bytes():
    lock, alive, most = threading.Lock(), 0, 0

    class Counting(Loader):
        def __call__(self, task, row, record):
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)
            return super().__call__(task, row, record)

    image = picture(size=(40, 40))
    loader = Counting(
        preprocess=clip_jax.Preprocess(32),
        context_length=None,
        exif_transpose=False,
    )
    records = [(None, i, Record(str(i), lambda: image)) for i in range(60)]
    limit = 5 * loader.size(records[0][2])
    with loading(iter(records), loader, num_threads=4, read_ahead=limit) as ready:
        keys = []
        for loaded in ready:
            time.sleep(0.002)
            with lock:
                alive -= 1
            keys.append(loaded.record.key)
    assert keys == [str(i) for i in range(60)]
    assert most <= 6
    # One that is larger than the limit comes all the same.
    with loading(iter(records), loader, num_threads=4, read_ahead=1) as ready:
        assert len(list(ready)) == 60


@pytest.mark.parametrize("is_shared", [True, False])
def test_nothing_is_decoded_while_a_cpu_computes(is_shared):
    image, gate = picture(size=(40, 40)), CpuGate(is_shared=is_shared)
    loader = Loader(
        preprocess=clip_jax.Preprocess(32),
        context_length=None,
        exif_transpose=False,
        gate=gate,
    )
    records = [(None, i, Record(str(i), lambda: image)) for i in range(40)]
    with loading(iter(records), loader, num_threads=4, read_ahead=1 << 20) as ready:
        with gate.computing():
            running = [
                threading.Thread(target=loader, args=(None, i, Record(str(i), lambda: image)))
                for i in range(2)
            ]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join(0.5)
            assert [thread.is_alive() for thread in running] == [is_shared] * 2
        for thread in running:
            thread.join(10)
        assert not any(thread.is_alive() for thread in running)
        assert [loaded.row for loaded in ready] == list(range(40))
    # An error in the encoder, too, ends the turn.
    with pytest.raises(ValueError, match="damaged"), gate.computing():
        raise ValueError("damaged")
    assert loader(None, 0, records[0][2]).problem is None
