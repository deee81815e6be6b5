"""WebDataset shards: tar files whose members of one name belong together."""

import dataclasses
import errno
import functools
import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.sources.patterns import expand
from clip_jax.sources.records import (
    IMAGES,
    Pair,
    Record,
    as_captions,
    as_text,
    parsed,
    refuse,
)
from clip_jax.storage import absolute, storage

# How gzip's, bzip2's, xz's and zstd's files begin.
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class TarPairs:
    """The pairs of some shards, by an index of their members; nothing is unpacked.

    A pair is an image (`.jpg`, `.png`, ...) and, under the same name, a text (`.txt`, one caption)
    or a JSON document (`.json`, `caption` or `captions`). The key is that name.
    """

    def __init__(self, pattern: str | os.PathLike[str]):
        """Reads the headers and captions of all shards, but no picture.

        Args:
            pattern: a path with `*`, `?`, `[...]`, and braces: `pairs-{000..012}.tar`,
                `{train,more}-*.tar`.

        Raises:
            ValueError: lists all that is wrong: captions or images missing, keys twice.
            FileNotFoundError: nothing fits the pattern.
        """
        paths = expand(os.fspath(pattern))
        self._pairs: list[tuple[str, _Member, tuple[str, ...]]] = []
        problems, seen = [], set()
        for path in paths:
            index = _Index(path)
            if index.end:
                problems.append(f"{path}: {index.end}")
            for key, group in index.groups.items():
                try:
                    if group.image is None:
                        raise ValueError("no image")
                    captions = group.captions()
                    if key in seen:
                        raise ValueError(f"the key {key!r} has been there before")
                except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are such
                    problems.append(f"{path}: {key}: {error}")
                    continue
                seen.add(key)
                self._pairs.append((key, group.image, captions))
        refuse(os.fspath(pattern), problems)
        if not self._pairs:
            raise ValueError(f"{os.fspath(pattern)}: no pairs in {len(paths)} shards")

    def __len__(self) -> int:
        return len(self._pairs)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._pairs[index][2]

    def key(self, index: int) -> str:
        return self._pairs[index][0]

    def size(self, index: int) -> int:
        return self._pairs[index][1].size

    def __getitem__(self, index: int) -> Pair:
        key, image, captions = self._pairs[index]
        return Pair(key, image.read(), captions)


class TarShard:
    """The rows of one shard: a picture, a caption, or both, under one name, which is the key.

    What is wrong with some is their own problem: a second picture of a name is a row with that
    problem, and so is the rest of a file that was cut off.
    """

    def __init__(self, path: str, columns: Sequence[str] = ()):
        """Looks at the file's size, and reads nothing yet.

        Args:
            path: the tar file.
            columns: what to take along from the JSON documents; `cls` is the label in the member
                of that ending, where there is one.
        """
        self.name = os.path.basename(path)
        self._size = storage(path).size(path)
        self.sign = str(self._size)
        self._path, self._columns = path, columns

    def open(self) -> "TarRows":
        return TarRows(self._path, self._columns)

    def check(self) -> None:
        """Looks at the file's first bytes.

        Raises:
            OSError: it can't be read.
            ValueError: it is no tar file; says what it is.
        """
        if not self._size:
            raise ValueError(f"{self._path} is empty: there is no row to embed")
        head = storage(self._path).read_range(self._path, 0, tarfile.BLOCKSIZE)
        if head.startswith(COMPRESSED):
            raise ValueError(f"{self._path} is compressed: unpack it to a plain tar file first")
        if head == bytes(tarfile.BLOCKSIZE):
            return  # a whole one, without members
        try:
            tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ValueError(f"{self._path} is no tar file, or a damaged one: {error}") from None


class TarRows:
    """The index of a shard."""

    def __init__(self, path: str, columns: Sequence[str]):
        """Reads headers and captions.

        Raises:
            OSError: the file can't be read.
        """
        self._path, self._columns = absolute(path), columns
        index = _Index(path)
        self._groups = list(index.groups.items())
        self._problems = list(index.problems())
        if index.end:
            self._problems.append((os.path.basename(path), index.end))

    def __len__(self) -> int:
        return len(self._groups) + len(self._problems)

    def records(self, begin: int, end: int) -> Iterator[Record]:
        for key, group in self._groups[begin:end]:
            yield self._record(key, group)
        count = len(self._groups)
        for name, problem in self._problems[max(begin - count, 0) : max(end - count, 0)]:
            yield Record(as_text(name), problem=problem)

    def _record(self, key: str, group: "_Group") -> Record:
        caption, columns, problem = None, {}, None
        try:
            if group.txt is not None or group.json is not None:
                caption = group.captions()[0]
            if self._columns:
                document = group.document()
                if group.cls is not None:
                    document = document | {"cls": group.cls.decode().strip()}
                columns = {name: document.get(name) for name in self._columns}
        except ValueError as error:
            # Where there is a picture it can be embedded all the same.
            problem = str(error) if group.image is None else None
        read = path = None
        if group.image is not None:
            read, path = group.image.read, as_text(f"{self._path}/{group.image.name}")
        return Record(as_text(key), read, path, caption, columns, problem=problem)


def read_member(path: str, name: str) -> bytes:
    """The picture of that name in a tar file.

    Raises:
        OSError: there is none, or it can't be read.
    """
    member = _members(path).get(name)
    if member is None:
        raise FileNotFoundError(errno.ENOENT, "no such member", f"{path}/{name}")
    return member.read()


class _File:
    """A tar file that threads read, each at a place of its own."""

    def __init__(self, path: str):
        self.descriptor = -1
        self.descriptor = storage(path).descriptor(path)

    def __del__(self, close=os.close):  # bound here: as the process ends `os` is emptied
        if self.descriptor >= 0:
            close(self.descriptor)


@dataclasses.dataclass(frozen=True)
class _Member:
    """Where a picture lies in a tar file."""

    file: _File
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        # At an offset, so that threads don't move each other's place.
        data = os.pread(self.file.descriptor, self.size, self.offset)
        if len(data) < self.size:
            raise OSError(f"{as_text(self.name)}: the shard ends before the picture does")
        return data


@dataclasses.dataclass
class _Group:
    """The members of one name."""

    image: _Member | None = None
    txt: bytes | None = None
    json: bytes | None = None
    cls: bytes | None = None

    def captions(self) -> tuple[str, ...]:
        """One or more captions.

        Raises:
            ValueError: there is none.
        """
        if self.txt is not None:
            return as_captions(self.txt.decode().strip())
        if self.json is None:
            raise ValueError("no caption")
        document = self.document()
        return as_captions(document.get("captions", document.get("caption")))

    def document(self) -> dict[str, Any]:
        """The JSON document; an empty one where there is none.

        Raises:
            ValueError: it is damaged, or no object.
        """
        document = parsed(self.json or b"{}")
        if not isinstance(document, dict):
            raise ValueError("the JSON document is no object")
        return document


class _Index:
    """What is in a tar file.

    Attributes:
        groups: members that belong together, by their common name.
        end: what is wrong with the file's end, or an empty text.
    """

    def __init__(self, path: str):
        """Reads headers and captions; pictures that are cut off are left out.

        Raises:
            OSError: the file can't be read.
        """
        self.groups: dict[str, _Group] = {}
        self.end = ""
        self._surplus: list[str] = []
        self._astray: list[tuple[str, str, str]] = []  # name, key and what follows the first dot
        self._links: list[tuple[str, str]] = []
        self._lost: list[tuple[str, str]] = []
        file = _File(path)
        size = os.fstat(file.descriptor).st_size
        with os.fdopen(os.dup(file.descriptor), "rb") as stream:
            stream.seek(0)
            try:
                with tarfile.open(fileobj=stream, mode="r:") as tar:
                    for member in tar:
                        if member.isfile() and member.offset_data + member.size <= size:
                            self._add(tar, member, file)
                        elif member.islnk():
                            self._links.append((member.name, member.linkname))
                        elif member.issym():
                            folder = os.path.dirname(member.name)
                            self._links.append((member.name, f"{folder}/{member.linkname}"))
                    # Python takes a header that is cut off or damaged for the end.
                    stream.seek(tar.offset)
                    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        self.end = f"the tar file is damaged or cut off at byte {tar.offset}"
            except tarfile.TarError as error:
                self.end = f"the tar file is damaged or cut off: {error}"
        if self._links:
            self._follow_links()

    def problems(self) -> Iterator[tuple[str, str]]:
        """The names of pictures that are no row's picture, and why."""
        for name in self._surplus:
            yield name, "another picture of this name comes before it"
        for name, key, suffix in self._astray:
            group = self.groups.get(key)
            if group is None or group.image is None:  # else it goes with that one, a mask perhaps
                yield name, f"in shards a name ends at its first dot, and {suffix!r} is no picture"
        for name, target in self._lost:
            yield name, f"a link to {target}, which is no picture of this file"

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, file: _File) -> None:
        key, suffix = _parted(member.name)
        if suffix.rpartition(".")[2] in IMAGES:
            self._add_picture(_Member(file, member.name, member.offset_data, member.size))
        elif suffix in ("txt", "json", "cls"):
            content = tar.extractfile(member)
            assert content is not None  # it is a file
            group = self.groups.setdefault(key, _Group())
            if getattr(group, suffix) is None:  # the first one, as with pictures: they are a pair
                setattr(group, suffix, content.read())

    def _add_picture(self, image: _Member) -> None:
        key, suffix = _parted(image.name)
        if suffix not in IMAGES:
            self._astray.append((image.name, key, suffix))
            return
        group = self.groups.setdefault(key, _Group())
        if group.image is None:
            group.image = image
        else:
            self._surplus.append(image.name)

    def _follow_links(self) -> None:
        """Pictures that are links to others; to links, too, where these come before."""
        images = [group.image for group in self.groups.values() if group.image is not None]
        there = {os.path.normpath(image.name): image for image in images}
        for name, target in self._links:
            target = os.path.normpath(target.lstrip("/"))
            if _parted(name)[1].rpartition(".")[2] not in IMAGES:
                continue
            if (image := there.get(target)) is None:
                self._lost.append((name, target))
            else:
                there[os.path.normpath(name)] = image = dataclasses.replace(image, name=name)
                self._add_picture(image)


def _parted(name: str) -> tuple[str, str]:
    """What a member belongs to, and what it is: its name up to its first dot, and the rest."""
    folder, _, name = name.rpartition("/")
    stem, _, suffix = name.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


@functools.lru_cache(4)
def _members(path: str) -> dict[str, _Member]:
    return {
        as_text(group.image.name): group.image
        for group in _Index(path).groups.values()
        if group.image is not None
    }
