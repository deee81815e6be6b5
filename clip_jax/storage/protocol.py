"""The interface of both kinds of storage."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

from clip_jax.file_stat import Stat


class Storage(Protocol):
    """Files of one kind. All methods are thread-safe, and raise OSError on failure."""

    @property
    def filesystem(self) -> Any:
        """The `filesystem` argument for pyarrow."""
        ...

    def within(self, path: str) -> str:
        """Returns the path as it is called in `filesystem`."""
        ...

    def is_folder(self, path: str) -> bool:
        """Whether there is such a folder; on object stores, whether anything is in it."""
        ...

    def size(self, path: str) -> int:
        """Returns the size of a file in bytes."""
        ...

    def stat(self, path: str, fresh: bool = False) -> Stat:
        """Returns the size and version of a file; `fresh` bypasses caches."""
        ...

    def modified(self, path: str) -> int | None:
        """Returns a file's modification time, in nanoseconds since 1970; None if unknown."""
        ...

    def read(self, path: str) -> bytes:
        """Reads a whole file."""
        ...

    def read_range(self, path: str, begin: int, end: int) -> bytes:
        """Reads some bytes of a file; fewer if it ends before."""
        ...

    def read_into(self, path: str, begin: int, target: memoryview) -> int:
        """Reads bytes from an offset into memory; returns how many, fewer if the file ends."""
        ...

    def open(self, path: str) -> BinaryIO:
        """Opens a seekable file for reading."""
        ...

    def arrow(self, path: str) -> Any:
        """Opens a file for pyarrow, which closes itself."""
        ...

    def descriptor(self, path: str) -> int:
        """Returns a descriptor of the file, for `os.pread`; downloads a remote file whole."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Writes a file atomically, replacing one of that name."""
        ...

    def write_by(self, path: str, write: Callable[[BinaryIO], object]) -> None:
        """Writes a large file as `write` does; `write` is given an open file on a disk."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Writes a file as `write` does, unless it exists; returns whether it did.

        If several processes call it at once, one succeeds. On object stores without conditional
        writes several may, and the last one's file remains.
        """
        ...

    def remove(self, path: str) -> None:
        """Removes a file, if it is there."""
        ...

    def abandoned(self, folder: str) -> list[str]:
        """Returns the names of unfinished files in a folder whose processes are dead."""
        ...

    def locked(self, path: str, what: str) -> contextlib.AbstractContextManager[None]:
        """Holds a file as a lock, as in `clip_jax.locks`; does nothing on object stores."""
        ...

    def names(self, folder: str) -> list[str]:
        """Returns the names of the files directly in a folder; none if it doesn't exist."""
        ...

    def walk(self, folder: str) -> Iterator[tuple[str, int | str]]:
        """Yields the files in a folder and its subfolders, in any order.

        Yields:
            The path relative to the folder, with slashes; and a hash of the file's size and times
            or version, 0 if these are unknown. For a folder that can't be entered, the problem.
        """
        ...

    def glob(self, pattern: str) -> list[str]:
        """Returns the addresses of the files that match a pattern."""
        ...
