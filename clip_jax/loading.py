"""Reads, decodes and crops pictures and captions in threads, ahead of the device and in order.

Training uses Grain for this, embedding doesn't: Grain needs data of known length with random
access, but a tar file's rows are known only once it is open, and a Parquet file is a stream. With
one data set per file, each would start with nothing read ahead. And Grain limits prefetching by
elements, this by bytes. `benchmarks/embed.py` has both.
"""

import concurrent.futures
import contextlib
import dataclasses
import math
import queue
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from clip_jax.channels import SEVERAL, Losses
from clip_jax.image_size import sides_of
from clip_jax.naming import reading
from clip_jax.preprocess import Preprocess, decode_image
from clip_jax.sources import Record
from clip_jax.sources.faults import problem_of
from clip_jax.tokenizer import tokenize

# The most records in flight, however small; more would only take memory.
MOST = 2048
# The most files in flight that stay open until their records are read.
MOST_FILES = 64
# The most records that a thread is given at once. With many threads, handing over single ones costs
# more than decoding: each hand-over waits for Python's lock, for which all threads compete.
GROUP = 8


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A record, ready for the device.

    Attributes:
        chunk: its chunk, as given.
        row: its row number in the shard, as given.
        record: the record, without `read`.
        pixels: (n, m, 3) uint8, if pictures are embedded; of any other size, if it is still to be
            resized.
        tokens: (l,) int32, if texts are embedded.
        problem: why there are neither pixels nor tokens.
        digest: the digest of the picture's file.
    """

    chunk: Any
    row: int
    record: Record
    pixels: np.ndarray | None = None
    tokens: np.ndarray | None = None
    problem: str | None = None
    digest: int | None = None


class CpuGate:
    """Pauses decoding while the device computes, if the device is the CPU that decodes.

    The two would compete for cores, and each matrix product waits for its slowest thread: decoding
    a picture meanwhile costs more than its own time.
    """

    def __init__(self, *, is_shared: bool):
        """Opens the gate.

        Args:
            is_shared: whether device and decoding share the CPU; else the gate stays open.
        """
        self._is_shared = is_shared
        self._is_open = threading.Event()
        self._is_open.set()

    def wait(self) -> None:
        """Waits while the device computes."""
        self._is_open.wait()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Keeps further pictures from being decoded during the block."""
        if self._is_shared:
            self._is_open.clear()
        try:
            yield
        finally:
            self._is_open.set()


Timing = Callable[[str], contextlib.AbstractContextManager[None]]


def _untimed(what: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def picture_digest(data: bytes) -> int:
    """Returns 64 bits that identify a picture's file: its length modulo 2^32, and its CRC-32.

    It takes a hundredth of the time of decoding.
    """
    return (len(data) & 0xFFFFFFFF) << 32 | zlib.crc32(data)


class Loader:
    """Turns records into inputs of the encoder.

    Attributes:
        losses: the pictures that have lost something on the way.
    """

    def __init__(
        self,
        *,
        preprocess: Preprocess | None,
        context_length: int | None,
        exif_transpose: bool,
        timing: Timing = _untimed,
        gate: CpuGate | None = None,
        formats: Sequence[str] | None = None,
        tokens_of: Callable[[str], np.ndarray] | None = None,
        for_device: Callable[[Image.Image], bool] | None = None,
        most_area: int = 0,
    ):
        """Stores the arguments.

        Args:
            preprocess: the preprocessing of pictures; None if none are embedded.
            context_length: the length to which texts are cut; None if none are embedded.
            exif_transpose: whether to rotate pictures by their EXIF data.
            timing: returns contexts that count the time of "reading" and of "decoding".
            gate: the gate that decoding waits for; None for none.
            formats: the accepted formats of pictures, as in `decode_image`.
            tokens_of: turns a text into (1, l) ids; by default CLIP's own tokenizer, cutting.
            for_device: says of a decoded picture whether the device resizes it, so that it is
                loaded as it is; by default none.
            most_area: the pixels of the largest such picture.
        """
        self._preprocess, self._context_length = preprocess, context_length
        self._exif_transpose, self._timing = exif_transpose, timing
        self._gate = gate or CpuGate(is_shared=False)
        self._formats = formats
        self.losses = Losses()
        self._tokens_of = tokens_of
        self._for_device, self._most_area = for_device, most_area

    def size(self, record: Record) -> int:
        """Returns the most bytes that a record takes in flight."""
        area = math.prod(sides_of(self._preprocess.image_size)) if self._preprocess else 0
        pixels = 3 * max(area, self._most_area)
        return record.size + pixels + 4 * (self._context_length or 0) + 1000

    def __call__(self, chunk: Any, row: int, record: Record) -> Loaded:
        """Reads and decodes a record; an error of its data becomes its problem.

        Raises:
            Unreachable: no record can be read any more, perhaps because the machine has run out of
                memory or open files.
        """
        kept = dataclasses.replace(record, read=None)
        pixels = tokens = digest = None
        try:
            if record.problem is not None:
                raise ValueError(record.problem)
            if self._preprocess is not None:
                pixels, digest = self._pixels(record, self._preprocess)
            if self._context_length is not None:
                if record.caption is None:
                    raise ValueError("no caption")
                tokens = self._tokens(record.caption, self._context_length)
                if record.has_more_captions:
                    self.losses.add((SEVERAL,), record.key)
        except Exception as error:  # one bad record, whatever it holds, must not stop the others
            return Loaded(chunk, row, kept, problem=problem_of(error))
        return Loaded(chunk, row, kept, pixels, tokens, digest=digest)

    def _tokens(self, caption: str, context_length: int) -> np.ndarray:
        if self._tokens_of is not None:
            return self._tokens_of(caption)[0]
        return tokenize(caption, context_length, truncate=True)[0]

    def _pixels(self, record: Record, preprocess: Preprocess) -> tuple[np.ndarray, int]:
        if record.read is None:
            raise ValueError("no picture")
        with self._timing("reading"):
            data = record.read()
        self._gate.wait()
        with self._timing("decoding"), reading(record.key):
            image = decode_image(data, self._formats, preprocess=preprocess)
            if self._exif_transpose:
                image = ImageOps.exif_transpose(image)
            self.losses.add(preprocess.losses(image), record.key)
            if self._for_device is not None and self._for_device(image):
                return np.asarray(image), picture_digest(data)
            return preprocess.pixels(image), picture_digest(data)


@contextlib.contextmanager
def loading(
    records: Iterator[tuple[Any, int, Record]],
    loader: Loader,
    *,
    num_threads: int,
    read_ahead: int,
) -> Iterator[Iterator[Loaded]]:
    """Loads records in threads, which stop when the context ends.

    Args:
        records: chunks, row numbers and records; a separate thread iterates over them.
        loader: loads each record.
        num_threads: threads that read and decode.
        read_ahead: the most bytes in flight; one record is always admitted.

    Yields:
        An iterator over the loaded records in order.
    """
    budget = _Budget(read_ahead)
    ready: queue.SimpleQueue = queue.SimpleQueue()
    pool = concurrent.futures.ThreadPoolExecutor(num_threads, "clip-jax-load")
    most_together = max(1, min(GROUP, num_threads // 2))

    def load(group: list[tuple[Any, int, Record]]) -> list[Loaded]:
        return [loader(*each) for each in group]

    def feed() -> None:
        group: list[tuple[Any, int, Record]] = []
        sizes: list[int] = []

        def hand_over() -> None:
            if group:
                ready.put((pool.submit(load, group.copy()), sum(sizes)))
                group.clear()
                sizes.clear()

        end: BaseException | None = None
        try:
            for each in records:
                record = each[-1]
                most = MOST_FILES if record.opens else MOST
                size = max(loader.size(record), read_ahead // most)
                if not budget.take(size, wait=False):
                    hand_over()  # or nobody could give anything back
                    if not budget.take(size):
                        return
                group.append(each)
                sizes.append(size)
                if len(group) == most_together:
                    hand_over()
        except BaseException as error:  # raised again by `results`, after the rows before it
            end = error
        with contextlib.suppress(RuntimeError):  # the pool is shut down, and nobody waits any more
            hand_over()
        ready.put(end)

    def results() -> Iterator[Loaded]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            future, size = item
            yield from future.result()
            budget.give_back(size)

    feeder = threading.Thread(target=feed, name="clip-jax-feed", daemon=True)
    feeder.start()
    try:
        yield results()
    finally:
        budget.close()
        pool.shutdown(wait=False, cancel_futures=True)


class _Budget:
    """A limit on the bytes in flight."""

    def __init__(self, limit: int):
        self._limit, self._taken, self._closed = limit, 0, False
        self._changed = threading.Condition()

    def take(self, size: int, *, wait: bool = True) -> bool:
        """Waits until there is room; returns False once the budget is closed.

        Without `wait`, it returns False and takes nothing if there is no room now.
        """
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._closed or self._has_room(size))
            elif not self._has_room(size):
                return False
            self._taken += size
            return not self._closed

    def _has_room(self, size: int) -> bool:
        return not self._taken or self._taken + size <= self._limit

    def give_back(self, size: int) -> None:
        with self._changed:
            self._taken -= size
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
