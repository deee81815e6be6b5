"""Members of tar files, read in place by any number of threads, with few files open."""

import collections
import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from clip_jax.sources.gzipped import MAGIC, unpacked
from clip_jax.sources.records import as_text
from clip_jax.storage import is_remote, storage

# How many local files stay open after a read. Opening one for each picture would be slow on a
# network file system, and systems limit the number of open files.
MOST_OPEN = 64

# Reads bytes: (size, offset) -> bytes.
Read = Callable[[int, int], bytes]


class File:
    """A tar file that threads can read at different offsets at the same time.

    Attributes:
        size: its size in bytes, unpacked if it is gzipped.
        problem: why the rest of a gzipped file could not be unpacked; else an empty string.
    """

    def __init__(self, path: str):
        """Opens the file; a remote or gzipped one is copied to TMPDIR for this object's life.

        Raises:
            OSError: it can't be read.
        """
        self._path = path
        self._own, self._version = -1, (0, 0)
        self._is_gzipped = False
        self.problem = ""
        if is_remote(path):
            self._own = storage(path).descriptor(path)
            self._is_gzipped = _is_gzipped(self._own)
            if self._is_gzipped:
                whole, self._own = self._own, -1
                try:
                    self._own, self.problem = unpacked(whole)
                finally:
                    os.close(whole)
            self.size = os.fstat(self._own).st_size
            return
        self._version = _version_of(os.stat(path))
        with _OPEN.descriptor(path, self._version) as descriptor:
            self._is_gzipped = _is_gzipped(descriptor)
            if self._is_gzipped:
                self._own, self.problem = unpacked(descriptor)
            self.size = os.fstat(descriptor if self._own < 0 else self._own).st_size

    def read(self, size: int, offset: int) -> bytes:
        """Reads bytes at an offset; fewer if the file ends before.

        Raises:
            OSError: they can't be read, or the file has changed.
        """
        with self.reading() as read:
            return read(size, offset)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Read]:
        """Yields a function like `read` for many reads; the file stays open in the block."""
        if self._own >= 0:
            yield functools.partial(_read, self._own)
            return
        if self._is_gzipped:  # another process has unpacked it
            with _unpacked_here(self._path, self._version).reading() as read:
                yield read
            return
        if is_remote(self._path):  # another process has the file's copy
            yield functools.partial(_read_remote, self._path)
            return
        with _OPEN.descriptor(self._path, self._version) as descriptor:
            yield functools.partial(_read, descriptor)

    def __getstate__(self) -> dict[str, Any]:
        """Pickled, it reads where the file is: a descriptor is this process's."""
        return vars(self) | {"_own": -1}

    def __del__(self, close=os.close):  # bound here: `os` is gone at interpreter exit
        if self._own >= 0:
            close(self._own)


@functools.lru_cache(4)
def _unpacked_here(path: str, version: tuple[int, int]) -> File:
    file = File(path)
    if file._version != version:
        raise OSError(f"{path} has changed since its headers were read")
    return file


class Readable(Protocol):
    """What bytes can be read from at any offset, as from a `File`."""

    def read(self, size: int, offset: int) -> bytes:
        """Reads bytes at an offset; fewer if it ends before."""
        ...


@dataclasses.dataclass(frozen=True)
class Member:
    """The location of a picture in a tar file, or in another file of many."""

    file: Readable
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Reads its bytes.

        Raises:
            OSError: they can't be read.
        """
        data = self.file.read(self.size, self.offset)
        if len(data) < self.size:
            raise OSError(f"{as_text(self.name)}: its file ends before the picture does")
        return data


@dataclasses.dataclass
class _Descriptor:
    number: int
    users: int = 0


class _Open:
    """The open descriptors of recently read files."""

    def __init__(self):
        self._files: collections.OrderedDict[tuple, _Descriptor] = collections.OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def descriptor(self, path: str, version: tuple[int, int]) -> Iterator[int]:
        """Yields a file's descriptor, which stays open in the block.

        Args:
            path: the file.
            version: its size and modification time, which must not have changed.
        """
        key = path, *version
        with self._lock:
            found = self._files.get(key)
            if found is None:
                self._files[key] = found = _Descriptor(storage(path).descriptor(path))
            if _version_of(os.fstat(found.number)) != version:
                raise OSError(f"{path} has changed since its headers were read")
            self._files.move_to_end(key)
            found.users += 1
            self._close_old()
        try:
            yield found.number
        finally:
            with self._lock:
                found.users -= 1

    def _close_old(self) -> None:
        for key, old in list(self._files.items())[: max(len(self._files) - MOST_OPEN, 0)]:
            if not old.users:
                del self._files[key]
                os.close(old.number)


_OPEN = _Open()


def _version_of(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def _is_gzipped(descriptor: int) -> bool:
    return os.pread(descriptor, len(MAGIC), 0) == MAGIC


def _read_remote(path: str, size: int, offset: int) -> bytes:
    return storage(path).read_range(path, offset, offset + size)


def _read(descriptor: int, size: int, offset: int) -> bytes:
    # pread, because threads share the descriptor's position.
    data = os.pread(descriptor, size, offset)
    while 0 < len(data) < size:  # Linux reads at most 2 GiB at a time
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
