"""The file of an approximate index: lists of codes, and a head that says what they are.

    lists      codes, then row numbers (int64), of one list after another, as faiss maps them
    head       faiss's serialised index, trained and without rows
    sizes      rows of each list, uint64
    checks     CRC-32 of each list, uint32
    manifest   JSON: the job, its parts, the kind
    trailer    the lengths of all five, and the CRC-32 of what follows the lists

The head is checked whenever it is read, a list before its first use: a search of a large index
reads little of it.
"""

import dataclasses
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from clip_jax.storage import storage

NAME = "index.faiss"
MAGIC = b"clipidx1"
# The lengths of lists, head, sizes, checks and manifest; the CRC; the magic number.
_TRAILER = struct.Struct("<5QI8s")
# Bytes of a row's number in a list.
NUMBER = 8


class DamagedIndex(ValueError):
    """The file of an index is damaged."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an index is of.

    Attributes:
        fingerprint: the fingerprint of the job.
        parts: of each part its name, its rows, and the mark of its content, in order.
        kind: the kind of the index.
        code_size: bytes of a row's code.
        faiss: the version of faiss that has written it.
    """

    fingerprint: str
    parts: list[list[Any]]
    kind: str
    code_size: int
    faiss: str

    @property
    def rows(self) -> int:
        """How many rows the index has."""
        return sum(rows for _, rows, _ in self.parts)


@dataclasses.dataclass(frozen=True)
class Head:
    """All of an index but its lists.

    Attributes:
        manifest: what it is of.
        index: the bytes of faiss's index without rows.
        sizes: (lists,) uint64, the rows of each list.
        checks: (lists,) uint32, the CRC-32 of each list.
    """

    manifest: Manifest
    index: bytes
    sizes: np.ndarray
    checks: np.ndarray

    @property
    def offsets(self) -> np.ndarray:
        """(lists + 1,) int64, where the lists begin in the file, and where they end."""
        width = self.manifest.code_size + NUMBER
        return np.concatenate([[0], np.cumsum(self.sizes.astype(np.int64) * width)])


def path_of(out: str) -> str:
    """Returns the path of the index of an output folder."""
    return f"{out}/{NAME}"


def write_head(file: BinaryIO, head: Head) -> None:
    """Writes what follows the lists."""
    manifest = json.dumps(dataclasses.asdict(head.manifest)).encode()
    checks, sizes = head.checks.astype("<u4").tobytes(), head.sizes.astype("<u8").tobytes()
    parts = (head.index, sizes, checks, manifest)
    crc = 0
    for part in parts:
        file.write(part)
        crc = zlib.crc32(part, crc)
    lengths = (int(head.offsets[-1]), *map(len, parts))
    file.write(_TRAILER.pack(*lengths, crc, MAGIC))


def read_head(path: str) -> Head:
    """Reads and checks what follows the lists.

    Raises:
        FileNotFoundError: there is no index.
        DamagedIndex: it is damaged or cut.
        OSError: it can't be read.
    """
    where = storage(path)
    size = where.size(path)
    trailer = where.read_range(path, max(size - _TRAILER.size, 0), size)
    if len(trailer) < _TRAILER.size or not trailer.endswith(MAGIC):
        raise DamagedIndex(path)
    begin, *lengths, crc, _ = _TRAILER.unpack(trailer)
    if begin + sum(lengths) + _TRAILER.size != size:
        raise DamagedIndex(path)
    data = where.read_range(path, begin, size - _TRAILER.size)
    if zlib.crc32(data) != crc:
        raise DamagedIndex(path)
    ends = np.cumsum(lengths).tolist()
    index, sizes, checks, manifest = (
        data[end - length : end] for end, length in zip(ends, lengths, strict=True)
    )
    head = Head(
        Manifest(**_fields(json.loads(manifest))),
        index,
        np.frombuffer(sizes, "<u8"),
        np.frombuffer(checks, "<u4"),
    )
    if head.offsets[-1] != begin or head.sizes.sum() != head.manifest.rows:
        raise DamagedIndex(path)
    return head


def _fields(found: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: found[field.name] for field in dataclasses.fields(Manifest)}
