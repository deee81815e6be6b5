"""The pictures in a folder and all below it."""

import functools
import hashlib
import os
from collections.abc import Iterator

from clip_jax.sources.records import Record, as_text
from clip_jax.storage import absolute, storage

SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "ppm", "tif", "tiff")


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
        listed = sorted(self._storage.walk(folder))
        self._problems = {name: problem for name, problem in listed if problem is not None}
        self._names = [
            name for name, _ in listed if name in self._problems or _suffix(name) in SUFFIXES
        ]
        if not self._names:
            raise ValueError(f"{folder}: no pictures ({', '.join(SUFFIXES)}){_instead(listed)}")
        digest = hashlib.sha256()
        for name in self._names:
            digest.update(os.fsencode(name) + b"\0")
        self.name, self.size = digest.hexdigest(), len(self._names)

    def open(self) -> "FolderShard":
        return self

    def __len__(self) -> int:
        return len(self._names)

    def records(self, begin: int, end: int) -> Iterator[Record]:
        for name in self._names[begin:end]:
            path = f"{self._folder.rstrip('/')}/{name}"
            read = functools.partial(self._storage.read, path)
            problem = self._problems.get(name)
            yield Record(as_text(name), read, as_text(path), problem=problem)


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _instead(listed: list[tuple[str, str | None]]) -> str:
    for suffix in ("tar", "parquet"):
        if any(_suffix(name) == suffix for name, _ in listed):
            return f"; it holds .{suffix} files: give them as a pattern, such as '*.{suffix}'"
    return f" among its {len(listed)} files" if listed else ": it is empty"
