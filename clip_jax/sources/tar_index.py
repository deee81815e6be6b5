"""The index of a tar file: its members by name, read from headers alone."""

import dataclasses
import errno
import io
import os
import tarfile
from collections.abc import Iterator
from typing import Any

from clip_jax.sources.faults import problem_of
from clip_jax.sources.members import File, Member, Read
from clip_jax.sources.records import IMAGES, as_captions, as_text, parsed
from clip_jax.sources.utf8 import BOM, check_utf_8
from clip_jax.storage import MOST_OF_A_PICTURE

# Magic numbers of bzip2, xz and zstd.
COMPRESSED = (b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
# What is said of those.
UNPACK = "it is compressed: unpack it to a plain tar file first, or compress it with gzip"
# Suffixes of shards.
SHARDS = ("tar", "tar.gz", "tgz")
# Suffixes of files that must be unpacked or decrypted first.
PACKED = ("gz", "bz2", "xz", "lzma", "zst", "lz4", "br", "z", "zip", "gpg", "pgp", "age", "enc")
# The most bytes of a caption or a header; tarfile would read any number a damaged header asks for.
MOST_OF_A_TEXT = 1 << 26


@dataclasses.dataclass
class Group:
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
            return as_captions(decoded(self.txt, "caption"))
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

    def labelled_document(self) -> dict[str, Any]:
        """Returns the JSON document, with the label as `cls` where there is one.

        Raises:
            ValueError: one of them is damaged.
        """
        document = self.document()
        return document if self.cls is None else document | {"cls": decoded(self.cls, "label")}


def is_shard(name: str) -> bool:
    """Whether a file is named as shards are, whatever the case of its suffix."""
    return name.lower().endswith(tuple(f".{suffix}" for suffix in SHARDS))


class TarIndex:
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
        self.groups: dict[str, Group] = {}
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
                elif not _is_padding(read, tar.offset, file.size):
                    self.end = (
                        f"more data follows the end of the tar file at byte {tar.offset}: it has a "
                        "hole, or is several tar files in one; write it anew"
                    )
        except Exception as error:  # damaged headers make tarfile recurse, overflow, ...
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a bad offset
                raise
            self.end = f"the tar file is damaged or cut off: {problem_of(error)}"
            if file.read(6, 0).startswith(COMPRESSED):
                self.end = UNPACK
        self.end = file.problem or self.end
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
        key, suffix = parted(member.name)
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
            group = self.groups.setdefault(key, Group())
            if problem:
                group.refused = group.refused or f"{as_text(member.name)}: {problem}"
            elif getattr(group, kept) is None:  # the first one counts, as with pictures
                setattr(group, kept, read(member.size, member.offset_data))

    def _add_picture(self, image: Member) -> None:
        key, suffix = parted(image.name)
        if suffix not in IMAGES:
            self._astray.append((image.name, key, suffix))
            return
        group = self.groups.setdefault(key, Group())
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
            if parted(name)[1].rpartition(".")[2] not in IMAGES:
                continue
            if (image := there.get(target)) is None:
                problem = f"a link to {target}, which is no picture of this file"
                self._lost.append((name, problem))
            else:
                there[os.path.normpath(name)] = image = dataclasses.replace(image, name=name)
                self._add_picture(image)


def _is_padding(read: Read, begin: int, end: int) -> bool:
    """Whether a file holds nothing but zeros from `begin` on; usually 10 kB at most."""
    for place in range(begin, end, _PIECE):
        if any(read(min(_PIECE, end - place), place)):
            return False
    return True


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
_PIECE = 1 << 20


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


def decoded(text: bytes, what: str) -> str:
    """Decodes and strips a text; raises ValueError if it is not UTF-8."""
    try:
        check_utf_8(text)
        return text.removeprefix(BOM).decode().strip()
    except ValueError:
        raise ValueError(f"the {what} is not UTF-8") from None


def parted(name: str) -> tuple[str, str]:
    """Splits a member's name at its first dot into stem and suffix."""
    folder, _, name = name.rpartition("/")
    stem, _, suffix = name.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()
