"""SIGTERM and Ctrl-C: a command stops soon, and leaves nothing half-written.

A signal raises an exception in the main thread, wherever that is; a block that must not be
interrupted defers it. Two cases need care. During an import, an exception would leave half a
module or be caught by the importing code: it is raised after the import, which has half a second.
In a finalizer, Python drops an exception: it is raised again.

A block may defer a signal to finish what it has begun, as long as that is likely to be within the
grace period; if it takes longer after all, the exception is raised in time to clean up.

A watchdog thread ends the process if it doesn't stop by itself: the main thread may be waiting for
a device, or Python at its exit for a thread that waits for a store.
"""

import _thread
import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any

# Seconds that a command has to stop by itself. Schedulers kill after 10 to 30.
GRACE = 8.0
# A second signal ends the process at once. Within these seconds it counts as the first one, as a
# parent process may pass on the same one.
TWICE = 1.0
# Shares of a grace period: the process is gone before whoever sent the signal kills it, and what
# takes longer than it was likely to is dropped while there is time to clean up.
WHOLE, LIKELY = 0.95, 0.75
# Seconds that an import may still take. Only imports at a program's start take longer, when there
# is nothing to clean up.
IMPORTING = 0.5
# Seconds in which a signal is answered. A main thread that is outside of Python for all this time,
# as while a program is compiled or a device computes, is not waited for: whatever is written gets
# its name once it is complete. Otherwise the user is told that the command is about to end.
ANSWER = 0.9
# Seconds between two checks whether the import is over.
_EVERY = 0.02
# Seconds after which a signal is sent again, if Python's handler hasn't run by then.
_AGAIN = 0.5


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


def word_for(stop: Stop) -> str:
    """Returns "terminated" for SIGTERM and "interrupted" for Ctrl-C."""
    return "terminated" if isinstance(stop, Terminated) else "interrupted"


class _State:
    """State shared by the signal handlers and the watchdog."""

    def __init__(self) -> None:
        self.first: int | None = None  # the first signal
        self.kept: str | None = None  # what a process that is ended at once leaves
        self.came = 0.0  # when it came, by the watchdog
        self.limit = self.grace = GRACE  # seconds after that in which the process must end
        self.deferred: Collection[int] = ()  # the signals that are deferred now
        self.granted: Collection[int] = ()  # those that `grace` is for, and not `limit`
        self.within = math.inf  # seconds in which what defers them must end by itself
        self.may_go_on: Callable[[], bool] | None = None  # whether that is likely
        self.is_told = self.is_over = False
        self.also: dict[int, Any] = {}  # further signals that mean SIGTERM, with their handlers
        self.is_lost = False  # whether the exception couldn't be raised, or was dropped
        self.is_resent = False  # whether the watchdog has sent the signal again
        # Python's handlers run only once the main thread is back in Python; this wakes at once.
        self.reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)

    @property
    def stop(self) -> Stop | None:
        """The exception for the first signal; None without a signal."""
        return None if self.first is None else _STOPS[self.first]()


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
        with _dropped_ones_noticed(state):
            yield
    except BaseException as error:
        # Interrupted code may turn the exception into another error, as C extensions do.
        stop = state.stop
        if stop is None or type(error) is type(stop):
            raise
        notes = getattr(error, "__notes__", ()) if isinstance(error, Stop) else ()
        for note in notes or filter(None, (state.kept,)):
            stop.add_note(note)
        raise stop from error
    finally:
        state.is_over = True  # signals are ignored from here on
        if state.first is None:
            _state = None
            for number, handler in {**handlers, **state.also}.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            state.writer.close()  # which ends the thread
            watchdog.join()
        # Else the process is about to exit, and is watched until then.
        state.is_told = True
    if stop := state.stop:  # the exception was caught somewhere
        raise stop


def keeps(what: str) -> None:
    """Has a process that is ended at once by a signal say what it leaves."""
    if _state is not None:
        _state.kept = what


def also(number: int) -> None:
    """Has a further signal mean SIGTERM, such as SIGUSR1, which Slurm may send before it."""
    if _state is not None and threading.current_thread() is threading.main_thread():
        # The watchdog sends SIGTERM in its place, which others may be waiting for, too.
        _state.also.setdefault(number, signal.signal(number, lambda *_: None))


def limit(grace: float) -> None:
    """Has a process that is to stop be gone within the grace period, if that is shorter."""
    if _state is not None:
        _state.limit = _state.grace = min(GRACE, WHOLE * grace)


@contextlib.contextmanager
def deferred(
    grace: float | None = GRACE,
    *,
    numbers: Collection[int] = tuple(_STOPS),
    may_go_on: Callable[[], bool] | None = None,
) -> Iterator[Callable[[], Stop | None]]:
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
        grace: seconds after the signal in which the process must end; None for those of `limit`.
        numbers: the signals to defer; others are raised at once.
        may_go_on: called when the signal comes, anywhere in the block; whether to defer it, as what
            is under way is likely to end in time (`LIKELY`). It is raised then if it hasn't. By
            default it is always deferred, for all of the grace period.

    Yields:
        A function that returns the exception to raise, or None if there was no signal.
    """
    state = _state
    if state is None:
        yield lambda: None
        return
    grace = state.limit / WHOLE if grace is None else grace
    state.deferred, state.granted, state.may_go_on = numbers, numbers, may_go_on
    state.within = math.inf if may_go_on is None else LIKELY * grace
    state.grace = WHOLE * grace
    try:
        yield lambda: state.stop
    finally:
        state.deferred = ()
        if state.came:
            state.grace = min(WHOLE * grace, time.monotonic() - state.came + state.limit)
        else:
            state.granted = ()
    if stop := state.stop:
        raise stop


def _handle(number: int, frame: FrameType | None) -> None:
    state = _state
    if state is None or state.is_over:
        return
    if state.first is None:
        state.first = number
    elif not state.is_resent:
        return  # the exception was raised already
    state.is_resent = False
    if state.first in state.deferred and (state.may_go_on is None or state.may_go_on()):
        return
    state.deferred = ()
    if _is_importing(frame):
        state.is_lost = True
        return
    raise _STOPS[state.first]


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def _dropped_ones_noticed(state: _State) -> Iterator[None]:
    """Notices an exception that Python drops, as in a finalizer, so that it is raised again."""
    before = sys.unraisablehook

    def show(unraisable: Any) -> None:
        if state.first is not None and isinstance(unraisable.exc_value, Stop):
            state.is_lost = True
        else:
            before(unraisable)

    sys.unraisablehook = show
    try:
        yield
    finally:
        if sys.unraisablehook is show:
            sys.unraisablehook = before


def _watch(state: _State, say: Callable[[str], None]) -> None:
    """Ends the process some seconds after its first signal, or at its second one."""
    first: int | None = None
    came, place, is_answered = 0.0, (0, 0), False
    own, sent = False, 0.0  # whether this thread awaits a signal of its own, and when it sent it
    with state.reader as reader:
        while True:
            if first is not None:
                reader.settimeout(_EVERY)
            try:
                numbers = reader.recv(1)
            except TimeoutError:
                numbers = b"\0"
            if not numbers:
                return
            number, now = numbers[0], time.monotonic()
            if number in state.also:
                os.kill(os.getpid(), signal.SIGTERM)
            if number in _STOPS and first is None:
                first, came, place = number, now, _place()
                state.came = now
            elif number in _STOPS and own:
                own = False
            elif number in _STOPS and now - came > TWICE:
                _end(first or number, state, say, f"ended at once; {state.kept or _KEPT}")
            if first is None:
                continue
            if state.is_lost and now - came > IMPORTING:
                how = word_for(_STOPS[first]())
                _end(first, state, say, f"{how}; {state.kept}" if state.kept else how)
            if not is_answered and now - came > ANSWER:
                is_answered = True
                is_deferred = first in state.deferred
                is_outside = state.first is None and not is_deferred and place == _place()
                if is_outside and not state.is_over:
                    _end(first, state, say, f"{word_for(_STOPS[first]())}; {state.kept or _KEPT}")
                if first == signal.SIGINT and not state.is_told and sys.stderr.isatty():
                    how = "finishing what has begun" if is_deferred else "stopping"
                    say(f"{how} ... (Ctrl-C again ends at once)")
            if first in state.deferred and now - came > state.within:
                state.deferred, state.is_resent = (), True
                own, sent = True, now
                _send(first)
            grace = state.grace if first in state.granted else state.limit
            if now - came > grace:
                how = f"ended, as it did not stop within {grace:.0f} s; {state.kept or _KEPT}"
                _end(first, state, say, how)
            # A signal that comes just before a system call doesn't interrupt it, and Python's
            # handler would run only after that; another one does.
            is_awaited = not state.is_over and (state.first is None or state.is_resent)
            if state.is_lost or (is_awaited and now - max(came, sent) > _AGAIN):
                state.is_lost, state.is_resent = False, state.is_lost or state.is_resent
                own, sent = True, now
                _send(first)


_KEPT = "what was finished is kept, and the same command goes on"


def _place() -> tuple[int, int]:
    """Identifies the place where the main thread is in its program."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return (0, 0) if frame is None else (id(frame), frame.f_lasti)


def _send(number: int) -> None:
    """Sends the main thread a signal, which also interrupts a wait where the system can."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


def _end(number: int, state: _State, say: Callable[[str], None], how: str) -> None:
    with contextlib.suppress(Exception):
        if not state.is_told:
            say(how)
    os._exit(128 + number)
