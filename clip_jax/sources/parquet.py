"""Rows of a Parquet file, read in a stream: no more of it is in memory than a few rows."""

import os
from collections.abc import Iterator
from typing import Any

from clip_jax.sources.lines import Columns, record_of
from clip_jax.sources.records import Record
from clip_jax.storage import storage

# Rows that are read at one time: pictures are large.
ROWS = 32


class ParquetShard:
    """The rows of a Parquet file with pictures (bytes or paths), captions, or both."""

    def __init__(self, path: str, columns: Columns):
        """Looks at the file's size, and reads nothing yet."""
        self.name = os.path.basename(path)
        self.size = storage(path).size(path)
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
        self._times = [name for name in columns.others if self._is_time(name)]
        metadata = self._file.metadata
        self._groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def __len__(self) -> int:
        return sum(self._groups)

    def _is_time(self, name: str) -> bool:
        import pyarrow.types

        schema = self._file.schema_arrow
        return name in schema.names and pyarrow.types.is_temporal(schema.field(name).type)

    def records(self, begin: int, end: int) -> Iterator[Record]:
        first = number = 0
        wanted: list[int] = []
        for group, count in enumerate(self._groups):
            if first < end and first + count > begin:
                if not wanted:
                    number = first
                wanted.append(group)
            first += count
        if not wanted:
            return
        batches = self._file.iter_batches(ROWS, row_groups=wanted, columns=self._names)
        for batch in batches:
            if number >= end:
                return
            skip = min(max(begin - number, 0), len(batch))
            # Python's times are coarser than Arrow's: those that are taken along stay Arrow's.
            times = {name: batch.column(name) for name in self._times}
            kept = batch.drop_columns(self._times) if times else batch
            for i, row in enumerate(kept.slice(skip).to_pylist(), start=number + skip):
                if i >= end:
                    return
                row |= {name: column[i - number] for name, column in times.items()}
                name = f"{os.path.basename(self._path)}:{i}"
                yield record_of(row, name, self._path, self._columns)
            number += len(batch)


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
