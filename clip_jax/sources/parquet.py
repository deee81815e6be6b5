"""Rows of a Parquet file, read in a stream: no more of it is in memory than a few rows."""

import concurrent.futures
import os
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.sources.files import ListedFile
from clip_jax.sources.lines import Columns, as_key, record_of
from clip_jax.sources.records import Record
from clip_jax.storage import Unreachable, storage

# Rows that are read at one time: pictures are large.
ROWS = 32


class ParquetShard(ListedFile):
    """The rows of a Parquet file with pictures (bytes or paths), captions, or both."""

    def __init__(self, path: str, columns: Columns):
        """Looks at the file's size, and reads nothing yet."""
        super().__init__(path)
        self.sign = str(self.stat.size)
        self._path, self._columns = path, columns

    def open(self) -> "ParquetRows":
        return ParquetRows(self._path, self._columns)

    def names(self) -> list[str]:
        """The columns that there are."""
        return self.schema().names

    def schema(self) -> Any:
        """The Arrow schema."""
        return _open(self._path).schema_arrow


class ParquetRows:
    """A Parquet file that is open."""

    def __init__(self, path: str, columns: Columns):
        """Reads the footer.

        Raises:
            OSError: the file can't be read.
            ValueError: it is no Parquet file.
        """
        self._path, self._columns, self._file = path, columns, _open(path)
        wanted = {columns.image, columns.caption, columns.key, *columns.others}
        self._names = [name for name in self._file.schema_arrow.names if name in wanted]
        schema = self._file.schema_arrow
        others = [name for name in columns.others if name in schema.names]
        self._times = [name for name in others if _has_times(schema.field(name).type)]
        metadata = self._file.metadata
        self._groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def __len__(self) -> int:
        return sum(self._groups)

    def records(self, begin: int, end: int) -> Iterator[Record]:
        wanted, number = self._groups_with(begin, end)
        if not wanted:
            return
        batches = self._file.iter_batches(ROWS, row_groups=wanted, columns=self._names)
        for batch in batches:
            if number >= end:
                return
            skip = min(max(begin - number, 0), len(batch))
            # Python's times are coarser than Arrow's: what holds some is taken along as Arrow's.
            times = {name: batch.column(name) for name in self._times}
            kept = batch.drop_columns(self._times) if times else batch
            for i, row in enumerate(kept.slice(skip).to_pylist(), start=number + skip):
                if i >= end:
                    return
                row |= {name: column[i - number] for name, column in times.items()}
                name = f"{os.path.basename(self._path)}:{i}"
                yield record_of(row, name, self._path, self._columns)
            number += len(batch)

    def keys(self, begin: int, end: int) -> list[str | None]:
        # By a column of keys or of paths; what has neither is told by its number alone.
        schema, keys = self._file.schema_arrow, []
        column = self._columns.key
        if column not in self._names:
            column = self._columns.image
            if column not in self._names or not _is_text(schema.field(column).type):
                return [None] * (end - begin)
        wanted, number = self._groups_with(begin, end)
        for batch in self._file.iter_batches(row_groups=wanted, columns=[column]):
            values = batch.column(0).slice(max(begin - number, 0), end - max(begin, number))
            keys += [None if value in (None, "") else as_key(value) for value in values.to_pylist()]
            number += len(batch)
            if number >= end:
                break
        return keys

    def _groups_with(self, begin: int, end: int) -> tuple[list[int], int]:
        """The row groups that hold those rows, and the first row of the first of them."""
        first = number = 0
        wanted: list[int] = []
        for group, count in enumerate(self._groups):
            if first < end and first + count > begin:
                if not wanted:
                    number = first
                wanted.append(group)
            first += count
        return wanted, number


def read_row(path: str, number: int, column: str) -> bytes:
    """The picture in a row of a Parquet file.

    Raises:
        OSError: it can't be read.
        ValueError: there is none.
    """
    rows = ParquetRows(path, Columns(image=column))
    for record in rows.records(number, number + 1):
        if record.read is not None:
            return record.read()
    raise ValueError(f"{path}: row {number} has no picture in the column {column!r}")


def column_types(shards: Sequence[ParquetShard], names: Sequence[str]) -> dict[str, Any]:
    """The Arrow types that hold what these columns hold in all files.

    A file that can't be read has no say; it shows as it is embedded.

    Raises:
        ValueError: two files have types of which none holds the other, or one can't be taken along.
        OSError: a store can't be reached.
    """
    import pyarrow as pa

    def schema_of(shard: ParquetShard) -> Any:
        try:
            return shard.schema()
        except Unreachable:
            raise
        except (OSError, ValueError):
            return pa.schema([])

    found: dict[str, tuple[Any, str]] = {}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        schemas = pool.map(schema_of, shards if names else [])
        for shard, schema in zip(shards, schemas, strict=False):
            for name in [name for name in names if name in schema.names]:
                type_ = schema.field(name).type
                known, first = found.setdefault(name, (type_, shard.name))
                if type_ != known:
                    found[name] = _common(name, (known, first), (type_, shard.name)), shard.name
    for name, (type_, _) in found.items():
        try:
            pa.table({name: pa.array([None], type_)}).take([0])
        except pa.ArrowNotImplementedError:
            raise ValueError(
                f"the column {name!r} is {type_}, which can't be taken along"
            ) from None
    return {name: type_ for name, (type_, _) in found.items()}


def _common(name: str, one: tuple[Any, str], other: tuple[Any, str]) -> Any:
    import pyarrow as pa

    schemas = [pa.schema([(name, type_)]) for type_, _ in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        raise ValueError(
            f"the column {name!r} is {one[0]} in {one[1]} and {other[0]} in {other[1]}: write it "
            "as one type"
        ) from None


def _is_text(type_: Any) -> bool:
    from pyarrow import types

    return types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_)


def _has_times(type_: Any) -> bool:
    import pyarrow.types

    return pyarrow.types.is_temporal(type_) or any(
        _has_times(type_.field(i).type) for i in range(type_.num_fields)
    )


def _open(path: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Parquet files need pyarrow: pip install 'clip-jax-flax[embed]'"
        ) from None
    try:
        # In small pieces: the only row group may be the whole file.
        return pyarrow.parquet.ParquetFile(
            storage(path).arrow(path), pre_buffer=False, buffer_size=1 << 22
        )
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file, or a damaged one: {error}") from None
