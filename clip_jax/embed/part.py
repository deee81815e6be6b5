"""A part, the output of one chunk: its rows, its errors and its metadata."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Expected:
    """What all parts of a job have in common.

    Attributes:
        towers: the tower of each column of embeddings, "image" or "text".
        dim: the dimension of the embeddings.
        dtype: the name of their dtype.
        others: the columns passed through.
        rows_per_part: the rows of a chunk; the last one of a shard may have fewer.
        shards: how many files the input has; None if an earlier version began the job.
    """

    towers: Mapping[str, str]
    dim: int
    dtype: str
    others: Sequence[str]
    rows_per_part: int
    shards: int | None

    def rows(self, name: str, shard_rows: int) -> int:
        """Returns how many rows a chunk has, given its name and its shard's number of rows."""
        begin = int(name.partition("-")[2]) * self.rows_per_part
        return max(min(self.rows_per_part, shard_rows - begin), 0)

    def has_columns(self, schema: Any, path: str, inside: bool) -> bool:
        """Whether a part's Arrow schema has the columns that it must have, of the right types.

        Args:
            schema: the schema.
            path: the name of the column of paths.
            inside: whether the embeddings are in the table, too.
        """
        import pyarrow as pa

        names, embeddings = schema.names, list(self.towers) if inside else []
        if not {"key", *embeddings, *self.others} <= {*names}:
            return False
        types = dict(zip(names, schema.types, strict=True))
        return all(
            types[name] == pa.string() for name in ("key", path, "caption") if name in types
        ) and all(
            pa.types.is_fixed_size_list(types[name])
            and types[name].list_size == self.dim
            and types[name].value_type.to_pandas_dtype() == np.dtype(self.dtype)
            for name in embeddings
        )


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of a chunk that could be embedded, in order.

    Attributes:
        columns: an Arrow table of key, path, caption and the columns passed through.
        embeddings: (rows, d) by column: `embedding`, and `text_embedding` if both are embedded.
        pictures: (rows,) uint64, digests of the pictures' files; None without pictures, or if an
            earlier version wrote the part.
    """

    columns: Any
    embeddings: Mapping[str, np.ndarray]
    pictures: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Error:
    """A row that could not be embedded.

    Attributes:
        row: its number in the shard, from 0.
        key: the row's key.
        reason: what is wrong with the row.
    """

    row: int
    key: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Finished:
    """The metadata of a valid part.

    Attributes:
        rows: how many rows are embedded.
        errors: how many rows could not be embedded.
        shard_rows: how many rows the shard has in all.
        failed: the numbers of the failed rows in the shard, from 0.
        lost: the failed rows whose reasons are lost.
        stamp: the version of the shard's files that the rows last matched; None if lost.
        mark: distinguishes it from other versions of the part.
        has_digests: whether the part holds the digests of its pictures.
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
        """Returns the numbers of the embedded rows, given the chunk's first row."""
        everything = range(begin, begin + self.rows + self.errors)
        return [row for row in everything if row not in self.failed] if self.failed else everything


@dataclasses.dataclass(frozen=True)
class Written:
    """A valid part, read from the output.

    Attributes:
        part: its rows.
        rows: the numbers of these rows in the shard, from 0.
        errors: the chunk's other rows.
        mark: distinguishes it from other versions of the part.
    """

    part: Part
    rows: Sequence[int]
    errors: Sequence[Error]
    mark: int


def _error_type() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
        ]
    )


def error_table(errors: Sequence[Error]) -> Any:
    """Returns errors as an Arrow table."""
    import pyarrow as pa

    rows = [dataclasses.asdict(error) for error in errors]
    return pa.Table.from_pylist(rows, schema=_error_type())


def is_error_table(schema: Any) -> bool:
    """Whether an Arrow schema is that of a table of errors."""
    expected = _error_type()
    return (schema.names, schema.types) == (expected.names, expected.types)
