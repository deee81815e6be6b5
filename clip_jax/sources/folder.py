"""The pictures in a folder and its subfolders."""

import array
import collections
import copy
import functools
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence

from clip_jax.sources.addresses import forget, read_address
from clip_jax.sources.records import IMAGES, Record, as_key
from clip_jax.storage import absolute, storage


class FolderShard:
    """All pictures of a folder, recognised by suffix; keys are paths relative to the folder.

    Links are followed, except to a folder that contains them. An unreadable picture is a row too,
    with a problem.
    """

    def __init__(self, folder: str):
        """Lists the folder.

        Raises:
            ValueError: there is no picture in it; the message says what there is.
            OSError: the folder can't be listed.
        """
        self.path, self._storage = absolute(folder).rstrip("/"), storage(folder)
        forget(self.path)
        self._problems: dict[str, str] = {}
        self._names: list[str] = []
        stamps: dict[str, int] = {}
        others: collections.Counter[str] = collections.Counter()
        for name, found in self._storage.walk(folder):
            if isinstance(found, str):
                self._problems[name] = found
            elif (suffix := _suffix(name)) not in IMAGES:
                others[suffix] += 1
                continue
            else:
                stamps[name] = found
            self._names.append(name)
        if not self._names:
            raise ValueError(f"{folder}: no pictures ({', '.join(IMAGES)}){_instead(others)}")
        self._names.sort()
        self.name, self.fingerprint = digest_of(self._names), str(len(self._names))
        self._stamps = array.array("Q", (stamps.get(name, 0) for name in self._names))

    @property
    def names(self) -> Sequence[str]:
        """The names of the pictures, relative to the folder and sorted."""
        return self._names

    def only(self, names: Collection[str]) -> "FolderShard":
        """Returns the rows of some of these pictures, in the same order."""
        chosen, names = copy.copy(self), frozenset(names)
        places = [place for place, name in enumerate(self._names) if name in names]
        chosen._names = [self._names[place] for place in places]
        chosen._stamps = array.array("Q", (self._stamps[place] for place in places))
        chosen.name, chosen.fingerprint = digest_of(chosen._names), str(len(places))
        return chosen

    def open(self) -> "FolderShard":
        return self

    def stamp(self, rows: Sequence[int]) -> str | None:
        """Returns the version of these rows' pictures; None if unknown."""
        if rows and max(rows) >= len(self._names):  # of a part that has no place here
            return None
        stamps = array.array("Q", (self._stamps[row] for row in rows))
        return None if 0 in stamps else hashlib.blake2b(stamps, digest_size=16).hexdigest()

    def files(self, rows: Sequence[int]) -> list[str]:
        """Returns the paths of the rows' pictures."""
        return [f"{self.path}/{self._names[row]}" for row in rows if row < len(self._names)]

    def has_changed(self) -> bool:
        """Returns False: each picture is read once; the next start notices later changes."""
        return False

    def __len__(self) -> int:
        return len(self._names)

    def records(self, begin: int, end: int) -> Iterator[Record]:
        for name in self._names[begin:end]:
            path = f"{self.path}/{name}"
            read = functools.partial(read_address, path, self._storage)
            problem = self._problems.get(name)
            yield Record(as_key(name), read, as_key(path), problem=problem)

    def keys(self, begin: int, end: int) -> list[str | None]:
        return [as_key(name) for name in self._names[begin:end]]


def digest_of(names: Sequence[str]) -> str:
    """Returns a hash of the names of a folder's pictures."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\0")
    return digest.hexdigest()


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _instead(others: Mapping[str, int]) -> str:
    for suffix in ("tar", "parquet"):
        if suffix in others:
            return f"; it holds .{suffix} files: give them as a pattern, such as '*.{suffix}'"
    return f" among its {sum(others.values())} files" if others else ": it is empty"
