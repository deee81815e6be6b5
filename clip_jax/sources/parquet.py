"""Rows of a Parquet file, streamed: only a few rows are in memory at a time."""

import bisect
import concurrent.futures
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clip_jax.sources.batches import fields_of, rows_of
from clip_jax.sources.columns import Columns
from clip_jax.sources.faults import guarded, problem_of
from clip_jax.sources.features import class_name, class_names, is_text
from clip_jax.sources.files import ListedFile
from clip_jax.sources.lines import key_of, record
from clip_jax.sources.records import Record
from clip_jax.storage import Refused, Unreachable, storage

# Rows read at a time; few, because pictures are large.
ROWS = 32
# Bytes of these rows, at most: a column of one large value, as of a picture that has many captions,
# holds it once, and every row of it that is read is another copy.
MOST_IN_ROWS = 1 << 28
# A failed allocation of more bytes is blamed on a damaged file.
MOST_AT_ONCE = 1 << 28
# A row group of more rows, a hundred times the usual number, is checked.
MOST_ROWS = 100 << 20


class ParquetShard(ListedFile):
    """The rows of a Parquet file with pictures (bytes or paths), captions, or both."""

    def __init__(self, path: str, columns: Columns):
        """Gets the file's size; reads nothing yet."""
        super().__init__(path)
        self.fingerprint = str(self.stat.size)
        self._path, self._columns = path, columns

    def open(self) -> "ParquetRows":
        with guarded(self._path):
            return ParquetRows(self._path, self._columns)

    def names(self) -> list[str]:
        """Returns the names of the columns.

        Raises:
            OSError: the file can't be read.
            ValueError: it is no Parquet file; or the key column holds times that can't be written
                as text.
        """
        with guarded(self._path):
            file = open_parquet(self._path)
            if self._columns.key in file.schema_arrow.names:
                _check_key(file, self._columns.key)
            return file.schema_arrow.names

    def schema(self) -> Any:
        """Returns the Arrow schema; raises OSError or ValueError, as `open`."""
        with guarded(self._path):
            return open_parquet(self._path).schema_arrow


class ParquetRows:
    """The rows of an open Parquet file."""

    def __init__(self, path: str, columns: Columns):
        """Reads the footer.

        Raises:
            OSError: the file can't be read.
            ValueError: it is no Parquet file.
        """
        self._path, self._columns, self._file = path, columns, open_parquet(path)
        wanted = {columns.image, columns.caption, columns.key, *columns.others}
        self._names = [name for name in self._file.schema_arrow.names if name in wanted]
        schema = self._file.schema_arrow
        others = [name for name in columns.others if name in schema.names]
        self._times = [name for name in others if _has_times(schema.field(name).type)]
        self._classes = {name: names for name in others if (names := class_names(schema, name))}
        self._groups = _rows_of_groups(path, self._file.metadata)

    def __len__(self) -> int:
        return sum(self._groups)

    def records(self, begin: int, end: int) -> Iterator[Record]:
        wanted, ends = self._groups_with(begin, end)
        number = begin
        try:
            for records in self._batches(wanted, begin, end):
                yield from records
                number += len(records)
            return
        except Exception as error:  # Arrow raises errors of any kind
            _problem_of(error)  # raises if the machine is at fault
        # Row groups are independent: after an error, only the rest of that group is lost.
        for group in range(bisect.bisect_right(ends, number), wanted.stop):
            last, problem = min(ends[group], end), "the file has fewer rows than it said"
            try:
                for records in self._batches(range(group, group + 1), number, last):
                    yield from records
                    number += len(records)
            except Exception as error:
                problem = _problem_of(error)
            for row in range(number, last):
                yield record(problem, self._name(row), self._path, self._columns)
            number = last

    def _batches(self, groups: range, begin: int, end: int) -> Iterator[list[Record]]:
        """Yields records `begin` to `end` - 1 of some row groups in batches."""
        number = sum(self._groups[: groups.start])
        if begin >= end:
            return
        for batch in batches_of(self._file, groups, self._names):
            low, high = max(begin - number, 0), min(end - number, len(batch))
            if low < high:
                yield self._rows(batch.slice(low, high - low), number + low)
            number += len(batch)
            if number >= end:
                return

    def _rows(self, batch: Any, number: int) -> list[Record]:
        """Returns the records of a batch whose first row is `number`."""
        # Python's times are coarser than Arrow's: columns with times stay Arrow scalars.
        times = {name: batch.column(name) for name in self._times}
        kept = batch.drop_columns(self._times) if times else batch
        rows = rows_of(kept)
        for name, names in self._classes.items():
            for row in rows:
                if isinstance(row, dict):
                    row[name] = class_name(row[name], names)
        for name, column in times.items():
            for row, value in zip(rows, column, strict=True):
                if isinstance(row, dict):
                    row[name] = value
        return [
            record(row, self._name(i), self._path, self._columns)
            for i, row in enumerate(rows, start=number)
        ]

    def _name(self, row: int) -> str:
        return f"{os.path.basename(self._path)}:{row}"

    def keys(self, begin: int, end: int) -> list[str | None]:
        # From the key column, else from paths; else only the row numbers identify rows.
        schema, keys = self._file.schema_arrow, []
        column = self._columns.key
        if column not in self._names:
            column = self._columns.image
            if column not in self._names or not is_text(schema.field(column).type):
                return [None] * (end - begin)
        wanted, _ = self._groups_with(begin, end)
        number = sum(self._groups[: wanted.start])
        for batch in self._file.iter_batches(row_groups=wanted, columns=[column]):
            values = batch.column(0).slice(max(begin - number, 0), end - max(begin, number))
            keys += [None if v in (None, "", b"") else key_of(v) for v in values.to_pylist()]
            number += len(batch)
            if number >= end:
                break
        return keys

    def fields(self, names: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
        yield from fields_of(self._file, names, batch_size=1 << 14)

    def _groups_with(self, begin: int, end: int) -> tuple[range, list[int]]:
        """Returns the row groups that hold those rows, and the end of every row group."""
        ends = list(itertools.accumulate(self._groups))
        stop = min(bisect.bisect_left(ends, end) + 1, len(ends))
        return range(bisect.bisect_right(ends, begin), stop), ends


def read_row(path: str, number: int, column: str) -> bytes:
    """Reads the picture in a row of a Parquet file.

    Raises:
        OSError: it can't be read.
        ValueError: there is none.
    """
    with guarded(path):
        rows = ParquetRows(path, Columns(image=column))
    for found in rows.records(number, number + 1):
        if found.read is not None:
            return found.read()
    raise ValueError(f"{path}: row {number} has no picture in the column {column!r}")


def batches_of(file: Any, groups: Iterable[int], columns: Sequence[str]) -> Iterator[Any]:
    """Yields rows of a Parquet file in batches, of fewer where they may be large."""
    groups = list(groups)
    size = max((file.metadata.row_group(i).total_byte_size for i in groups), default=0)
    # No row is larger than its group.
    rows = max(min(ROWS, MOST_IN_ROWS // max(size, 1)), 1)
    yield from file.iter_batches(rows, row_groups=groups, columns=columns)


def column_types(shards: Sequence[ParquetShard], names: Sequence[str]) -> dict[str, Any]:
    """Returns the common Arrow types of these columns in all files.

    Files that can't be read are skipped here; embedding reports them.

    Raises:
        ValueError: two files have types without a common one, or a type can't be passed through.
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
                is_class = class_names(schema, name) is not None
                type_ = pa.string() if is_class else schema.field(name).type
                known, first = found.setdefault(name, (type_, shard.name))
                if type_ != known:
                    found[name] = _common(name, (known, first), (type_, shard.name)), shard.name
    for name, (type_, _) in found.items():
        try:
            pa.table({name: pa.array([None], type_)}).take([0])
        except (pa.ArrowException, NotImplementedError, TypeError):
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


def _has_times(type_: Any) -> bool:
    import pyarrow.types

    return pyarrow.types.is_temporal(type_) or any(
        _has_times(type_.field(i).type) for i in range(type_.num_fields)
    )


def _rows_of_groups(path: str, metadata: Any) -> list[int]:
    """Returns each row group's number of rows; raises ValueError if one is impossible."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    # Every row has a value, if only a null. Accessing a column with damaged statistics crashes the
    # process (pyarrow 26): done only for row groups of a size that nobody writes.
    for count, group in zip(rows, groups, strict=True):
        is_large = count > MOST_ROWS and group.num_columns
        if count < 0 or (is_large and count > group.column(0).num_values):
            raise ValueError(f"{path} is damaged: a row group can't have {count:,} rows")
    if sum(rows) != metadata.num_rows:
        raise ValueError(
            f"{path} is damaged: its row groups have {sum(rows):,} rows, and it says that there "
            f"are {metadata.num_rows:,}"
        )
    return rows


def _problem_of(error: Exception) -> str:
    """As `problem_of`; but a huge allocation that fails is the file's fault, not the machine's."""
    asked = re.search(r"(?:malloc|realloc) of size (\d+) failed", str(error))
    if asked and int(asked[1]) > MOST_AT_ONCE:
        return f"the file is damaged, or asks for {int(asked[1]):,} bytes at one time"
    return problem_of(error)


def _check_key(file: Any, name: str) -> None:
    """Raises ValueError, before rows are read, if the keys are times that Python can't write."""
    import pyarrow.types
    from pyarrow import compute

    type_ = file.schema_arrow.field(name).type
    if not pyarrow.types.is_temporal(type_):
        return
    try:
        if getattr(type_, "unit", "") == "ns":
            raise ValueError("its nanoseconds are finer")
        for batch in file.iter_batches(columns=[name]):
            compute.call_function("min_max", [batch.column(0)]).as_py()  # OverflowError
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"the key column {name!r} is {type_}, and holds what Python's times can't: {error}. "
            "Write it as text, or name another key column"
        ) from None


def open_parquet(path: str, extra: str = "embed") -> Any:
    """Opens a Parquet file and reads its footer.

    Args:
        path: the path of the file.
        extra: the extra to recommend if pyarrow is missing.

    Raises:
        OSError: it can't be read.
        ValueError: it is no Parquet file.
        ModuleNotFoundError: pyarrow is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"Parquet files need pyarrow: pip install 'clip-jax-flax[{extra}]'"
        ) from None
    try:
        # Small reads, because a single row group may be the whole file.
        return pyarrow.parquet.ParquetFile(
            storage(path).arrow(path), pre_buffer=False, buffer_size=1 << 22
        )
    except OSError as error:
        if error.errno is not None or isinstance(error, Unreachable | Refused):
            raise
        raise _no_parquet(path, error) from None  # a truncated file
    except Exception as error:
        raise _no_parquet(path, error) from None


def _no_parquet(path: str, error: Exception) -> ValueError:
    return ValueError(f"{path} is no Parquet file, or a damaged one: {_problem_of(error)}")
