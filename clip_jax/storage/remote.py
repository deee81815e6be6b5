"""Files on object stores and other hosts, through fsspec and its drivers."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from clip_jax.attempts import tried
from clip_jax.errors import Refused
from clip_jax.file_stat import Stat, number_of_store, of_store
from clip_jax.storage.protocol import Storage
from clip_jax.storage.retried import RetriedFile


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
        return self.stat(path).size

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
        data = tried(path, lambda: self._fs.cat_file(path, start=begin, end=end))
        if len(data) > end - begin:
            raise Refused(
                f"{path}: the server sends whole files where a part is asked for: download it first"
            )
        return data

    def read_into(self, path: str, begin: int, target: memoryview) -> int:
        data = self.read_range(path, begin, begin + len(target))
        target[: len(data)] = data
        return len(data)

    def open(self, path: str) -> BinaryIO:
        return tried(path, lambda: self._fs.open(path, "rb"))

    def arrow(self, path: str) -> Any:
        import pyarrow

        file = self.open(path)
        if getattr(file, "size", None) is not None:  # else a stream
            file = RetriedFile(path, file)
        return pyarrow.PythonFile(file, "r")

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

    def write_by(self, path: str, write: Callable[[BinaryIO], object]) -> None:
        with tempfile.NamedTemporaryFile() as place:
            with open(place.name, "wb") as file:
                write(file)
            tried(path, lambda: self._fs.put_file(place.name, path))

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


def _filesystem(address: str) -> Any:
    protocol = address.partition("://")[0]
    extra = "hub" if protocol == "hf" else "remote"
    try:
        import fsspec
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{address} needs fsspec: pip install 'clip-jax-flax[{extra}]'"
        ) from None
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        how = f"pip install 'clip-jax-flax[{extra}]'" if extra == "hub" else error
        raise ModuleNotFoundError(f"{address} needs fsspec's driver: {how}") from None
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
