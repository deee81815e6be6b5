"""The errors that callers are meant to catch, and a test for exhausted resources."""

import errno
from collections.abc import Iterator, Sequence

# Resources that the machine can run out of; the file isn't at fault.
_RUN_OUT = {
    errno.EMFILE: "too many open files: raise the limit, for example with ulimit -n 4096",
    errno.ENFILE: "the system has too many open files: close some",
    errno.ENOMEM: "there is not enough memory: use fewer threads or a smaller batch",
    errno.ENOBUFS: "there is not enough memory: use fewer threads or a smaller batch",
    errno.ENOSPC: "no space is left on the disk for what is read: TMPDIR says where that goes",
    errno.EDQUOT: "no space is left on the disk for what is read: TMPDIR says where that goes",
}


class CheckpointError(Exception):
    """Weights can't be read, are refused, or don't fit a model; the message lists all problems."""


class DownloadError(Exception):
    """A file could not be downloaded; the message says where to get and put it by hand."""


class NotFiniteError(ValueError):
    """Embeddings are not finite, because of the weights or of the inputs.

    Attributes:
        rows: the numbers of the rows that are not finite, from 0.
    """

    def __init__(self, message: str, rows: Sequence[int]):
        super().__init__(message)
        self.rows = rows

    def __reduce__(self):
        return type(self), (str(self), self.rows)


class Unreachable(OSError):
    """A store can't be reached now; no single file is at fault.

    Attributes:
        is_silent: whether there was no answer at all, perhaps because the local network is down.
    """

    is_silent = False


class Exhausted(Unreachable):
    """The machine has run out of memory, open files or the like; the data isn't at fault."""


class Refused(OSError):
    """An address is wrong, or its server has refused the request; trying again won't help."""


def exhausted(error: BaseException) -> Exhausted | None:
    """Returns the error to raise instead, if the machine has run out of a resource; else None."""
    for cause in causes(error):
        if isinstance(cause, Exhausted):
            return cause
        if isinstance(cause, MemoryError):
            return Exhausted(_RUN_OUT[errno.ENOMEM])
        if isinstance(cause, OSError) and cause.errno in _RUN_OUT:
            return Exhausted(_RUN_OUT[cause.errno])
    return None


def is_exhausted(error: BaseException) -> bool:
    """Whether the machine has run out of a resource, so that no file or row is at fault."""
    return exhausted(error) is not None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and its causes, since drivers wrap the system's errors in their own."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop(0)
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        # aiohttp keeps the system's error in an attribute.
        waiting += [getattr(cause, "os_error", None), cause.__cause__, cause.__context__]
