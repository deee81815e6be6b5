"""Pictures of tables, copied to where any one of them can be read by itself.

Reading one row of a Parquet file reads and unpacks the thousands around it, and training takes
rows in random order. Copied once, in the file's order, each picture is one read.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from clip_jax.errors import exhausted
from clip_jax.sources.members import Member


class Spool:
    """A temporary file in TMPDIR, which the system removes with the process.

    Attributes:
        size: its size in bytes.
    """

    def __init__(self):
        """Creates the file.

        Raises:
            OSError: it can't be created.
        """
        with self._telling():
            file = tempfile.TemporaryFile(prefix="clip-jax-")
        with file:
            self._descriptor = os.dup(file.fileno())
        self.size = 0

    def add(self, name: str, data: bytes) -> Member:
        """Appends a picture, and returns where it is.

        Raises:
            OSError: the disk is full; the message says what to do.
        """
        with self._telling():
            done = 0
            while done < len(data):
                done += os.pwrite(self._descriptor, data[done:], self.size + done)
        place = Member(self, name, self.size, len(data))
        self.size += len(data)
        return place

    def read(self, size: int, offset: int) -> bytes:
        """Reads bytes at an offset; any number of threads may.

        Raises:
            OSError: they can't be read.
        """
        return os.pread(self._descriptor, size, offset)

    @staticmethod
    @contextlib.contextmanager
    def _telling() -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise exhausted(error) or error from error

    def __del__(self, close=os.close):  # bound here: `os` is gone at interpreter exit
        if hasattr(self, "_descriptor"):
            close(self._descriptor)
