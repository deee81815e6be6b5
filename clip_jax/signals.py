"""SIGTERM and Ctrl-C: a command stops soon, and leaves nothing half-written.

A signal raises an exception in the main thread, wherever that is; a block that must not be
interrupted defers it. A watchdog thread ends the process if it doesn't stop by itself: the main
thread may be waiting for a device, or Python at its exit for a thread that waits for a store.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

# Seconds that a command has to stop by itself. Schedulers kill after 10 to 30.
GRACE = 8.0
# A second Ctrl-C ends the process at once. Within these seconds it counts as the first one, as a
# parent process may pass on the same one.
TWICE = 1.0


class Terminated(KeyboardInterrupt):
    """SIGTERM was received; handled as Ctrl-C is."""


Stop = KeyboardInterrupt  # or Terminated

_STOPS: dict[int, type[Stop]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
}


def exit_status(stop: Stop) -> int:
    """Returns the shell's exit status for a signal: 143 for SIGTERM, 130 for Ctrl-C."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


class _State:
    """State shared by the signal handlers and the watchdog."""

    def __init__(self) -> None:
        self.first: int | None = None  # the first signal
        self.since = 0.0  # start of the grace period
        self.grace = GRACE
        self.is_deferred = self.is_told = False
        # Python's handlers run only once the main thread is back in Python; this wakes at once.
        self.reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)


_state: _State | None = None  # of the command that is running


@contextlib.contextmanager
def handled(say: Callable[[str], None]) -> Iterator[None]:
    """Makes SIGTERM raise `Terminated`, and Ctrl-C `KeyboardInterrupt`, in the main thread.

    A process that hasn't stopped some seconds later, or that gets a second Ctrl-C, is ended with
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
        # Else the process is about to exit, and is watched until then.
        state.is_told = True
    # An exception raised in a callback of Python's garbage collector was lost: raise it now.
    if state.first is not None:
        raise _STOPS[state.first]


@contextlib.contextmanager
def deferred(grace: float = GRACE) -> Iterator[Callable[[], Stop | None]]:
    """Defers signals in the block, which must check for one and end.

    If the block doesn't raise the exception itself, it is raised at the end of the block. Outside
    of `handled`, in another program that uses this package, signals are left alone.

    Example:
        with deferred(grace=60) as stop_asked:
            for step in steps:
                ...
                if stop := stop_asked():
                    save()
                    stop.add_note("a checkpoint is written")  # printed by the command line
                    raise stop

    Args:
        grace: seconds after the signal in which the block must end.

    Yields:
        A function that returns the exception to raise, or None if there was no signal.
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
    """Ends the process some seconds after its first signal, or at its second Ctrl-C."""
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
