"""What a part holds, and what it says of itself."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of a chunk that could be embedded, in order.

    Attributes:
        columns: an Arrow table of key, path, caption and what was taken along.
        embeddings: (rows, d) by column: `embedding`, and `text_embedding` beside it if both are
            embedded.
        pictures: (rows,) uint64, the digests of the pictures' files; None where none are embedded,
            or an earlier version has left them out.
    """

    columns: Any
    embeddings: Mapping[str, np.ndarray]
    pictures: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Error:
    """A row that could not be embedded.

    Attributes:
        row: counted from the shard's first.
        key: its key.
        reason: what is wrong with it.
    """

    row: int
    key: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a part that counts says of itself.

    Attributes:
        rows: those embedded.
        errors: those not.
        shard_rows: all rows of its shard.
        failed: the errors' rows, counted from the shard's first.
        lost: those of them whose reasons are lost.
        stamp: what told its shard from other versions of it, when these rows were last known to be
            the shard's; None if that is lost.
        mark: tells the part from others of its name.
        has_digests: whether it has those of its pictures.
    """

    rows: int
    errors: int
    shard_rows: int
    failed: frozenset[int] = frozenset()
    lost: frozenset[int] = frozenset()
    stamp: str | None = None
    mark: int = 0
    has_digests: bool = False

    def embedded(self, begin: int) -> Sequence[int]:
        """The rows embedded, of a chunk that begins there."""
        everything = range(begin, begin + self.rows + self.errors)
        return [row for row in everything if row not in self.failed] if self.failed else everything


@dataclasses.dataclass(frozen=True)
class Written:
    """A part that counts, as it was read.

    Attributes:
        part: its rows.
        rows: which they are, counted from the shard's first.
        errors: the chunk's other rows.
        mark: tells it from others of its name.
    """

    part: Part
    rows: Sequence[int]
    errors: Sequence[Error]
    mark: int


def _error_type() -> Any:
    """The Arrow schema of a table of errors."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
        ]
    )


def error_table(errors: Sequence[Error]) -> Any:
    """Errors as an Arrow table."""
    import pyarrow as pa

    rows = [dataclasses.asdict(error) for error in errors]
    return pa.Table.from_pylist(rows, schema=_error_type())
