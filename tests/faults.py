"""A file system that fails: one call of many, once or from then on, under one folder.

What Python and NumPy read and write goes through it, and what Arrow reads: errors, no room left,
reads and writes of fewer bytes than asked for, and calls that take their time.
"""

import builtins
import contextlib
import errno
import fcntl
import io
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clip_jax import storage

KINDS = ("EIO", "ENOSPC", "EMFILE", "ESTALE", "ENOMEM", "short", "delayed")
# Calls by the path that is their first argument, and by a descriptor.
BY_PATH = ("replace", "link", "unlink", "listdir", "scandir", "stat", "makedirs", "open")
BY_DESCRIPTOR = ("fsync", "pread", "ftruncate")


class Faults:
    """Counts the calls under a folder, and lets some of them fail."""

    def __init__(self, folder: Path, first: int, kind: str, *, stays: bool, rng: random.Random):
        """Decides what is to happen.

        Args:
            folder: under which calls count.
            first: the number of the call that fails; -1 for none.
            kind: of KINDS.
            stays: whether all later ones of its name fail, too.
            rng: how short, how late.
        """
        self._folder, self._first, self._kind = f"{folder}/", first, kind
        self._stays, self._rng, self._lock = stays, rng, threading.Lock()
        self._name = ""
        self.calls = 0
        self.failed: list[str] = []
        self.is_on = True

    def check(self, name: str, path: str, size: int | None = None) -> int | None:
        """Counts a call and has it fail, or gives how many bytes it may read or write."""
        if not self.is_on or not f"{path}/".startswith(self._folder):
            return size
        with self._lock:
            number = self.calls
            self.calls += 1
            if number == self._first:
                self._name = name
            elif not (self._stays and self._name == name):
                return size
            self.failed.append(f"{name} {path.removeprefix(self._folder)}")
            share = self._rng.random()
        if self._kind == "delayed":
            time.sleep(0.02 * share)
        elif self._kind == "short":
            return size and max(1, int(size * share))
        else:
            raise OSError(getattr(errno, self._kind), os.strerror(getattr(errno, self._kind)), path)
        return size


class _File(io.FileIO):
    """A file without a buffer, as Python's other files stand on."""

    def __init__(self, path: Any, mode: str, faults: Faults):
        self._faults, self._path = faults, os.fspath(path)
        super().__init__(path, mode)

    def readinto(self, buffer: Any) -> int | None:
        size = self._faults.check("read", self._path, len(memoryview(buffer).cast("B")))
        return super().readinto(memoryview(buffer).cast("B")[:size])

    def read(self, size: int | None = -1) -> bytes | None:
        return io.RawIOBase.read(self, -1 if size is None else size)

    def readall(self) -> bytes:
        return io.RawIOBase.readall(self) or b""

    def write(self, data: Any) -> int | None:
        data = memoryview(data).cast("B")
        return super().write(data[: self._faults.check("write", self._path, len(data))])


@contextlib.contextmanager
def injected(faults: Faults) -> Iterator[None]:
    """Has the process's files go through `faults`."""
    open_before = builtins.open

    def open_(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        is_ours = isinstance(file, str | os.PathLike) and set(mode) <= set("rwbx")
        if not is_ours or "b" not in mode:
            if isinstance(file, str | os.PathLike):
                faults.check("open", os.fspath(file))
            return open_before(file, mode, buffering, *args, **options)
        faults.check("open", os.fspath(file))
        raw = _File(file, mode.replace("b", ""), faults)
        if buffering == 0:
            return raw
        return io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)

    def by_path(name: str, call: Callable) -> Callable:
        def wrapped(path: Any = ".", *args: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike):
                faults.check(name, os.fspath(path))
            return call(path, *args, **options)

        return wrapped

    def by_descriptor(name: str, call: Callable) -> Callable:
        def wrapped(descriptor: int, *args: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if name != "pread":
                faults.check(name, path)
                return call(descriptor, *args)
            size, *rest = args
            return call(descriptor, faults.check(name, path, size), *rest)

        return wrapped

    def arrow(_: storage.Disk, path: str) -> Any:
        with open_(path, "rb") as file:
            return pa.BufferReader(file.read())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", open_)
        patch.setattr(io, "open", open_)
        for name in BY_PATH:
            patch.setattr(os, name, by_path(name, getattr(os, name)))
        for name in BY_DESCRIPTOR:
            patch.setattr(os, name, by_descriptor(name, getattr(os, name)))
        lock = by_descriptor("flock", fcntl.flock)
        patch.setattr(fcntl, "flock", lock)
        patch.setattr(storage.Disk, "arrow", arrow)
        try:
            yield
        finally:
            faults.is_on = False  # for threads that are still at it
