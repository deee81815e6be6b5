"""Members of tar files, read where they lie by any number of threads, with few files open."""

import collections
import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterator

from clip_jax.sources.records import as_text
from clip_jax.storage import is_remote, storage

# Files of this machine that stay open after they were read. Opening one again for each picture is
# slow where it lies on another machine; and of more a system may not have as many at one time.
MOST_OPEN = 64

# So many bytes at an offset.
Read = Callable[[int, int], bytes]


class File:
    """A tar file that threads read, each at a place of its own.

    Attributes:
        size: its bytes.
    """

    def __init__(self, path: str):
        """Opens it; one in a store is fetched, and lies on the disk as long as this lives.

        Raises:
            OSError: it can't be read.
        """
        self._path = path
        self._own = -1
        if is_remote(path):
            self._own = storage(path).descriptor(path)
            self.size = os.fstat(self._own).st_size
            return
        self._sign = _sign(os.stat(path))
        with _OPEN.descriptor(path, self._sign) as descriptor:
            self.size = os.fstat(descriptor).st_size

    def read(self, size: int, offset: int) -> bytes:
        """So many bytes, fewer where the file ends before.

        Raises:
            OSError: they can't be read, or the file is another by now.
        """
        with self.reading() as read:
            return read(size, offset)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Read]:
        """What `read` does, for many times: the file stays open inside the block."""
        if self._own >= 0:
            yield functools.partial(_read, self._own)
            return
        with _OPEN.descriptor(self._path, self._sign) as descriptor:
            yield functools.partial(_read, descriptor)

    def __del__(self, close=os.close):  # bound here: as the process ends `os` is emptied
        if self._own >= 0:
            close(self._own)


@dataclasses.dataclass(frozen=True)
class Member:
    """Where a picture lies in a tar file."""

    file: File
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            OSError: they can't be read.
        """
        data = self.file.read(self.size, self.offset)
        if len(data) < self.size:
            raise OSError(f"{as_text(self.name)}: the shard ends before the picture does")
        return data


@dataclasses.dataclass
class _Descriptor:
    number: int
    users: int = 0


class _Open:
    """The descriptors of files that were read lately."""

    def __init__(self):
        self._files: collections.OrderedDict[tuple, _Descriptor] = collections.OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def descriptor(self, path: str, sign: tuple[int, int]) -> Iterator[int]:
        """A file's descriptor, which stays open inside the block.

        Args:
            path: the file.
            sign: what it must still be.
        """
        key = path, *sign
        with self._lock:
            found = self._files.get(key)
            if found is None:
                self._files[key] = found = _Descriptor(storage(path).descriptor(path))
            if _sign(os.fstat(found.number)) != sign:
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


def _sign(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def _read(descriptor: int, size: int, offset: int) -> bytes:
    # At an offset, so that threads don't move each other's place.
    data = os.pread(descriptor, size, offset)
    while 0 < len(data) < size:  # Linux reads 2 GiB at one time
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
