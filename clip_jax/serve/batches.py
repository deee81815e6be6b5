"""Gathers what several clients ask for at once into one call."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from clip_jax.serve.refusals import Refusal

Item = TypeVar("Item")

# Seconds in which further questions join the first one.
WAIT = 0.004


class Batcher(Generic[Item]):
    """A thread that answers questions, several in one call; those that come meanwhile wait."""

    def __init__(
        self, answer: Callable[[Sequence[Item]], Sequence[Any]], *, most: int, waiting: int
    ):
        """Starts the thread.

        Args:
            answer: returns for each item of a batch what to answer, or an exception to raise.
            most: how many items a batch may have.
            waiting: how many may wait; further ones are refused.
        """
        self._answer, self._most = answer, most
        self._queue: queue.Queue[tuple[Item, asyncio.Future, asyncio.AbstractEventLoop]]
        self._queue = queue.Queue(waiting)
        threading.Thread(target=self._run, name="clip-jax-batches", daemon=True).start()

    async def ask(self, item: Item) -> Any:
        """Returns the answer to an item.

        Raises:
            Refusal: too many are waiting; or what `answer` gave for this item.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        try:
            self._queue.put_nowait((item, future, loop))
        except queue.Full:
            raise Refusal(503, "too many searches at once: try again in a second") from None
        return await future

    def _run(self) -> None:
        while True:
            waiting = [self._queue.get()]
            until = time.monotonic() + WAIT
            while len(waiting) < self._most:
                try:
                    waiting.append(self._queue.get(timeout=max(until - time.monotonic(), 0)))
                except queue.Empty:
                    break
            waiting = [each for each in waiting if not each[1].cancelled()]
            if not waiting:
                continue
            try:
                answers = self._answer([item for item, _, _ in waiting])
            except Exception as error:
                answers = [error] * len(waiting)
            for (_, future, loop), answer in zip(waiting, answers, strict=True):
                try:
                    loop.call_soon_threadsafe(_settle, future, answer)
                except RuntimeError:  # the server has ended
                    return


def _settle(future: asyncio.Future, answer: Any) -> None:
    if future.cancelled():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
