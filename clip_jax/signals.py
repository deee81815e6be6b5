"""What SIGTERM and Ctrl-C do to a command: it stops soon, and leaves nothing half-written.

A signal raises an exception in the main thread, wherever that is; a block that must not be left in
the middle defers it. A thread ends the process where it doesn't stop by itself: the main thread may
be waiting for a device, and Python, as it exits, for a thread that waits for a store.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

# Seconds in which a command stops by itself. Schedulers kill after 10 to 30.
GRACE = 8.0
# A second Ctrl-C ends the process at once; but what starts us may pass on the same one twice.
TWICE = 1.0


class Terminated(KeyboardInterrupt):
    """SIGTERM: somebody wants the machine back. Does what Ctrl-C does."""


Stop = KeyboardInterrupt  # or Terminated

_STOPS: dict[int, type[Stop]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
}


def exit_status(stop: Stop) -> int:
    """128 and the signal's number, as shells count: 143 after SIGTERM, 130 after Ctrl-C."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


class _State:
    """What the handlers know of each other."""

    def __init__(self) -> None:
        self.first: int | None = None  # the first signal
        self.since = 0.0  # when the seconds of grace begin
        self.grace = GRACE
        self.is_deferred = self.is_told = False
        # Python's handlers wait until the main thread is back in Python; this wakes at once.
        self.reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)


_state: _State | None = None  # of the command that is running


@contextlib.contextmanager
def handled(say: Callable[[str], None]) -> Iterator[None]:
    """Has SIGTERM raise `Terminated`, and Ctrl-C `KeyboardInterrupt`, in the main thread.

    A process that has not ended some seconds later, or that gets a second Ctrl-C, is ended with
    the same exit status. Signals that the process was started to ignore stay ignored.

    Args:
        say: prints a line before the process is ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    global _state
    _state = state = _State()
    before = signal.set_wakeup_fd(state.writer.fileno(), warn_on_full_buffer=False)
    handlers = {
        number: signal.signal(number, _handle)
        for number in _STOPS
        if signal.getsignal(number) not in (signal.SIG_IGN, None)
    }
    watchdog = threading.Thread(
        target=_watch, args=(state, say), name="clip-jax-signals", daemon=True
    )
    watchdog.start()
    try:
        yield
    finally:
        if state.first is None:
            _state = None
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            state.writer.close()  # which ends the thread
            watchdog.join()
        # Otherwise the process is about to exit, and is watched until it has.
        state.is_told = True
    # Raised while Python was in a callback of its garbage collector, it was dropped there.
    if state.first is not None:
        raise _STOPS[state.first]


@contextlib.contextmanager
def deferred(grace: float = GRACE) -> Iterator[Callable[[], Stop | None]]:
    """While this lasts, signals are noted; the block looks whether there was one, and ends.

    Where the block hasn't raised the exception itself, it is raised as the block ends. Under a
    program of somebody else, whose signals are its own, there never is one.

    Example:
        with deferred(grace=60) as stop_asked:
            for step in steps:
                ...
                if stop := stop_asked():
                    save()
                    stop.add_note("a checkpoint is written")  # the command line says it
                    raise stop

    Args:
        grace: seconds from the signal in which the block must have ended.

    Yields:
        What returns the exception to raise; None where no signal has come.
    """
    state = _state
    if state is None:
        yield lambda: None
        return
    state.is_deferred, state.grace = True, grace

    def asked() -> Stop | None:
        return None if state.first is None else _STOPS[state.first]()

    try:
        yield asked
    finally:
        state.is_deferred, state.grace, state.since = False, GRACE, time.monotonic()
    if stop := asked():
        raise stop


def _handle(number: int, frame: FrameType | None) -> None:
    state = _state
    if state is not None and state.first is None:
        state.first, state.since = number, time.monotonic()
        if not state.is_deferred:
            raise _STOPS[number]


def _watch(state: _State, say: Callable[[str], None]) -> None:
    """Ends the process some seconds after its first signal, or with its second Ctrl-C."""
    first: int | None = None
    came = 0.0
    with state.reader as reader:
        while True:
            if first is not None:
                reader.settimeout(0.1)
            try:
                numbers = reader.recv(1)
            except TimeoutError:
                numbers = b"\0"
            if not numbers:
                return
            number, now = numbers[0], time.monotonic()
            if number in _STOPS and first is None:
                first, came = number, now
            elif number == signal.SIGINT and now - came > TWICE:
                _end(first or number, state, say, "ended at once")
            begin = max(came, state.since)
            if first is not None and now - begin > state.grace:
                _end(first, state, say, f"ended, as it did not stop within {state.grace:.0f} s")


def _end(number: int, state: _State, say: Callable[[str], None], how: str) -> None:
    with contextlib.suppress(Exception):
        if not state.is_told:
            say(f"{how}; what was finished is kept, and the same command goes on")
    os._exit(128 + number)
