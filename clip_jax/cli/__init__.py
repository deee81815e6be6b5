"""The command line: parses, calls, prints.

Nothing is imported here that takes its time: before anything else, the process has to learn what a
signal does to it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys

TYPE_CHECKING = False  # tools take it for true
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import NoReturn

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def program() -> NoReturn:
    """Runs the command of this process, and ends the process."""
    numbers = [n for n in _WORDS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    for number in numbers:
        signal.signal(number, _end)
    # Registered first, it runs last: from there on Python has no handlers, and a signal would kill
    # the process in place of its exit status.
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers])
    from clip_jax.cli import dispatch

    dispatch.program()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the arguments after the program's name; those of the process where none are given.

    Returns:
        The exit status: 0, 1 on failure, 2 on bad arguments, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        SystemExit: from argparse, after `--help` (0) and on bad arguments (2).
    """
    from clip_jax.cli import dispatch

    return dispatch.main(argv)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the process at once, as long as there is nothing to be left in order.

    Nothing is raised: an exception in the middle of a module's import would leave half a module,
    or be lost in a library's.
    """
    if sys.stderr is not None:
        try:
            os.write(2, f"clip-jax: {_WORDS[signal.Signals(number)]}\n".encode())
        except OSError:
            pass
    os._exit(128 + number)
