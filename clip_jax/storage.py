"""Files by their address: on this machine's disks, or wherever fsspec goes (`s3://`, `gs://`, ...).

The one place that knows of both. What is written is there complete or not at all: on a disk it is
written aside, flushed and renamed; on an object store it is one PUT.
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

# No picture's file is larger; what is was not meant for one, and would fill the memory.
MOST_OF_A_PICTURE = 1 << 30


def storage(address: str | os.PathLike[str]) -> "Storage":
    """Where that address lies.

    Raises:
        ModuleNotFoundError: fsspec, or its driver for such addresses, is not installed.
        ValueError: fsspec knows no such addresses.
    """
    return Store(os.fspath(address)) if is_remote(address) else Disk()


def is_remote(address: str | os.PathLike[str]) -> bool:
    """Whether fsspec is needed to get there."""
    return "://" in os.fspath(address)


def plain(address: str | os.PathLike[str]) -> str:
    """The address as text; a `file://` one as the path that it is."""
    text = os.fspath(address)
    return re.sub("^(file|local)://(?=/)", "", text) if is_remote(text) else text


def absolute(address: str | os.PathLike[str]) -> str:
    """The address as it reads from any folder."""
    return os.fspath(address) if is_remote(address) else os.path.abspath(address)


def folder(address: str | os.PathLike[str]) -> str:
    """The address of a folder, without a slash at its end.

    Raises:
        ValueError: it is blank, as a variable that isn't set is; or names the root of everything.
    """
    path = plain(address)
    if not path.strip():
        raise ValueError(f"expected the name of a folder. Got {path!r}: is a variable not set?")
    found = path.rstrip("/")
    if not found or found.endswith(":"):  # "/", "s3://"
        raise ValueError(f"expected a folder of its own. Got {path!r}, under which is everything")
    return found


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


class Disk(Storage):
    """This machine's disks."""

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
    """What fsspec reaches; what may help is tried three times."""

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
        except Refused:  # not every driver can tell
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
        self._fs.invalidate_cache()  # others write here, too
        try:
            self._fs.pipe_file(path, data, mode="create")
            return True
        except FileExistsError:
            return False
        except Exception:  # of a kind of their own; or they can't do it on a condition
            if tried(path, lambda: self._fs.exists(path)):
                return False
        self.write(path, data)
        return True

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            tried(path, lambda: self._fs.rm_file(path))

    def abandoned(self, folder: str) -> list[str]:
        return []  # what isn't put there whole isn't there

    def locked(self, path: str, what: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def names(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()  # others write here, too
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
    """Refuses what to open is to wait for somebody, or to start something.

    Raises:
        OSError: there is a pipe, a socket, a device or a folder, or nothing.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise OSError(errno.EINVAL, f"is {kind}, not a file", os.fspath(path))


def check_picture_size(address: str | os.PathLike[str], size: int) -> None:
    """Raises OSError if a picture's file has too many bytes."""
    if size > MOST_OF_A_PICTURE:
        most = f"{MOST_OF_A_PICTURE:,}"
        what = f"has {size:,} bytes, more than the {most} that a picture may have"
        raise OSError(errno.EFBIG, what, os.fspath(address))


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Makes a folder's names outlast a power cut, where the system can."""
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
        # Entries take several times the memory of their names, and there may be millions.
        files, folders = [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_folder(entry):
                    folders.append(entry.name)
                elif entry.is_symlink() or entry.is_file():  # not a pipe, which is waited for
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
    """Opens a file; where that is too much for the machine, the error says so."""
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
    return tried(address, lambda: kind(**options))  # some connect at once


def _patience() -> Any:
    """How long an HTTP server may take; aiohttp's own five minutes are long for a dead one."""
    import aiohttp  # pyright: ignore[reportMissingImports]

    return aiohttp.ClientTimeout(total=120, sock_connect=10, sock_read=30)
