"""What Ray runs on CPUs: opens shards, and decodes groups of rows."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from clip_jax.embed.counts import Counts
from clip_jax.embed.engines import rows as rows_
from clip_jax.embed.engines.places import check_here
from clip_jax.embed.setup import Job
from clip_jax.loading import CpuGate, Loaded, Loader
from clip_jax.naming import current
from clip_jax.sources import Record, Rows, Shard, faults

# By how much decoders give way on the CPU to encoders that compute there: each of the encoder's
# products waits for its slowest thread, while a decoder that is ahead has time.
NICE = 10


@dataclasses.dataclass(frozen=True)
class Outline:
    """What all processes of a job know.

    Attributes:
        job: the job without weights and files.
        formats: the accepted formats of pictures.
        num_threads: threads of a decoder.
        gives_way: whether decoders share their CPUs with encoders.
        folder: the working folder of whoever started the job.
        paths: local paths that every node must have.
        versions: what every node must have of Python and its packages.
        token: distinguishes this run from others.
    """

    job: Job
    formats: Sequence[str]
    num_threads: int
    gives_way: bool
    folder: str
    paths: Sequence[str]
    versions: dict[str, str]
    token: str


@dataclasses.dataclass(frozen=True)
class Told:
    """What the driver learns of a decoded group.

    Attributes:
        seconds: how long reading and decoding took.
        losses: what pictures have lost, as `Losses.taken` returns it.
        warned: Pillow's warnings, each with the picture's key.
    """

    seconds: dict[str, float]
    losses: dict[str, tuple[int, list[str]]]
    warned: Sequence[tuple[str | None, str]] = ()


def open_shard(outline: list[Any], shard: Shard) -> Rows:
    """Opens a shard and returns its rows, or a part of them that can travel."""
    _session(outline)
    return rows_.opened(shard)


def decode(outline: list[Any], name: str, rows: Rows, numbers: Sequence[int]) -> Any:
    """Reads and decodes some rows of a chunk.

    Args:
        outline: a reference to the `Outline`, in a list so that each process fetches it once.
        name: the name of the shard.
        rows: at least these rows of the shard.
        numbers: their numbers.

    Returns:
        The rows as a list of `Loaded`, and what is `Told` of them.

    Raises:
        OSError: a store can't be reached.
    """
    session = _session(outline)
    wanted = frozenset(numbers)
    begin, end = numbers[0], numbers[-1] + 1
    found = enumerate(faults.all_records(rows, name, begin, end), begin)
    records = [(number, record) for number, record in found if number in wanted]
    with _warned() as warned:
        loaded = session.load(records)
    told = Told(session.counts.taken(), session.loader.losses.taken(), warned)
    return loaded, told


class _Session:
    """What a process needs to decode rows of a job; made once."""

    def __init__(self, outline: Outline):
        check_here(outline.folder, outline.paths, outline.versions)
        self.token, self._threads = outline.token, outline.num_threads
        self._gives_way = outline.gives_way
        self.counts = Counts()
        gate = CpuGate(is_shared=False)
        self.loader: Loader = outline.job.loader(self.counts, gate, outline.formats)

    def load(self, records: Sequence[tuple[int, Record]]) -> list[Loaded]:
        """Loads records in threads of their own, since it is a thread that gives way."""
        start = _give_way if self._gives_way else None
        with concurrent.futures.ThreadPoolExecutor(self._threads, initializer=start) as pool:
            return list(pool.map(lambda each: self.loader(None, *each), records))


def _give_way() -> None:
    if sys.platform == "linux":  # elsewhere it is the process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


@contextlib.contextmanager
def _warned():
    """Yields a list that receives the warnings of the block."""
    found: list[tuple[str | None, str]] = []

    def note(message: Warning | str, *_: Any) -> None:
        found.append((current(), str(message)))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield found


@functools.lru_cache(maxsize=1)
def _session_of(token: str, outline: Any) -> _Session:
    import ray

    return _Session(ray.get(outline))


def _session(outline: list[Any]) -> _Session:
    """Returns this process's session of a job, given the job's token and outline."""
    token, reference = outline
    return _session_of(token, reference)
