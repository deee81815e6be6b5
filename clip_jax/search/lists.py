"""Divides coded rows among the lists of an index, on disk: they need not fit into memory."""

import contextlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from clip_jax.search.index_file import NUMBER

# Rows that are read back at a time.
_BLOCK = 1 << 16
# Bytes after which the file is flushed to the disk: all at once would take seconds, in which Ctrl-C
# isn't answered.
_SYNCED = 1 << 26


class Lists:
    """Codes of rows, added in order and written list by list.

    Until then they wait in a file without a name, which goes with its process.
    """

    def __init__(self, folder: str | None, count: int, rows: int, code_size: int):
        """Begins without rows.

        Args:
            folder: where they wait; None for the system's folder for temporary files.
            count: how many lists there are.
            rows: how many rows there will be.
            code_size: bytes of a row's code.

        Raises:
            OSError: there is no room.
        """
        self._folder = folder or tempfile.gettempdir()
        with self._told():
            self._file = tempfile.TemporaryFile(dir=self._folder)
        self._lists = np.empty(rows, np.uint16)
        self._count, self._rows, self._width = count, 0, code_size

    def add(self, lists: np.ndarray, codes: np.ndarray) -> None:
        """Adds the next rows.

        Args:
            lists: (n,), the list of each.
            codes: (n, code_size) uint8.

        Raises:
            OSError: the disk is full.
        """
        self._lists[self._rows : self._rows + len(lists)] = lists
        self._rows += len(lists)
        with self._told():
            self._file.write(codes.data)

    def write(self, file: BinaryIO, memory: int) -> tuple[np.ndarray, np.ndarray]:
        """Writes all lists.

        Args:
            file: where to.
            memory: bytes that may be taken.

        Returns:
            The rows of each list, uint64, and its CRC-32, uint32.

        Raises:
            OSError: the disk is full.
        """
        lists = self._lists[: self._rows]
        sizes = np.bincount(lists, minlength=self._count).astype(np.uint64)
        checks = np.zeros(self._count, np.uint32)
        unsynced = 0
        most = max(memory // (self._width + 4 * NUMBER), 1)
        for first, last in _ranges(sizes, most):
            numbers = np.flatnonzero((lists >= first) & (lists < last))
            # By list, and in a list by number. Sorting 16 bits takes no comparisons.
            order = np.argsort(lists[numbers], kind="stable")
            codes = self._codes(numbers, order)
            numbers, end = numbers[order].astype("<i8"), 0
            for place in range(first, last):
                begin, end = end, end + int(sizes[place])
                parts = codes[begin:end].data, numbers[begin:end].data
                for part in parts:
                    file.write(part)
                    checks[place] = zlib.crc32(part, int(checks[place]))
                    unsynced += part.nbytes
                if unsynced >= _SYNCED:
                    file.flush()
                    os.fsync(file.fileno())
                    unsynced = 0
        return sizes, checks

    def close(self) -> None:
        """Gives the room back."""
        self._file.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Names the folder in errors, as the file has no name."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), self._folder) from None

    def _codes(self, numbers: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Reads the codes of some rows, in ascending order, and puts them into another order."""
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        codes = np.empty((len(numbers), self._width), np.uint8)
        self._file.seek(0)
        for begin in range(0, self._rows, _BLOCK):
            count = min(_BLOCK, self._rows - begin)
            data = self._file.read(count * self._width)
            block = np.frombuffer(data, np.uint8).reshape(count, self._width)
            low, high = np.searchsorted(numbers, [begin, begin + count])
            codes[place[low:high]] = block[numbers[low:high] - begin]
        return codes


def _ranges(sizes: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Yields ranges of lists that have at most so many rows together, or are one list."""
    first, rows = 0, 0
    for place, size in enumerate(sizes.tolist()):
        if place > first and rows + size > most:
            yield first, place
            first, rows = place, 0
        rows += size
    yield first, len(sizes)
