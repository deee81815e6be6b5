"""Pictures and captions by threads: read, decoded and cropped ahead of the device, in order.

Not by Grain, which reads the pairs for training: its threads want data of a known length that is
read at random, where the rows of a tar file are known when it is opened, and those of a Parquet
file come in a stream; a data set for each file would begin each with nothing read ahead. And it
counts what it reads ahead in elements, where this counts bytes. `benchmarks/embed.py` has both.
"""

import concurrent.futures
import contextlib
import dataclasses
import queue
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import ImageOps

from clip_jax.preprocess import Preprocess, decode_image
from clip_jax.sources import Record
from clip_jax.sources.faults import told
from clip_jax.tokenizer import tokenize

# More records on their way than this would take memory and help nobody, however small they are.
MOST = 2048
# Nor more files that stay open until their records are read.
MOST_FILES = 64


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A record, ready for the device.

    Attributes:
        chunk: what it belongs to, as given.
        row: counted from its shard's first, as given.
        record: without what it has read.
        pixels: (n, n, 3) uint8, if pictures are embedded.
        tokens: (l,) int32, if texts are.
        problem: why there are neither.
        digest: of the picture's file.
    """

    chunk: Any
    row: int
    record: Record
    pixels: np.ndarray | None = None
    tokens: np.ndarray | None = None
    problem: str | None = None
    digest: int | None = None


class CpuGate:
    """Has decoding wait while the device computes, where that is the CPU that decodes.

    There the two take each other's cores anyway, and each of the encoder's products waits for its
    slowest thread: a picture that is decoded meanwhile costs more than its own time.
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
        """While this lasts no further picture is decoded."""
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
    """64 bits that tell a picture's file from others: its CRC-32, and its length modulo 2^32.

    It takes a hundredth of the time of decoding.
    """
    return (len(data) & 0xFFFFFFFF) << 32 | zlib.crc32(data)


class Loader:
    """How a record becomes what the encoder takes."""

    def __init__(
        self,
        *,
        preprocess: Preprocess | None,
        context_length: int | None,
        exif_transpose: bool,
        timing: Timing = _untimed,
        gate: CpuGate | None = None,
        formats: Sequence[str] | None = None,
    ):
        """Notes how.

        Args:
            preprocess: of pictures; None where none are embedded.
            context_length: of texts, longer ones are cut; None where none are embedded.
            exif_transpose: whether pictures are turned as their EXIF data say.
            timing: gives contexts that count the time of "reading" and of "decoding".
            gate: when pictures may be decoded; at any time where there is none.
            formats: of pictures, as `decode_image` has it.
        """
        self._preprocess, self._context_length = preprocess, context_length
        self._exif_transpose, self._timing = exif_transpose, timing
        self._gate = gate or CpuGate(is_shared=False)
        self._formats = formats

    def size(self, record: Record) -> int:
        """The bytes that a record takes on its way, at most."""
        pixels = 3 * self._preprocess.image_size**2 if self._preprocess else 0
        return record.size + pixels + 4 * (self._context_length or 0) + 1000

    def __call__(self, chunk: Any, row: int, record: Record) -> Loaded:
        """Reads and decodes; what goes wrong with the record becomes its problem.

        Raises:
            Unreachable: nothing can be read any more, whatever the record; the machine has run out
                of memory or open files, perhaps.
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
                tokens = tokenize(record.caption, self._context_length, truncate=True)[0]
        except Exception as error:  # whatever a record holds, the others can be embedded
            return Loaded(chunk, row, kept, problem=told(error))
        return Loaded(chunk, row, kept, pixels, tokens, digest=digest)

    def _pixels(self, record: Record, preprocess: Preprocess) -> tuple[np.ndarray, int]:
        if record.read is None:
            raise ValueError("no picture")
        with self._timing("reading"):
            data = record.read()
        self._gate.wait()
        with self._timing("decoding"):
            image = decode_image(data, self._formats)
            if self._exif_transpose:
                image = ImageOps.exif_transpose(image)
            return preprocess.pixels(image), picture_digest(data)


@contextlib.contextmanager
def loading(
    records: Iterator[tuple[Any, int, Record]],
    loader: Loader,
    *,
    num_threads: int,
    read_ahead: int,
) -> Iterator[Iterator[Loaded]]:
    """Records as they become ready, in order; a context that stops the threads as it ends.

    Args:
        records: chunks, row numbers and records; run through by a thread of its own.
        loader: what is done with each.
        num_threads: that read and decode.
        read_ahead: how many bytes may be on their way, at most; one record always is.
    """
    budget = _Budget(read_ahead)
    ready: queue.SimpleQueue = queue.SimpleQueue()
    pool = concurrent.futures.ThreadPoolExecutor(num_threads, "clip-jax-load")

    def feed() -> None:
        try:
            for chunk, row, record in records:
                most = MOST_FILES if record.opens else MOST
                size = max(loader.size(record), read_ahead // most)
                if not budget.take(size):
                    return
                ready.put((pool.submit(loader, chunk, row, record), size))
            ready.put(None)
        except BaseException as error:  # shown where the records are awaited
            ready.put(error)

    def results() -> Iterator[Loaded]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            future, size = item
            yield future.result()
            budget.give_back(size)

    feeder = threading.Thread(target=feed, name="clip-jax-feed", daemon=True)
    feeder.start()
    try:
        yield results()
    finally:
        budget.close()
        pool.shutdown(wait=False, cancel_futures=True)


class _Budget:
    """Bytes that may be on their way."""

    def __init__(self, limit: int):
        self._limit, self._taken, self._closed = limit, 0, False
        self._changed = threading.Condition()

    def take(self, size: int) -> bool:
        """Waits until there is room; False once nobody wants more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._taken or self._taken + size <= self._limit
            )
            self._taken += size
            return not self._closed

    def give_back(self, size: int) -> None:
        with self._changed:
            self._taken -= size
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
