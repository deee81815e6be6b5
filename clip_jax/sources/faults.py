"""Separates errors of readers caused by bad data from those of the machine or the store."""

import contextlib
from collections.abc import Iterator

from clip_jax.errors import Unreachable, exhausted
from clip_jax.sources.records import Record, Rows, Shard, as_key


def problem_of(error: Exception) -> str:
    """Describes what is wrong with the data, given the error that a reader raised.

    Raises:
        Unreachable: the data isn't at fault: a store can't be reached, or the machine has run out
            of memory or open files.
    """
    if isinstance(error, Unreachable):
        raise error
    if out := exhausted(error):
        raise out from error
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    text = str(error) or type(error).__name__
    # Our readers' messages are complete; Python's (KeyError: 'x') need the error's type.
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def guarded(path: str) -> Iterator[None]:
    """Turns any error of a reader into a ValueError that names the file.

    Raises:
        OSError: the file can't be read, or the machine has run out of something.
        ValueError: the file is damaged.
    """
    try:
        yield
    except OSError as error:
        if out := exhausted(error):
            raise out from error
        if error.errno is None and path not in str(error):  # Arrow's
            raise OSError(f"{path}: {error}") from error
        raise
    except ModuleNotFoundError:
        raise
    except Exception as error:
        reason = problem_of(error)
        raise ValueError(reason if path in reason else f"{path}: {reason}") from error


class Unread:
    """A file that can't be opened. It counts as one row; its records give the reason."""

    def __init__(self, name: str, problem: str):
        self._name, self._problem = name, problem

    def __len__(self) -> int:
        return 1

    def records(self, begin: int, end: int) -> Iterator[Record]:
        for row in range(begin, end):
            name = f"{self._name}:{row}" if row else self._name
            yield Record(as_key(name), problem=self._problem)

    def keys(self, begin: int, end: int) -> list[str | None]:
        return [None] * (end - begin)


def opened(shard: Shard) -> Rows:
    """Opens a shard; returns `Unread` if its file can't be read.

    Raises:
        Unreachable: the file isn't at fault.
    """
    try:
        return shard.open()
    except ModuleNotFoundError:
        raise
    except Exception as error:
        return Unread(shard.name, problem_of(error))


def all_records(rows: Rows, name: str, begin: int, end: int) -> Iterator[Record]:
    """Yields exactly `end` - `begin` records; unreadable ones with the reason as their problem.

    Args:
        rows: the rows of a file.
        name: the name of the file.
        begin: the first row.
        end: the row after the last.

    Raises:
        Unreachable: the file isn't at fault.
    """
    number = begin
    try:
        for record in rows.records(begin, end):
            yield record
            number += 1
        reason = "the file has fewer rows than it said"
    except Exception as error:  # a file that is damaged in the middle
        reason = problem_of(error)
    for missing in range(number, end):
        yield Record(as_key(f"{name}:{missing}"), problem=reason)
