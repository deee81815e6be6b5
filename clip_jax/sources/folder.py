"""The pictures in a folder and all below it."""

import array
import collections
import functools
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping

from clip_jax.sources.addresses import forget, read_address
from clip_jax.sources.records import IMAGES, Record, as_key
from clip_jax.storage import absolute, storage


class FolderShard:
    """All pictures of a folder, told by their names' endings; keys are paths from the folder.

    Links are followed, but not round in circles. What can't be read is a row all the same, whose
    problem shows as it is read.
    """

    def __init__(self, folder: str):
        """Lists the folder.

        Raises:
            ValueError: there is no picture in it; says what there is.
            OSError: it can't be listed.
        """
        self._folder, self._storage = absolute(folder), storage(folder)
        forget(self._folder)
        self._problems: dict[str, str] = {}
        self._names: list[str] = []
        sizes: dict[str, int] = {}
        others: collections.Counter[str] = collections.Counter()
        for name, found in self._storage.walk(folder):
            if isinstance(found, str):
                self._problems[name] = found
            elif (suffix := _suffix(name)) not in IMAGES:
                others[suffix] += 1
                continue
            else:
                sizes[name] = found
            self._names.append(name)
        if not self._names:
            raise ValueError(f"{folder}: no pictures ({', '.join(IMAGES)}){_instead(others)}")
        self._names.sort()
        digest = hashlib.sha256()
        for name in self._names:
            digest.update(os.fsencode(name) + b"\0")
        self.name, self.sign = digest.hexdigest(), str(len(self._names))
        self._sizes = array.array("q", (sizes.get(name, -1) for name in self._names))

    def open(self) -> "FolderShard":
        return self

    def contents(self, rows: Iterable[int]) -> str:
        """What tells the pictures of these rows from others of their names: their sizes."""
        sizes = array.array("q", (self._sizes[row] for row in rows))
        return f"{zlib.crc32(sizes):08x}"

    def __len__(self) -> int:
        return len(self._names)

    def records(self, begin: int, end: int) -> Iterator[Record]:
        for name in self._names[begin:end]:
            path = f"{self._folder.rstrip('/')}/{name}"
            read = functools.partial(read_address, path, self._storage)
            problem = self._problems.get(name)
            yield Record(as_key(name), read, as_key(path), problem=problem)


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _instead(others: Mapping[str, int]) -> str:
    for suffix in ("tar", "parquet"):
        if suffix in others:
            return f"; it holds .{suffix} files: give them as a pattern, such as '*.{suffix}'"
    return f" among its {sum(others.values())} files" if others else ": it is empty"
