"""Whether the chunk under way is finished when SIGTERM asks a job to stop, or dropped."""

import contextlib
import signal
import time
from collections.abc import Callable
from typing import Self

from clip_jax.embed.counts import Counts
from clip_jax.signals import LIKELY, Stop, deferred


class Stopping(contextlib.ExitStack):
    """Defers SIGTERM to the end of a chunk that is likely to be finished in time.

    Before the first rows are embedded nothing is deferred: there is nothing to finish, and
    compiling takes long. Nor is Ctrl-C: whoever presses it doesn't want to wait.
    """

    def __init__(self, grace: float, counts: Counts, *, has_texts: bool):
        """Defers nothing yet.

        Args:
            grace: the seconds from the signal in which the process must end.
            counts: of the job.
            has_texts: whether texts are embedded, which are at the end of a chunk, all at once.
        """
        super().__init__()
        self._grace, self._counts, self._has_texts = grace, counts, has_texts
        self._asked: Callable[[], Stop | None] | None = None
        self._added = self._left = 0  # rows of this run, and rows that the chunk still lacks
        self._begun = self._chunk_begun = 0.0
        self._begun_with = 0  # rows embedded by then
        self._seconds_a_row: float | None = None  # of the last chunk, from its first row on

    def __enter__(self) -> Self:
        return self

    def added(self, left: int, total: int) -> None:
        """Notes that a row was added to the chunk under way.

        Args:
            left: how many rows it still lacks.
            total: how many it is to have.
        """
        self._added, self._left = self._added + 1, left
        now = time.monotonic()
        if self._asked is None and self._grace and self._embedded:
            numbers = (signal.SIGTERM,)
            block = deferred(self._grace, numbers=numbers, may_go_on=self.may_finish)
            self._asked = self.enter_context(block)
            self._begun, self._begun_with = now, self._embedded
        if left == total - 1:
            self._chunk_begun = now

    def handed_over(self, total: int) -> None:
        """Notes that the chunk is complete and will be written.

        Raises:
            KeyboardInterrupt: the job was asked to stop.
        """
        self._left = 0
        if self._begun and self._chunk_begun > self._begun:
            self._seconds_a_row = (time.monotonic() - self._chunk_begun) / total
        if self._asked is not None and (stop := self._asked()):
            raise stop

    def may_finish(self) -> bool:
        """Whether the chunk under way is likely to be written in time, at the pace so far."""
        seconds = self._seconds_a_row
        embedded, now = self._embedded - self._begun_with, time.monotonic()
        if seconds is None and embedded and not self._has_texts:
            seconds = (now - self._begun) / embedded
        if not self._left or seconds is None:
            return False
        rows = self._left + max(self._added - self._embedded, 0)
        return rows * seconds + self._counts.seconds_to_write <= LIKELY * self._grace

    @property
    def _embedded(self) -> int:
        return self._counts.rows + self._counts.errors
