"""What both kinds of storage can do."""

import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

from clip_jax.file_stat import Stat


class Storage(Protocol):
    """Files of one kind; everything may be called by several threads, and raises OSError."""

    @property
    def filesystem(self) -> Any:
        """What pyarrow takes for its filesystem."""
        ...

    def within(self, path: str) -> str:
        """What the path is called in `filesystem`."""
        ...

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder; object stores have those that hold something."""
        ...

    def size(self, path: str) -> int:
        """Bytes of a file."""
        ...

    def stat(self, path: str, fresh: bool = False) -> Stat:
        """What tells a file from what it was before; `fresh` asks again what was asked before."""
        ...

    def modified(self, path: str) -> int | None:
        """When a file was written, in nanoseconds since 1970; None where that can't be told."""
        ...

    def read(self, path: str) -> bytes:
        """All of a file."""
        ...

    def read_range(self, path: str, begin: int, end: int) -> bytes:
        """Some bytes of a file; fewer where it ends before."""
        ...

    def read_into(self, path: str, begin: int, target: memoryview) -> int:
        """Reads bytes into memory from some place on; says how many, fewer where it ends before."""
        ...

    def open(self, path: str) -> BinaryIO:
        """A file to read, at any place of it."""
        ...

    def arrow(self, path: str) -> Any:
        """A file for pyarrow, which closes by itself."""
        ...

    def descriptor(self, path: str) -> int:
        """A descriptor of the file, for `os.pread`; a remote file is fetched whole for that."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Puts a file there, complete or not at all, in place of one of that name."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Puts a file there as `write` does, unless there is one; says whether it did.

        Of several processes that do so at once, one does; on object stores without conditional
        writes there may be more than one, of which the last has its file there.
        """
        ...

    def remove(self, path: str) -> None:
        """Removes a file, if it is there."""
        ...

    def abandoned(self, folder: str) -> list[str]:
        """The names of the unfinished files in a folder whose processes are dead."""
        ...

    def locked(self, path: str, what: str) -> contextlib.AbstractContextManager[None]:
        """Holds a file as a lock, as `clip_jax.locks` has it; object stores have none."""
        ...

    def names(self, folder: str) -> list[str]:
        """The names of the files right in a folder; none where there is no folder."""
        ...

    def walk(self, folder: str) -> Iterator[tuple[str, int | str]]:
        """The files in a folder and all below, in no certain order.

        Yields:
            The path from the folder, with slashes; and a number that changes with the file's size
            and times or version, 0 where these can't be told; or what is wrong where a folder can't
            be entered.
        """
        ...

    def glob(self, pattern: str) -> list[str]:
        """The addresses of the files that fit a pattern."""
        ...
