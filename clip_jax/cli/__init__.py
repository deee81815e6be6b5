"""The command line: parses, calls, prints.

Commands import what they need when they run. They raise what they can't do, and `main` says it.
"""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import clip_jax
from clip_jax.cli import classify, convert, embed, evaluate, models, parity, search, train
from clip_jax.cli.output import complain, printable
from clip_jax.errors import CheckpointError, DownloadError

COMMANDS = (models, classify, embed, search, evaluate, convert, parity, train)

FAILURE, BAD_ARGUMENTS = 1, 2
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 and the signal's number, as shells count

# What a user can bring about and mend; anything else is a defect of ours and shows its traceback.
EXPECTED = (CheckpointError, DownloadError, ValueError, OSError, ModuleNotFoundError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the arguments after the program's name; those of the process where none are given.

    Returns:
        The exit status: 0, 1 on failure, 2 on bad arguments.

    Raises:
        SystemExit: from argparse, after `--help` (0) and on bad arguments (2).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold what can't be encoded
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            try:
                arguments = _parser().parse_args(argv)
                return arguments.run(arguments)
            finally:
                sys.stdout.flush()
        except argparse.ArgumentError as error:
            complain(f"{error}; see clip-jax --help")
            return BAD_ARGUMENTS
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            # Whoever read our output has seen enough. Python flushes once more as it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except EXPECTED as error:
            complain(_message(error))
            return FAILURE


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message}; see {self.prog} --help")
        sys.exit(BAD_ARGUMENTS)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="clip-jax",
        description="CLIP in JAX: classify, embed and search pictures, evaluate, convert, train.",
        epilog="example: clip-jax classify photo.jpg --labels 'a dog' 'a cat'",
    )
    parser.add_argument("--version", action="version", version=f"clip-jax {clip_jax.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{printable(os.fsdecode(error.filename))}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return str(error) or type(error).__name__


def _show_warning(message: Warning | str, *_: Any) -> None:
    complain(f"warning: {message}")
