"""WebDataset shards: tar files in which members with the same stem form a row."""

import errno
import functools
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clip_jax.sources.faults import guarded
from clip_jax.sources.files import ListedFile
from clip_jax.sources.gzipped import MAGIC, beginning
from clip_jax.sources.left_out import LeftOut, distinct
from clip_jax.sources.members import Member
from clip_jax.sources.patterns import expand
from clip_jax.sources.records import ListRows, Pair, Record, as_key
from clip_jax.sources.tar_index import COMPRESSED, UNPACK, Group, TarIndex, parted
from clip_jax.sources.where import Where
from clip_jax.storage import absolute, is_remote, storage


class TarPairs:
    """The pairs of some shards, read through an index of their members without unpacking.

    A pair is an image (`.jpg`, `.png`, ...) and, with the same stem, a text (`.txt`, one caption)
    or a JSON document (`.json`, `caption` or `captions`). The key is that stem; one that comes
    again in another shard has that shard's name in front.

    Attributes:
        left_out: the samples that can't be used.
    """

    def __init__(
        self,
        pattern: str | os.PathLike[str],
        *,
        max_skipped: float = 0.0,
        where: Where | None = None,
        paths: Sequence[str] | None = None,
    ):
        """Reads the headers and captions of all shards, but no picture.

        Args:
            pattern: a path with `*`, `?`, `[...]`, and braces: `pairs-{000..012}.tar`,
                `{train,more}-*.tar`.
            max_skipped: the share of samples that may be faulty, and of shards that may be damaged.
            where: the conditions that the fields of a pair's JSON document must fit.
            paths: the shards, if they are known; `pattern` is then only their name in messages.

        Raises:
            ValueError: too many captions or images are missing, or shards damaged; lists the
                problems.
            FileNotFoundError: no file matches the pattern.
        """
        paths = expand(os.fspath(pattern)) if paths is None else paths
        self._where = where or Where()
        self._pairs: list[tuple[str, Member, tuple[str, ...]]] = []
        self.left_out, seen = LeftOut(os.fspath(pattern), self._where), set[str]()
        for path in paths:
            self._add(path, seen)
        self.left_out.check(len(self), len(paths), max_skipped)
        if not self._pairs:
            raise ValueError(f"{os.fspath(pattern)}: no pairs in {len(paths)} shards")

    def _add(self, path: str, seen: set[str]) -> None:
        index, left_out = TarIndex(path), self.left_out
        if index.end:
            left_out.damage.append(f"{path}: {index.end}")
        lost = list(index.problems())
        reasons = {parted(name)[0]: problem for name, problem in lost}
        for key, group in index.groups.items():
            try:
                if self._where and not self._where.holds(group.labelled_document()):
                    left_out.unchosen += 1
                    reasons.pop(key, None)
                    continue
                if group.image is None:
                    raise ValueError(reasons.pop(key, "no image"))
                captions = group.captions()
            except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
                left_out.problems.append(f"{path}: {key}: {error}")
                continue
            key = distinct(key, seen, os.path.basename(path))
            seen.add(key)
            self._pairs.append((key, group.image, captions))
        for name, problem in lost:
            stem = parted(name)[0]
            if stem in index.groups and index.groups[stem].image is not None:
                left_out.notes.append(f"{path}: {name}: {problem}")
            elif stem not in index.groups:
                left_out.problems.append(f"{path}: {name}: {problem}")

    def __len__(self) -> int:
        return len(self._pairs)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._pairs[index][2]

    def key(self, index: int) -> str:
        return self._pairs[index][0]

    def picture(self, index: int) -> object:
        return self._pairs[index][1]

    def size(self, index: int) -> int:
        return self._pairs[index][1].size

    def __getitem__(self, index: int) -> Pair:
        key, image, captions = self._pairs[index]
        return Pair(key, image.read(), captions)


class TarShard(ListedFile):
    """The rows of one shard: a picture, a caption, or both, with one stem, which is the key.

    Faulty members don't stop the others: a second picture with the same stem becomes a row with a
    problem, and so does the rest of a truncated file.
    """

    def __init__(self, path: str, columns: Sequence[str] = ()):
        """Gets the file's size; reads nothing yet.

        Args:
            path: the tar file.
            columns: the fields of the JSON documents to pass through; `cls` is the label in the
                `.cls` member, if there is one.
        """
        super().__init__(path)
        self._size = self.stat.size
        self.fingerprint = str(self._size)
        self._path, self._columns = path, columns

    def open(self) -> "TarRows":
        with guarded(self._path):
            return TarRows(self._path, self._columns)

    def check(self) -> None:
        """Checks by its first bytes that the file is a tar file.

        Raises:
            OSError: it can't be read.
            ValueError: it is not; the message says what it is.
        """
        if not self._size:
            raise ValueError(f"{self._path} is empty: there is no row to embed")
        head = storage(self._path).read_range(self._path, 0, 8 * tarfile.BLOCKSIZE)
        if head.startswith(MAGIC):
            with guarded(self._path):
                head = beginning(head)
        head = head[: tarfile.BLOCKSIZE]
        if head.startswith(COMPRESSED):
            raise ValueError(f"{self._path}: {UNPACK}")
        if head == bytes(tarfile.BLOCKSIZE):
            return  # complete, but without members
        try:
            tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise ValueError(f"{self._path} is no tar file, or a damaged one: {error}") from None

    def field_names(self) -> list[str]:
        """Returns the names of the fields that rows have; none are also those of damaged rows.

        Raises:
            OSError: the file can't be read.
        """
        rows = self.open().fields(())
        return list(dict.fromkeys(name for row in rows if not isinstance(row, str) for name in row))


class TarRows:
    """The rows of an open shard."""

    def __init__(self, path: str, columns: Sequence[str]):
        """Reads headers and captions.

        Raises:
            OSError: the file can't be read.
        """
        self._path, self._columns = absolute(path), columns
        index = TarIndex(path)
        self._groups = list(index.groups.items())
        self._problems = list(index.problems())
        if index.end:
            self._problems.append((os.path.basename(path), index.end))

    def __len__(self) -> int:
        return len(self._groups) + len(self._problems)

    def records(self, begin: int, end: int) -> Iterator[Record]:
        count = len(self._groups)
        for i, (key, group) in enumerate(self._groups[begin:end]):
            yield self._record(key, group, opens=i == 0)
        for name, problem in self._problems[max(begin - count, 0) : max(end - count, 0)]:
            yield Record(as_key(name), problem=problem)

    def keys(self, begin: int, end: int) -> list[str | None]:
        keys: list[str | None] = [as_key(key) for key, _ in self._groups[begin:end]]
        return keys + [None] * (min(end, len(self)) - max(begin, len(self._groups)))

    def fields(self, names: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
        for _, group in self._groups:
            yield fields_of(group)
        for _, problem in self._problems:
            yield problem

    def between(self, begin: int, end: int) -> ListRows:
        """Returns some of the rows, for other processes, which read pictures by their offsets."""
        return ListRows(list(self.records(begin, end)), begin)

    def _record(self, key: str, group: Group, opens: bool) -> Record:
        captions, columns, problem = (), {}, None
        try:
            if group.txt is not None or group.json is not None:
                captions = group.captions()
            if self._columns:
                document = group.labelled_document()
                columns = {name: document.get(name) for name in self._columns}
        except ValueError as error:
            # If there is a picture, it can be embedded nevertheless.
            problem = str(error) if group.image is None else None
        read = path = None
        if group.image is not None:
            read, path = group.image.read, as_key(f"{self._path}/{group.image.name}")
        return Record(
            as_key(key),
            read,
            path,
            next(iter(captions), None),
            columns,
            problem=problem,
            opens=opens,
            has_more_captions=len(captions) > 1,
        )


def fields_of(group: Group) -> Mapping[str, Any] | str:
    """Returns the fields of a row's JSON document and its label; or why they can't be read."""
    try:
        return group.labelled_document()
    except ValueError as error:
        return f"whether it was asked for can't be told: {error}"


def read_member(path: str, name: str) -> bytes:
    """Reads a picture from a tar file, by the member's exact name.

    Raises:
        OSError: there is no such picture, or it can't be read.
        ValueError: the file is damaged.
    """
    with guarded(path):
        member = _members(path, _version(path)).get(name)
    if member is None:
        raise FileNotFoundError(errno.ENOENT, "no such member", f"{path}/{name}")
    return member.read()


def _version(path: str) -> tuple[int, int] | None:
    if is_remote(path):
        return None
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(4)
def _members(path: str, version: tuple[int, int] | None) -> dict[str, Member]:
    return {
        group.image.name: group.image
        for group in TarIndex(path).groups.values()
        if group.image is not None
    }
