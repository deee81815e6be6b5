"""One guard around the readers: what they raise because of what they read, and what not."""

import contextlib
from collections.abc import Iterator

from clip_jax.errors import Unreachable, exhausted
from clip_jax.sources.records import Record, Rows, Shard, as_key


def told(error: Exception) -> str:
    """What is wrong with the data that a reader has raised this error for.

    Raises:
        Unreachable: nothing is wrong with it: a store can't be reached, or the machine has run out
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
    # Readers' own messages read well; what Python says of a wrong type needs its name.
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def guarded(path: str) -> Iterator[None]:
    """Makes whatever a reader trips over in a file a ValueError that names the file.

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
        reason = told(error)
        raise ValueError(reason if path in reason else f"{path}: {reason}") from error


class Unread:
    """A file that can't be opened: its rows, of which it is one as far as can be told, say why."""

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
    """The rows of a file; where it can't be read `Unread` ones.

    Raises:
        Unreachable: it is not the file's fault.
    """
    try:
        return shard.open()
    except ModuleNotFoundError:
        raise
    except Exception as error:
        return Unread(shard.name, told(error))


def all_records(rows: Rows, name: str, begin: int, end: int) -> Iterator[Record]:
    """So many records, whatever happens: those that can't be read have that problem.

    Args:
        rows: of a file.
        name: of the file.
        begin: the first one.
        end: the one after the last.

    Raises:
        Unreachable: it is not the file's fault.
    """
    number = begin
    try:
        for record in rows.records(begin, end):
            yield record
            number += 1
        reason = "the file has fewer rows than it said"
    except Exception as error:  # a file that is damaged in the middle
        reason = told(error)
    for missing in range(number, end):
        yield Record(as_key(f"{name}:{missing}"), problem=reason)
