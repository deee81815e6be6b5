"""WebDataset shards: tar files in which members with the same stem form a row."""

import dataclasses
import errno
import functools
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.sources.faults import guarded, told
from clip_jax.sources.files import ListedFile
from clip_jax.sources.members import File, Member, Read
from clip_jax.sources.patterns import expand
from clip_jax.sources.records import (
    IMAGES,
    Pair,
    Record,
    as_captions,
    as_key,
    as_text,
    parsed,
    refuse,
)
from clip_jax.storage import MOST_OF_A_PICTURE, absolute, is_remote, storage

# Magic numbers of gzip, bzip2, xz and zstd.
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
# Suffixes of files that must be unpacked or decrypted first.
PACKED = ("gz", "bz2", "xz", "lzma", "zst", "lz4", "br", "z", "zip", "gpg", "pgp", "age", "enc")
# The most bytes of a caption or a header; tarfile would read any number a damaged header asks for.
MOST_OF_A_TEXT = 1 << 26


class TarPairs:
    """The pairs of some shards, read through an index of their members without unpacking.

    A pair is an image (`.jpg`, `.png`, ...) and, with the same stem, a text (`.txt`, one caption)
    or a JSON document (`.json`, `caption` or `captions`). The key is that stem.
    """

    def __init__(self, pattern: str | os.PathLike[str]):
        """Reads the headers and captions of all shards, but no picture.

        Args:
            pattern: a path with `*`, `?`, `[...]`, and braces: `pairs-{000..012}.tar`,
                `{train,more}-*.tar`.

        Raises:
            ValueError: captions or images are missing, or keys not unique; lists all problems.
            FileNotFoundError: no file matches the pattern.
        """
        paths = expand(os.fspath(pattern))
        self._pairs: list[tuple[str, Member, tuple[str, ...]]] = []
        problems, seen = [], set()
        for path in paths:
            index = _Index(path)
            if index.end:
                problems.append(f"{path}: {index.end}")
            lost = {_parted(name)[0]: problem for name, problem in index.problems()}
            for key, group in index.groups.items():
                try:
                    if group.image is None:
                        raise ValueError(lost.get(key, "no image"))
                    captions = group.captions()
                    if key in seen:
                        raise ValueError(f"the key {key!r} has been there before")
                except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
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
        head = storage(self._path).read_range(self._path, 0, tarfile.BLOCKSIZE)
        if head.startswith(COMPRESSED):
            raise ValueError(f"{self._path} is compressed: unpack it to a plain tar file first")
        if head == bytes(tarfile.BLOCKSIZE):
            return  # complete, but without members
        try:
            tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise ValueError(f"{self._path} is no tar file, or a damaged one: {error}") from None


class TarRows:
    """The rows of an open shard."""

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
        count = len(self._groups)
        for i, (key, group) in enumerate(self._groups[begin:end]):
            yield self._record(key, group, opens=i == 0)
        for name, problem in self._problems[max(begin - count, 0) : max(end - count, 0)]:
            yield Record(as_key(name), problem=problem)

    def keys(self, begin: int, end: int) -> list[str | None]:
        keys: list[str | None] = [as_key(key) for key, _ in self._groups[begin:end]]
        return keys + [None] * (min(end, len(self)) - max(begin, len(self._groups)))

    def _record(self, key: str, group: "_Group", opens: bool) -> Record:
        caption, columns, problem = None, {}, None
        try:
            if group.txt is not None or group.json is not None:
                caption = group.captions()[0]
            if self._columns:
                document = group.document()
                if group.cls is not None:
                    document = document | {"cls": _decoded(group.cls, "label")}
                columns = {name: document.get(name) for name in self._columns}
        except ValueError as error:
            # If there is a picture, it can be embedded nevertheless.
            problem = str(error) if group.image is None else None
        read = path = None
        if group.image is not None:
            read, path = group.image.read, as_key(f"{self._path}/{group.image.name}")
        return Record(as_key(key), read, path, caption, columns, problem=problem, opens=opens)


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


@dataclasses.dataclass
class _Group:
    """The members with one stem; `refused` says why a text among them was not read."""

    image: Member | None = None
    txt: bytes | None = None
    json: bytes | None = None
    cls: bytes | None = None
    refused: str = ""

    def captions(self) -> tuple[str, ...]:
        """Returns one or more captions.

        Raises:
            ValueError: there is none.
        """
        if self.txt is not None:
            return as_captions(_decoded(self.txt, "caption"))
        if self.json is None:
            raise ValueError(self.refused or "no caption")
        document = self.document()
        return as_captions(document.get("captions", document.get("caption")))

    def document(self) -> dict[str, Any]:
        """Returns the JSON document; an empty one if there is none.

        Raises:
            ValueError: it is damaged or not an object.
        """
        document = parsed(self.json or b"{}")
        if not isinstance(document, dict):
            raise ValueError("the JSON document is no object")
        return document


class _Index:
    """The members of a tar file.

    Attributes:
        groups: members that belong together, by their stem.
        end: what is wrong with the end of the file, or an empty string.
    """

    def __init__(self, path: str):
        """Reads headers and captions; leaves out truncated pictures.

        Raises:
            OSError: the file can't be read.
        """
        self.groups: dict[str, _Group] = {}
        self.end = ""
        self._surplus: list[str] = []
        self._astray: list[tuple[str, str, str]] = []  # name, stem and suffix
        self._links: list[tuple[str, str]] = []
        self._lost: list[tuple[str, str]] = []
        file = File(path)
        try:
            with file.reading() as read, tarfile.open(fileobj=_Stream(read), mode="r:") as tar:
                place = 0
                for member in tar:
                    if tar.offset <= place:  # a negative size would make an endless loop
                        raise ValueError(f"a header at byte {member.offset} leads back")
                    place = tar.offset
                    self._add(member, file, read)
                # tarfile treats a truncated or damaged header as the end.
                if read(tarfile.BLOCKSIZE, tar.offset) != bytes(tarfile.BLOCKSIZE):
                    self.end = f"the tar file is damaged or cut off at byte {tar.offset}"
        except Exception as error:  # damaged headers make tarfile recurse, overflow, ...
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a bad offset
                raise
            self.end = f"the tar file is damaged or cut off: {told(error)}"
            if file.read(6, 0).startswith(COMPRESSED):
                self.end = "it is compressed: unpack it to a plain tar file first"
        if self._links:
            self._follow_links()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yields the names of pictures that belong to no row, each with the reason."""
        for name in self._surplus:
            yield name, "another picture of this name comes before it"
        for name, key, suffix in self._astray:
            group = self.groups.get(key)
            if group is None or group.image is None:  # else it accompanies that, as a mask does
                yield name, f"in shards a name ends at its first dot, and {suffix!r} is no picture"
        yield from self._lost

    def _add(self, member: tarfile.TarInfo, file: File, read: Read) -> None:
        key, suffix = _parted(member.name)
        last = suffix.rpartition(".")[2]
        kept, packed = suffix, ""
        if last in PACKED:
            kept, _, packed = suffix.rpartition(".")
        is_picture = kept.rpartition(".")[2] in IMAGES
        if not is_picture and kept not in _TEXTS or member.isdir():
            return
        if member.islnk():
            self._links.append((member.name, member.linkname))
            return
        if member.issym():
            folder = os.path.dirname(member.name)
            self._links.append((member.name, f"{folder}/{member.linkname}"))
            return
        is_whole = member.offset_data + member.size <= file.size
        if member.isfile() and not member.issparse() and not is_whole:
            return  # truncated: `end` reports it
        problem = _unreadable(member, packed, MOST_OF_A_PICTURE if is_picture else MOST_OF_A_TEXT)
        if is_picture and problem:
            self._lost.append((member.name, problem))
        elif is_picture:
            self._add_picture(Member(file, member.name, member.offset_data, member.size))
        else:
            group = self.groups.setdefault(key, _Group())
            if problem:
                group.refused = group.refused or f"{as_text(member.name)}: {problem}"
            elif getattr(group, kept) is None:  # the first one counts, as with pictures
                setattr(group, kept, read(member.size, member.offset_data))

    def _add_picture(self, image: Member) -> None:
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
        """Adds pictures that are links to other pictures or to earlier links."""
        images = [group.image for group in self.groups.values() if group.image is not None]
        there = {os.path.normpath(image.name): image for image in images}
        for name, target in self._links:
            target = os.path.normpath(target.lstrip("/"))
            if _parted(name)[1].rpartition(".")[2] not in IMAGES:
                continue
            if (image := there.get(target)) is None:
                problem = f"a link to {target}, which is no picture of this file"
                self._lost.append((name, problem))
            else:
                there[os.path.normpath(name)] = image = dataclasses.replace(image, name=name)
                self._add_picture(image)


class _Stream(io.RawIOBase):
    """A tar file for tarfile, which refuses reads that are larger than any valid header."""

    def __init__(self, read: Read):
        self._read, self._place, self._empty = read, 0, 0

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_OF_A_TEXT:
            raise ValueError(f"a header of {size:,} bytes")
        data = self._read(size, self._place)
        self._place += len(data)
        self._empty = 0 if data else self._empty + 1
        if self._empty > 100:  # tarfile would wait forever for a sparse map
            raise ValueError("a header that is cut off")
        return data

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        if not 0 <= place < 1 << 62:
            raise ValueError(f"a header that leads to byte {place:,}")
        self._place = place
        return place

    def tell(self) -> int:
        return self._place


_TEXTS = ("txt", "json", "cls")


def _unreadable(member: tarfile.TarInfo, packed: str, most: int) -> str:
    """Returns why a member can't be read from the tar file; an empty string if it can."""
    if member.issparse():  # its bytes are not contiguous
        return "a sparse member: pack the shard without tar's --sparse"
    if not member.isfile():
        return f"no file, but a member of type {member.type.decode('latin-1')!r}"
    if packed:
        return f"packed or encrypted as .{packed}: unpack it before it goes into the shard"
    if member.size > most:
        return f"{member.size:,} bytes are more than the {most:,} that are read"
    return ""


def _decoded(text: bytes, what: str) -> str:
    try:
        return text.decode().strip()
    except UnicodeDecodeError:
        raise ValueError(f"the {what} is not UTF-8") from None


def _parted(name: str) -> tuple[str, str]:
    """Splits a member's name at its first dot into stem and suffix."""
    folder, _, name = name.rpartition("/")
    stem, _, suffix = name.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


def _version(path: str) -> tuple[int, int] | None:
    if is_remote(path):
        return None
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(4)
def _members(path: str, version: tuple[int, int] | None) -> dict[str, Member]:
    return {
        group.image.name: group.image
        for group in _Index(path).groups.values()
        if group.image is not None
    }
