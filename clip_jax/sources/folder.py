"""The pictures in a folder and its subfolders."""

import array
import collections
import copy
import functools
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence

from clip_jax.messages import counted, some
from clip_jax.sources.addresses import forget, read_address
from clip_jax.sources.beside import TEXTS, add_text, captions_in
from clip_jax.sources.faults import problem_of
from clip_jax.sources.records import IMAGES, Record, as_key
from clip_jax.sources.tar_index import MOST_OF_A_TEXT
from clip_jax.storage import absolute, storage


class NoPictures(ValueError):
    """A folder has no pictures.

    Attributes:
        has_shards: whether it has tar files.
    """

    def __init__(self, message: str, *, has_shards: bool):
        super().__init__(message)
        self.has_shards = has_shards


class FolderShard:
    """All pictures of a folder, recognised by suffix; keys are paths relative to the folder.

    Links are followed, except to a folder that contains them. An unreadable picture is a row too,
    with a problem.

    Attributes:
        others: how many files there are besides, by suffix; hidden ones don't count.
    """

    _first = 0  # the number of the first row, of some of a folder's rows

    def __init__(self, folder: str, suffixes: Sequence[str] = (), *, captions: bool = False):
        """Lists the folder.

        Args:
            folder: the folder.
            suffixes: those of pictures, besides `IMAGES`.
            captions: whether to read captions beside the pictures, as `FolderPairs` does.

        Raises:
            NoPictures: there is no picture in it; the message says what there is.
            OSError: the folder can't be listed.
        """
        self.path, self._storage = absolute(folder).rstrip("/"), storage(folder)
        forget(self.path)
        self._problems: dict[str, str] = {}
        self._names: list[str] = []
        stamps: dict[str, int] = {}
        self.others = others = collections.Counter[str]()
        known = {*IMAGES, *suffixes}
        texts: dict[str, str] = {}
        text_stamps: dict[str, int] = {}
        for name, found in self._storage.walk(folder):
            if isinstance(found, str):
                self._problems[name] = found
            elif (suffix := _suffix(name)) not in known:
                if captions and suffix in TEXTS:
                    add_text(texts, name)
                    text_stamps[name] = found
                    continue
                others[suffix] += not any(part.startswith(".") for part in name.split("/"))
                continue
            else:
                stamps[name] = found
            self._names.append(name)
        if not self._names:
            raise NoPictures(
                f"{folder}: no pictures ({', '.join(IMAGES)}){_instead(others)}",
                has_shards=not others.keys().isdisjoint(("tar", "tgz", "gz")),
            )
        self._names.sort()
        self.name, self.fingerprint = digest_of(self._names), str(len(self._names))
        self._texts = texts if captions else None
        for name in self._names if captions else ():
            if (text := self._text(name)) and stamps.get(name):
                both = f"{stamps[name]} {text_stamps[text]}".encode()
                digest = hashlib.blake2b(both, digest_size=8).digest()
                stamps[name] = int.from_bytes(digest, "big") * bool(text_stamps[text])
        self._stamps = array.array("Q", (stamps.get(name, 0) for name in self._names))

    @property
    def has_captions(self) -> bool:
        """Whether there are captions beside pictures, and they were asked for."""
        return bool(self._texts)

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

    def between(self, begin: int, end: int) -> "FolderShard":
        """Returns some of the rows, with the numbers they have; for other processes."""
        chosen, places = copy.copy(self), slice(begin - self._first, end - self._first)
        chosen._first = begin
        chosen._names, chosen._stamps = self._names[places], self._stamps[places]
        chosen._problems = {n: self._problems[n] for n in chosen._names if n in self._problems}
        if self._texts:
            stems = (name.rpartition(".")[0] for name in chosen._names)
            chosen._texts = {stem: self._texts[stem] for stem in stems if stem in self._texts}
        return chosen

    def open(self) -> "FolderShard":
        return self

    def stamp(self, rows: Sequence[int]) -> str | None:
        """Returns the version of these rows' pictures; None if unknown."""
        if rows and max(rows) >= len(self):  # of a part that has no place here
            return None
        stamps = array.array("Q", (self._stamps[row - self._first] for row in rows))
        return None if 0 in stamps else hashlib.blake2b(stamps, digest_size=16).hexdigest()

    def files(self, rows: Sequence[int]) -> list[str]:
        """Returns the paths of the rows' pictures."""
        names = (self._names[row - self._first] for row in rows if row < len(self))
        return [f"{self.path}/{name}" for name in names]

    def has_changed(self) -> bool:
        """Returns False: each picture is read once; the next start notices later changes."""
        return False

    def __len__(self) -> int:
        return self._first + len(self._names)

    def records(self, begin: int, end: int) -> Iterator[Record]:
        for name in self._names[begin - self._first : end - self._first]:
            path = f"{self.path}/{name}"
            read = functools.partial(read_address, path, self._storage)
            problem = self._problems.get(name)
            captions: tuple[str, ...] = ()
            if problem is None and (text := self._text(name)):
                try:
                    data = self._storage.read_range(f"{self.path}/{text}", 0, MOST_OF_A_TEXT)
                    captions = captions_in(text, data)
                except Exception as error:  # as of a picture: it must not stop the others
                    problem = f"{text}: {problem_of(error)}"
            yield Record(
                as_key(name),
                read,
                as_key(path),
                next(iter(captions), None),
                problem=problem,
                has_more_captions=len(captions) > 1,
            )

    def _text(self, name: str) -> str | None:
        """Returns the file with a picture's caption; None if there is none."""
        return self._texts.get(name.rpartition(".")[0]) if self._texts else None

    def keys(self, begin: int, end: int) -> list[str | None]:
        return [as_key(name) for name in self._names[begin - self._first : end - self._first]]


def digest_of(names: Sequence[str]) -> str:
    """Returns a hash of the names of a folder's pictures."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\0")
    return digest.hexdigest()


def _suffix(name: str) -> str:
    _, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if dot else ""


def _instead(others: Mapping[str, int]) -> str:
    for suffix in ("tar", "tgz", "gz", "parquet"):
        if suffix in others:
            name = "tar.gz" if suffix == "gz" else suffix
            return f"; it holds .{name} files: give them as a pattern, such as '*.{name}'"
    return f" among its {sum(others.values())} files" if others else ": it is empty"


def others_of(folder: str, others: Mapping[str, int]) -> str:
    """Returns the sentence that tells of files that are no pictures; empty if there are none."""
    counts = sorted(((count, suffix) for suffix, count in others.items() if count), reverse=True)
    if not counts:
        return ""
    named = [
        f"{count:,} {'.' + suffix if suffix else 'without an ending'}" for count, suffix in counts
    ]
    total = counted(sum(others.values()), "file")
    return f"left out of {folder}: {total} not named as pictures are: {some(named)}"
