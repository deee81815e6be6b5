"""The errors that callers are meant to catch, and a test for exhausted memory or descriptors."""

import errno
from collections.abc import Sequence

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


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


def is_exhausted(error: BaseException | None) -> bool:
    """Whether descriptors or memory have run out, so that no file or row is at fault."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            return True
        error = error.__cause__
    return False
