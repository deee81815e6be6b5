"""What the driver of a job on Ray knows of chunks and encoders, and the stream of chunks to do."""

import collections
import contextlib
import dataclasses
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.embed.plan import Pending
from clip_jax.sources import Rows, Shard

# How many chunks are planned ahead of those that are given out.
AHEAD = 4
# Seconds between two looks whether nobody takes chunks any more.
EVERY = 0.1

ToDo = tuple[Pending, Rows]


@dataclasses.dataclass(eq=False)
class Group:
    """Rows that are decoded together.

    Attributes:
        numbers: their numbers.
        size: the bytes that are counted for them.
        loaded: a reference to the decoded rows; or the rows.
        is_ready: whether they are decoded.
    """

    numbers: Sequence[int]
    size: int
    loaded: Any = None
    is_ready: bool = False


@dataclasses.dataclass(eq=False)
class GivenChunk:
    """A chunk that an encoder has been given.

    Attributes:
        number: distinguishes this attempt from all others.
        pending: the chunk.
        rows: the rows of its shard.
        shard: the shard, or at least these rows of it.
        name: the shard's name.
        encoder: the encoder.
        waiting: the groups that are still to be decoded.
        decoding: those that are being decoded or ready to be added, in order.
        adding: those that were added without an answer yet.
        rows_done: rows that the job has counted.
        errors_done: errors that the job has counted.
        has_begun: whether the encoder knows of it.
        is_ending: whether its last rows have been added.
        is_dropped: whether it is given up, to be done again.
    """

    number: int
    pending: Pending
    rows: Rows
    shard: Shard
    name: str
    encoder: "EncoderHandle"
    waiting: collections.deque[Sequence[int]]
    decoding: collections.deque[Group] = dataclasses.field(default_factory=collections.deque)
    adding: list[Group] = dataclasses.field(default_factory=list)
    rows_done: int = 0
    errors_done: int = 0
    has_begun: bool = False
    is_ending: bool = False
    is_dropped: bool = False

    @property
    def in_flight(self) -> int:
        """The bytes of its rows that are being decoded or wait for the encoder."""
        return sum(group.size for group in (*self.decoding, *self.adding))


@dataclasses.dataclass(eq=False)
class EncoderHandle:
    """An encoder of the cluster.

    Attributes:
        actor: Ray's handle.
        node: the node that it was meant for, if it has no accelerator.
        is_ready: whether it has loaded the model.
        chunks: what it has been given.
    """

    actor: Any
    node: str | None
    is_ready: bool = False
    chunks: list[GivenChunk] = dataclasses.field(default_factory=list)

    @property
    def in_flight(self) -> int:
        """The bytes of rows that are being decoded for it or wait for it."""
        return sum(chunk.in_flight for chunk in self.chunks)

    @property
    def current(self) -> GivenChunk | None:
        """The chunk whose rows are to be added next."""
        return next((chunk for chunk in self.chunks if not chunk.is_ending), None)


class Feeder:
    """The chunks to do, planned in a thread, since that may open files.

    Chunks that come back are taken first.
    """

    def __init__(self, chunks: Iterator[ToDo]):
        """Starts the thread."""
        self._again: collections.deque[ToDo] = collections.deque()
        self._ready: queue.Queue[ToDo | BaseException | None] = queue.Queue(AHEAD)
        self._next: ToDo | None = None
        self._is_over = self._is_closed = False
        thread = threading.Thread(target=self._feed, args=(chunks,), daemon=True)
        thread.name = "clip-jax-plan"
        thread.start()

    def __bool__(self) -> bool:
        """Whether there is a chunk to take now.

        Raises:
            BaseException: what stopped the planning, once all chunks before are taken.
        """
        if self._again or self._next is not None:
            return True
        with contextlib.suppress(queue.Empty):
            found = None if self._is_over else self._ready.get_nowait()
            if isinstance(found, BaseException):
                raise found
            self._next, self._is_over = found, found is None
        return self._next is not None

    @property
    def is_over(self) -> bool:
        """Whether all chunks have been taken."""
        return not self and self._is_over

    def take(self) -> ToDo:
        """Returns a chunk, of which there must be one."""
        if self._again:
            return self._again.popleft()
        found, self._next = self._next, None
        assert found is not None
        return found

    def give_back(self, chunk: ToDo) -> None:
        """Has a chunk taken again."""
        self._again.append(chunk)

    def close(self) -> None:
        """Ends the thread, once it has planned what it is at."""
        self._is_closed = True

    def _feed(self, chunks: Iterator[ToDo]) -> None:
        end: BaseException | None = None
        try:
            for chunk in chunks:
                if not self._put(chunk):
                    return
        except BaseException as error:
            end = error
        self._put(end)

    def _put(self, item: ToDo | BaseException | None) -> bool:
        while not self._is_closed:
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=EVERY)
                return True
        return False
