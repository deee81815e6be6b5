"""What is around every command: its arguments, its signals, its errors and its exit status.

Commands import what they need when they run: help, and a mistake in the arguments, are answered
without jax. They raise what they can't do, and `main` says it.
"""

import argparse
import collections
import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from clip_jax.cli import (
    classify,
    convert,
    embed,
    evaluate,
    export,
    index,
    models,
    parity,
    search,
    serve,
    train,
)
from clip_jax.cli.advice import in_options
from clip_jax.cli.output import complain, printable
from clip_jax.errors import CheckpointError, DownloadError
from clip_jax.naming import current
from clip_jax.signals import also, exit_status, handled, keeps, limit, word_for

COMMANDS = (models, classify, embed, index, search, serve, evaluate, convert, export, parity, train)

FAILURE, BAD_ARGUMENTS, BROKEN_PIPE = 1, 2, 141
# How many pictures are named that bring about the same warning.
NAMED = 5
STOPPED = (130, 143)  # by Ctrl-C, by SIGTERM

# What a user can bring about and mend; anything else is a defect of ours and shows its traceback.
EXPECTED = (CheckpointError, DownloadError, ValueError, OSError, ModuleNotFoundError)


def main(argv: Sequence[str] | None = None) -> int:
    """Does what `clip_jax.cli.main` says."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; whatever is opened next would be in its place
            setattr(sys, name, open(os.devnull, "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold what can't be encoded
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = _Warnings()
        # Else only the first picture of which Pillow warns would be named.
        warnings.filterwarnings("always", module=r"PIL\.", append=True)
        try:
            with handled(_complain):
                return _run(argv)
        except argparse.ArgumentError as error:
            _complain(f"{_in_options(str(error))}; see {_Parser.active.prog} --help")
            return BAD_ARGUMENTS
        except KeyboardInterrupt as stop:
            # What a command adds, such as how much it has kept, stands in the same line.
            _complain("; ".join([word_for(stop), *getattr(stop, "__notes__", [])]))
            if _is_program:
                _held.append(stop)
            return exit_status(stop)
        except BrokenPipeError:  # whoever read our output has seen enough
            return BROKEN_PIPE
        except EXPECTED as error:
            _complain(_in_options(_message(error)))
            return FAILURE
        except (MemoryError, RuntimeError) as error:
            if not (message := _shortage(error)):
                raise
            _complain(message)
            return FAILURE


# Of a process that a signal ends: its exception, whose frames hold arrays and programs that threads
# may still be computing with. Freed before the process is gone, they crash it.
_held: list[BaseException] = []
_is_program = False


def program() -> NoReturn:
    """Does what `clip_jax.cli.program` says."""
    global _is_program
    _is_program = True
    status = main()
    if status in STOPPED:
        # Threads may be computing, and would crash as Python takes their world apart. What is to
        # be left in order has been; but processes that compute together leave each other's.
        with contextlib.suppress(Exception):
            _leave()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def _leave() -> None:
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        jax.distributed.shutdown()


def _run(argv: Sequence[str] | None) -> int:
    kept = None
    try:
        arguments = _parser().parse_args(argv)
        kept = getattr(arguments, "kept", None)
        if kept:
            keeps(kept)
        if grace := getattr(arguments, "grace", None):
            limit(grace)
        if name := getattr(arguments, "signal", None):
            also(signal.Signals[f"SIG{name}"])
        from clip_jax.progress import announcing

        with announcing():
            return arguments.run(arguments)
    except KeyboardInterrupt as stop:
        if kept and not hasattr(stop, "__notes__"):
            stop.add_note(kept)
        raise
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            _drop(sys.stdout)
            raise


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line.

    Attributes:
        active: the parser of the command that was given, once it is known.
    """

    active: argparse.ArgumentParser

    def parse_known_args(self, *arguments: Any, **options: Any) -> Any:
        """As argparse's own, which a command's parser is called by."""
        _Parser.active = self
        return super().parse_known_args(*arguments, **options)

    def error(self, message: str) -> NoReturn:
        _complain(f"{message}; see {getattr(_Parser, 'active', self).prog} --help")
        sys.exit(BAD_ARGUMENTS)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Unlike argparse's own, raises OSError where the help can't be written."""
        (file or sys.stderr).write(message)


class _Version(argparse.Action):
    """Prints the version, which takes some time to find."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from clip_jax.version import __version__

        print(f"{parser.prog} {__version__}")
        sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="clip-jax",
        description="CLIP in JAX: classify, embed and search pictures, evaluate, convert, train.",
        epilog="example: clip-jax classify photo.jpg --labels 'a dog' 'a cat'",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version, and end")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def _complain(message: str) -> None:
    """Says it where there is room; the exit status says it, too."""
    try:
        complain(message)
    except OSError:
        _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Lets go what can't be written: Python flushes once more as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        if error.filename is None:
            return error.strerror
        return f"{printable(os.fsdecode(error.filename)) or repr('')}: {error.strerror}"
    return str(error) or type(error).__name__


def _in_options(message: str) -> str:
    return in_options(message, getattr(_Parser, "active", None) or _parser())


def _shortage(error: Exception) -> str | None:
    """What the machine has too little of; None for any other error."""
    if isinstance(error, MemoryError):
        return "memory has run out: give the process more, or close others" + _detail(error)
    if "RESOURCE_EXHAUSTED" in str(error):  # jax's own kind of error
        return "the device's memory has run out: use smaller batches" + _detail(error)
    if "can't start new thread" in str(error):
        return "no further thread can be started: raise the limit of processes (ulimit -u)"
    return None


def _detail(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return f" ({text})" if text else ""


class _Warnings:
    """Says warnings in one line, with the picture that is being read when Pillow warns of one."""

    def __init__(self):
        self._counts: collections.Counter[str] = collections.Counter()

    def __call__(self, message: Warning | str, *_: Any) -> None:
        picture = current()
        if picture is None:
            _complain(f"warning: {message}")
            return
        self._counts[str(message)] += 1
        if self._counts[str(message)] <= NAMED:
            _complain(f"warning: {printable(picture)}: {message}")
        elif self._counts[str(message)] == NAMED + 1:
            _complain(f"warning: {message}; further pictures with this warning aren't named")
