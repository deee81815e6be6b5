"""Files by their address: on local disks, or anywhere fsspec reaches (`s3://`, `gs://`, ...).

Writes are atomic: on a disk a temporary file is written, flushed and renamed; on an object store a
write is one PUT.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol, TypeVar

from clip_jax.attempts import Exhausted as Exhausted
from clip_jax.attempts import Refused as Refused
from clip_jax.attempts import Unreachable as Unreachable
from clip_jax.attempts import exhausted, tried
from clip_jax.errors import is_exhausted
from clip_jax.file_stat import Stat, number_of_disk, number_of_store, of_disk, of_store
from clip_jax.globs import NOT_THERE, is_file, matching
from clip_jax.locks import locked
from clip_jax.unfinished import ASIDE, is_abandoned, put_new, written_aside

T = TypeVar("T")

# No picture is larger; other files named in a table would fill the memory.
MOST_OF_A_PICTURE = 1 << 30


def storage(address: str | os.PathLike[str]) -> "Storage":
    """Returns the storage that an address belongs to.

    Raises:
        ModuleNotFoundError: fsspec, or its driver for such addresses, is not installed.
        ValueError: fsspec knows no such addresses.
    """
    return Store(os.fspath(address)) if is_remote(address) else Disk()


def is_remote(address: str | os.PathLike[str]) -> bool:
    """Whether an address needs fsspec."""
    return "://" in os.fspath(address)


def plain(address: str | os.PathLike[str]) -> str:
    """Returns the address as a string, a `file://` one as a plain path."""
    text = os.fspath(address)
    return re.sub("^(file|local)://(?=/)", "", text) if is_remote(text) else text


def absolute(address: str | os.PathLike[str]) -> str:
    """Returns the address, a local path made absolute."""
    return os.fspath(address) if is_remote(address) else os.path.abspath(address)


def folder(address: str | os.PathLike[str]) -> str:
    """Returns the address of a folder without a trailing slash.

    Raises:
        ValueError: it is blank (an unset variable, perhaps), or the root of a file system.
    """
    path = plain(address)
    if not path.strip():
        raise ValueError(f"expected the name of a folder. Got {path!r}: is a variable not set?")
    found = path.rstrip("/")
    if not found or found.endswith(":"):  # "/", "s3://"
        raise ValueError(f"expected a folder of its own. Got {path!r}, under which is everything")
    return found


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
        return _opened(lambda: pyarrow.OSFile(path))

    def descriptor(self, path: str) -> int:
        check_regular(path)
        return _opened(lambda: os.open(path, os.O_RDONLY))

    def write(self, path: str, data: bytes) -> None:
        with written_aside(path, lambda file: file.write(data)) as unfinished:
            os.replace(unfinished, path)
        sync_folder(os.path.dirname(path))

    def create(self, path: str, data: bytes) -> bool:
        with written_aside(path, lambda file: file.write(data)) as unfinished:
            is_new = put_new(unfinished, path)
        sync_folder(os.path.dirname(path))
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


class Store(Storage):
    """A remote file system of fsspec; temporary failures are retried, three tries in all."""

    def __init__(self, address: str):
        self._fs: Any = _filesystem(address)

    @property
    def filesystem(self) -> Any:
        return self._fs

    def within(self, path: str) -> str:
        return self._fs._strip_protocol(path)

    def is_folder(self, path: str) -> bool:
        return tried(path, lambda: self._fs.isdir(path))

    def size(self, path: str) -> int:
        return tried(path, lambda: int(self._fs.size(path)))

    def stat(self, path: str, fresh: bool = False) -> Stat:
        if fresh:
            self._fs.invalidate_cache(self.within(path).rpartition("/")[0])
        return of_store(tried(path, lambda: self._fs.info(path)))

    def modified(self, path: str) -> int | None:
        try:
            return int(tried(path, lambda: self._fs.modified(path)).timestamp() * 1e9)
        except Refused:  # not every driver knows it
            return None

    def read(self, path: str) -> bytes:
        return tried(path, lambda: self._fs.cat_file(path))

    def read_range(self, path: str, begin: int, end: int) -> bytes:
        return tried(path, lambda: self._fs.cat_file(path, start=begin, end=end))

    def read_into(self, path: str, begin: int, target: memoryview) -> int:
        data = self.read_range(path, begin, begin + len(target))
        target[: len(data)] = data
        return len(data)

    def open(self, path: str) -> BinaryIO:
        return tried(path, lambda: self._fs.open(path, "rb"))

    def arrow(self, path: str) -> Any:
        import pyarrow

        return pyarrow.PythonFile(self.open(path), "r")

    def descriptor(self, path: str) -> int:
        def fetch() -> int:
            with tempfile.NamedTemporaryFile() as file, self._fs.open(path, "rb") as remote:
                shutil.copyfileobj(remote, file, 1 << 24)
                file.flush()
                return os.open(file.name, os.O_RDONLY)  # outlives the name

        return tried(path, fetch)

    def write(self, path: str, data: bytes) -> None:
        def put() -> None:
            try:
                self._fs.pipe_file(path, data)
            except FileNotFoundError:  # unlike object stores, some have real folders
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._fs.pipe_file(path, data)

        tried(path, put)

    def create(self, path: str, data: bytes) -> bool:
        self._fs.invalidate_cache()  # other processes write here too
        try:
            self._fs.pipe_file(path, data, mode="create")
            return True
        except FileExistsError:
            return False
        except Exception:  # the driver's own error for that, or no conditional writes
            if tried(path, lambda: self._fs.exists(path)):
                return False
        self.write(path, data)
        return True

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            tried(path, lambda: self._fs.rm_file(path))

    def abandoned(self, folder: str) -> list[str]:
        return []  # writes are atomic

    def locked(self, path: str, what: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def names(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()  # other processes write here too
        try:
            entries = tried(folder, lambda: self._fs.ls(folder, detail=True))
        except FileNotFoundError:
            return []
        return [e["name"].rpartition("/")[2] for e in entries if e["type"] == "file"]

    def walk(self, folder: str) -> Iterator[tuple[str, int | str]]:
        root = self._fs._strip_protocol(folder).rstrip("/") + "/"
        found = tried(folder, lambda: self._fs.find(folder, detail=True))
        for name, info in found.items():
            yield name.removeprefix(root), number_of_store(info)

    def glob(self, pattern: str) -> list[str]:
        names = tried(pattern, lambda: self._fs.glob(pattern))
        return [self._fs.unstrip_protocol(name) for name in names]


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


def check_picture_size(address: str | os.PathLike[str], size: int) -> None:
    """Raises OSError if a picture's file is too large."""
    if size > MOST_OF_A_PICTURE:
        most = f"{MOST_OF_A_PICTURE:,}"
        what = f"has {size:,} bytes, more than the {most} that a picture may have"
        raise OSError(errno.EFBIG, what, os.fspath(address))


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flushes a folder's entries to disk, if the system can, so that they survive a power cut."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
                elif entry.is_symlink() or entry.is_file():  # a pipe would block
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


def _filesystem(address: str) -> Any:
    try:
        import fsspec
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{address} needs fsspec: pip install 'clip-jax-flax[remote]'"
        ) from None
    protocol = address.partition("://")[0]
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise ModuleNotFoundError(f"{address} needs fsspec's driver: {error}") from None
    except ValueError:
        raise ValueError(f"{address}: fsspec knows no addresses of {protocol}://") from None
    options = kind._get_kwargs_from_urls(address)
    if protocol in ("http", "https"):
        options["client_kwargs"] = {"timeout": _patience()}
    return tried(address, lambda: kind(**options))  # some drivers connect here


def _patience() -> Any:
    """Returns timeouts for HTTP; aiohttp's default of five minutes is long for a dead server."""
    import aiohttp  # pyright: ignore[reportMissingImports]

    return aiohttp.ClientTimeout(total=120, sock_connect=10, sock_read=30)
