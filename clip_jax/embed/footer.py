"""The footer of a part's file: everything that is read of its metadata, checked in one place."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clip_jax.errors import Unreachable, is_exhausted

# Keys of the metadata.
ABOUT, FILE = b"clip_jax", b"clip_jax.file"
# The field of `FILE` that holds the footer's CRC in hexadecimal digits, and what it is a CRC of.
SEAL, UNSEALED = "footer", "0" * 8
_SEAL = f'"{SEAL}": "'.encode()


@dataclasses.dataclass(frozen=True)
class Footer:
    """What a file says of itself.

    Attributes:
        fingerprint: the job's.
        chunk: the name of the chunk that the file belongs to; None if an earlier version wrote it.
        rows: how many rows the file has.
        embedded: how many rows of the chunk are embedded.
        errors: how many could not be.
        shard_rows: how many rows the shard has.
        failed: the numbers of the failed rows in the shard; None if an earlier version wrote it.
        beside: the size and CRC of each file beside it, by the column of embeddings.
        schema: the file's Arrow schema.
        groups: how many rows each row group has.
        end: the offset of the end of the content.
        crc32: the CRC of the content.
        at: the offsets of the embeddings of each row group, by column; -1 if unknown.
        digests: the offset of the pictures' digests; None if it has none.
        mark: the CRC of the footer, which distinguishes it from other versions of the file.
        is_sealed: whether the footer's own CRC was there, and was right.
    """

    fingerprint: str
    chunk: str | None
    rows: int
    embedded: int
    errors: int
    shard_rows: int
    failed: tuple[int, ...] | None
    beside: Mapping[str, Mapping[str, int]]
    schema: Any
    groups: Sequence[int]
    end: int
    crc32: int
    at: Mapping[str, Sequence[int]]
    digests: int | None
    mark: int
    is_sealed: bool


def read_footer(data: bytes) -> Footer | None:
    """Reads a footer; returns None if it is damaged.

    Args:
        data: the bytes of a file, or of its end from the footer on.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    is_sealed = _is_as_sealed(data)  # before Arrow reads it, which damage may crash
    if is_sealed is False:
        return None
    try:
        found = pq.read_metadata(pa.BufferReader(data))
        about, file = (json.loads(found.metadata[key]) for key in (ABOUT, FILE))
        if not (_fits(about, _ABOUT) and _fits(file, _FILE)):
            return None
        if "chunk" in about and not is_sealed:  # no version has written that
            return None
        return Footer(
            about["fingerprint"],
            about.get("chunk"),
            found.num_rows,
            about["rows"],
            about["errors"],
            about["shard_rows"],
            tuple(about["failed"]) if "failed" in about else None,
            about.get("beside", {}),
            found.schema.to_arrow_schema(),
            [found.row_group(i).num_rows for i in range(found.num_row_groups)],
            file["end"],
            file["crc32"],
            file.get("at", {}),
            file.get("pictures"),
            mark_of(data),
            bool(is_sealed),
        )
    except Exception as error:
        if not is_damage(error):
            raise
        return None


def is_damage(error: Exception) -> bool:
    """Whether an error of reading a file's bytes means that these are damaged."""
    import pyarrow as pa

    if isinstance(error, Unreachable) or is_exhausted(error):
        return False
    # Arrow's own errors, and what damaged documents and footers make of Python's.
    kinds = (OSError, pa.ArrowException, ValueError, TypeError, LookupError, AttributeError)
    return isinstance(error, (*kinds, ArithmeticError, NotImplementedError, RecursionError))


def sealed(footer: bytes) -> bytes:
    """Returns a footer with its CRC in the place that was kept for it."""
    place = footer.rindex(_SEAL) + len(_SEAL)
    return b"".join((footer[:place], b"%08x" % zlib.crc32(footer), footer[place + len(UNSEALED) :]))


def mark_of(data: bytes) -> int:
    """Returns the CRC of a part's footer, which holds the CRC of everything else."""
    return zlib.crc32(data[-footer_length(data) :])


def footer_length(data: bytes) -> int:
    """Returns the bytes of a Parquet file's footer, its length and magic number included."""
    return int.from_bytes(data[-8:-4], "little") + 8


def _is_as_sealed(data: bytes) -> bool | None:
    """Whether the footer's CRC is right; None if there is none."""
    footer = data[-footer_length(data) :]
    if (place := footer.rfind(_SEAL)) < 0:
        return None
    begin, end = place + len(_SEAL), place + len(_SEAL) + len(UNSEALED)
    crc = zlib.crc32(footer[:begin] + UNSEALED.encode() + footer[end:])
    return footer[begin:end] == b"%08x" % crc


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _are_offsets(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= -1 for n in value)


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_count(value.get(key)) for key in ("bytes", "crc32"))


def _all(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


# The fields of both documents, each with a check of its value and whether every version wrote it.
_ABOUT = {
    "fingerprint": (lambda value: isinstance(value, str), True),
    "rows": (_is_count, True),
    "errors": (_is_count, True),
    "shard_rows": (_is_count, True),
    "chunk": (lambda value: isinstance(value, str), False),
    "failed": (_are_counts, False),
    "beside": (_all(_is_file), False),
}
_FILE = {
    "end": (_is_count, True),
    "crc32": (_is_count, True),
    "at": (_all(_are_offsets), False),
    "pictures": (_is_count, False),
}


def _fits(document: Any, fields: Mapping[str, tuple[Callable[[Any], bool], bool]]) -> bool:
    return isinstance(document, dict) and all(
        fits(document[name]) if name in document else not is_needed
        for name, (fits, is_needed) in fields.items()
    )
