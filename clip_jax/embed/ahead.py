"""Calls of the encoder beside the thread that gathers rows, so that neither waits for the other."""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from clip_jax.embed.counts import Counts

Call = Callable[[], Any]


class Ahead:
    """Runs calls in order, each while the rows of the next are gathered.

    At most one call is unfinished, since each holds its batches. On a CPU calls run at once in
    the caller's thread: there gathering and computing would compete for the same cores.
    """

    def __init__(self, pool: concurrent.futures.Executor | None, counts: Counts):
        """Starts with no calls.

        Args:
            pool: an executor of one thread; None to run calls at once.
            counts: receives the time that callers wait.
        """
        self._pool, self._counts = pool, counts
        self._last: concurrent.futures.Future | None = None

    def submit(self, call: Call) -> concurrent.futures.Future:
        """Starts a call as soon as the one before it is finished.

        Raises:
            BaseException: what that one raised, or this one if it runs at once.
        """
        with self._counts.timing("blocked"):
            if self._last is not None:
                self._last.result()
            if self._pool is not None:
                self._last = self._pool.submit(call)
                return self._last
            done: concurrent.futures.Future = concurrent.futures.Future()
            done.set_result(call())
            return done


@contextlib.contextmanager
def calling(counts: Counts, *, is_threaded: bool) -> Iterator[Ahead]:
    """Yields an `Ahead`; the end of the context doesn't wait for a call that still runs."""
    if not is_threaded:
        yield Ahead(None, counts)
        return
    pool = concurrent.futures.ThreadPoolExecutor(1, "clip-jax-encode")
    try:
        yield Ahead(pool, counts)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
