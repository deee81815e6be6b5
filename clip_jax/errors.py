"""The errors that callers are meant to catch; and what no row is to blame for."""

import errno
from collections.abc import Sequence

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class CheckpointError(Exception):
    """Weights that can't be read, are refused, or don't fit a model; lists every problem."""


class DownloadError(Exception):
    """A file that could not be fetched; says its address and where to put it by hand."""


class NotFiniteError(ValueError):
    """Embeddings that are not finite, because of the weights or of what was embedded.

    Attributes:
        rows: the rows that are not finite, counted from 0.
    """

    def __init__(self, message: str, rows: Sequence[int]):
        super().__init__(message)
        self.rows = rows


def is_exhausted(error: BaseException | None) -> bool:
    """Whether descriptors or memory have run out: no file and no row is to blame for that."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            return True
        error = error.__cause__
    return False
