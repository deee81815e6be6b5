"""Files on local disks."""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from clip_jax.errors import exhausted, is_exhausted
from clip_jax.file_stat import Stat, number_of_disk, of_disk
from clip_jax.globs import NOT_THERE, is_file, matching
from clip_jax.locks import locked
from clip_jax.storage.protocol import Storage
from clip_jax.unfinished import ASIDE, is_abandoned, put_new, written_aside

T = TypeVar("T")
# Errors that concern the disk; others mean that a system can't flush a folder.
_DISK_FAULTS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Disk(Storage):
    """Local file systems."""

    @property
    def filesystem(self) -> Any:
        return None

    def within(self, path: str) -> str:
        return path

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(path)

    def size(self, path: str) -> int:
        return os.stat(path).st_size

    def stat(self, path: str, fresh: bool = False) -> Stat:
        return of_disk(os.stat(path))

    def modified(self, path: str) -> int | None:
        return os.stat(path).st_mtime_ns

    def read(self, path: str) -> bytes:
        with self.open(path) as file:
            return file.read()

    def read_range(self, path: str, begin: int, end: int) -> bytes:
        with self.open(path) as file:
            file.seek(begin)
            return file.read(end - begin)

    def read_into(self, path: str, begin: int, target: memoryview) -> int:
        done = 0
        with open(path, "rb", buffering=0) as file:
            file.seek(begin)
            while done < len(target) and (count := file.readinto(target[done:])):
                done += count
        return done

    def open(self, path: str) -> BinaryIO:
        check_regular(path)
        return _opened(lambda: open(path, "rb"))

    def arrow(self, path: str) -> Any:
        import pyarrow

        check_regular(path)
        return _opened(lambda: pyarrow.OSFile(os.fsencode(path)))  # names that aren't UTF-8, too

    def descriptor(self, path: str) -> int:
        check_regular(path)
        return _opened(lambda: os.open(path, os.O_RDONLY))

    def write(self, path: str, data: bytes) -> None:
        self.write_by(path, lambda file: file.write(data))

    def write_by(self, path: str, write: Callable[[BinaryIO], object]) -> None:
        with written_aside(path, write) as unfinished:
            os.replace(unfinished, path)
        sync_folder(os.path.dirname(path) or ".")

    def create(self, path: str, data: bytes) -> bool:
        with written_aside(path, lambda file: file.write(data)) as unfinished:
            is_new = put_new(unfinished, path)
        sync_folder(os.path.dirname(path) or ".")
        return is_new

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def abandoned(self, folder: str) -> list[str]:
        names = [name for name in self.names(folder) if name.endswith(ASIDE)]
        return [name for name in names if is_abandoned(os.path.join(folder, name))]

    def locked(self, path: str, what: str) -> contextlib.AbstractContextManager[None]:
        return locked(path, what)

    def names(self, folder: str) -> list[str]:
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []

    def walk(self, folder: str) -> Iterator[tuple[str, int | str]]:
        yield from _walk(folder, "", ())

    def glob(self, pattern: str) -> list[str]:
        return [path for path in matching(pattern) if is_file(path)]


def check_regular(path: str | os.PathLike[str]) -> None:
    """Checks that a path is a regular file: opening a pipe or a device may block.

    Raises:
        OSError: it is a pipe, a socket, a device or a folder, or doesn't exist.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise OSError(errno.EINVAL, f"is {kind}, not a file", os.fspath(path))


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flushes a folder's entries to disk, so that they survive a power cut, if the system can.

    Raises:
        OSError: the disk has failed, or is full.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _DISK_FAULTS:
            raise OSError(error.errno, error.strerror, os.fspath(folder)) from None


def _walk(
    folder: str, prefix: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, int | str]]:
    try:
        there = os.stat(folder)
        if (there.st_dev, there.st_ino) in above:
            yield prefix.rstrip("/"), "a link to a folder that it lies in"
            return
        # Only names are kept: entries take several times the memory, and may be millions.
        files, folders = [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_folder(entry):
                    folders.append(entry.name)
                else:  # a pipe or a device, too: reading it says what it is
                    files.append((prefix + entry.name, _number(entry)))
    except OSError as error:
        if not above or is_exhausted(error):
            raise
        yield prefix.rstrip("/"), f"the folder can't be read: {error.strerror}"
        return
    yield from files
    for name in folders:
        below = (*above, (there.st_dev, there.st_ino))
        yield from _walk(os.path.join(folder, name), f"{prefix}{name}/", below)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
        return False  # a link to itself


def _number(entry: os.DirEntry) -> int:
    try:
        return number_of_disk(entry.stat())
    except OSError:  # a link to nowhere
        return 0


def _opened(act: Callable[[], T]) -> T:
    """Opens a file; raises a telling error if memory or descriptors have run out."""
    try:
        return act()
    except OSError as error:
        if out := exhausted(error):
            raise out from error
        raise
