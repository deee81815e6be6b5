"""The embeddings of a finished job, read block by block."""

import bisect
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from clip_jax.embed.gaps import gaps
from clip_jax.embed.parts import ROW_GROUP, matrix
from clip_jax.embed.results import parts_of
from clip_jax.errors import is_exhausted
from clip_jax.storage import Disk, Unreachable, storage

THREADS = 8
# Files that are kept mapped for rows by number.
MAPPED = 4096
# The largest cosine, with rounding; embeddings that give more are damaged.
MOST = 1.1
# The columns that a search shows, in both formats.
SHOWN = ("key", "path", "image_path", "caption")
# What parsing a damaged document may raise.
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError)


@dataclasses.dataclass(frozen=True)
class RowGroup:
    """Contiguous embeddings in a file: a Parquet row group, or a NumPy array.

    Attributes:
        part: the name of its part.
        path: the file's path.
        group: the index of the row group in the file.
        row: the number of its first row in the part.
        rows: how many rows it has.
        offset: the offset of its first byte; None if the file has to be decoded.
    """

    part: str
    path: str
    group: int
    row: int
    rows: int
    offset: int | None


class Damaged(ValueError):
    """Some parts are damaged.

    Attributes:
        parts: their names.
    """

    def __init__(self, parts: set[str]):
        super().__init__(f"damaged parts: {', '.join(sorted(parts))}")
        self.parts = parts


class Index:
    """The embeddings of a job, to be read block by block.

    Attributes:
        dim: the dimension of the embeddings.
        dtype: the dtype of the embeddings.
        num_rows: how many embeddings there are.
        gaps: the missing rows; damaged parts count as missing.
    """

    def __init__(self, out: str, job: dict[str, Any]):
        """Reads the footers of the parts; ignores parts of another job.

        Raises:
            ValueError: there are no parts, or all are damaged.
            OSError: the folder can't be read.
        """
        self.dim = job["dim"]
        self.dtype = np.dtype(job["identity"]["dtype"])
        self._out, self._job = out, job
        self._parts, self._storage = parts_of(out, job), storage(out)
        self._shard_rows: dict[str, int] = {}
        self._marks: dict[str, tuple[int, int]] = {}
        self._bytes_of = functools.lru_cache(MAPPED)(functools.partial(np.memmap, mode="r"))
        self._names = sorted(self._parts.names())
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(self._read_part, self._names))
        self._set([group for groups in found for group in groups])

    def leave_out(self, parts: Collection[str]) -> None:
        """Removes some parts from the index.

        Raises:
            ValueError: no others are left.
        """
        for name in parts:
            self._shard_rows.pop(name, None)
            self._marks.pop(name, None)
        self._set([group for group in self._groups if group.part not in parts])

    def parts(self) -> list[list[Any]]:
        """Returns of each part its name, its rows, and the mark of its content, in order."""
        return [[name, *self._marks[name]] for name in sorted(self._marks)]

    def blocks(self, rows: int) -> list[tuple[int, int]]:
        """Returns the bounds (begin, end) of blocks of at most `rows` rows."""
        return [
            (begin, min(begin + rows, self.num_rows)) for begin in range(0, self.num_rows, rows)
        ]

    def bounds(self) -> list[tuple[str, int, int]]:
        """Returns the parts that have rows, in order: the name, and the bounds of its rows."""
        found = []
        for name, groups in itertools.groupby(self._groups, lambda group: group.part):
            begin = found[-1][2] if found else 0
            found.append((name, begin, begin + sum(group.rows for group in groups)))
        return found

    def columns(self, part: str, names: Collection[str]) -> Any:
        """Reads some columns of a part, an Arrow table; those that it doesn't have are left out.

        Raises:
            Damaged: the part is damaged.
            OSError: it can't be read.
        """
        import pyarrow.parquet as pq

        path = self._parts.path(self._parts.table, part)
        with self._guarded(part), self._storage.arrow(path) as source:
            file = pq.ParquetFile(source)
            return file.read([name for name in file.schema_arrow.names if name in names])

    def read(
        self, begin: int, end: int, target: np.ndarray, skip: Collection[str] = frozenset()
    ) -> None:
        """Reads rows into `target`, (rows, d) and contiguous; thread-safe.

        Args:
            begin: the first row.
            end: the row after the last.
            target: where they go.
            skip: parts that aren't read: zeros stand for their rows.

        Raises:
            Damaged: a part is damaged.
            OSError: the rows can't be read.
        """
        first = max(np.searchsorted(self._begins, begin, side="right") - 1, 0)
        for group, start in zip(self._groups[first:], self._begins[first:], strict=False):
            if start >= end:
                return
            low, high = max(begin, start), min(end, start + group.rows)
            if low < high:
                rows = target[low - begin : high - begin]
                if group.part in skip:
                    rows[:] = 0
                    continue
                with self._guarded(group.part):
                    self._read(group, low - start, rows)

    def gather(self, numbers: Sequence[int]) -> np.ndarray:
        """Reads rows by number: (n, d) in the parts' dtype; thread-safe.

        Raises:
            Damaged: parts are damaged; names all of them.
            OSError: the rows can't be read.
        """
        rows = np.empty((len(numbers), self.dim), self.dtype)
        damaged: set[str] = set()

        def read(place: int) -> None:
            try:
                self._gather(numbers[place], rows[place : place + 1])
            except Damaged as error:
                damaged.update(error.parts)

        if isinstance(self._storage, Disk):
            for place in range(len(numbers)):
                read(place)
        else:
            with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(read, range(len(numbers))))
        if damaged:
            raise Damaged(damaged)
        return rows

    def part_of(self, number: int) -> str:
        """Returns the name of the part that holds a row."""
        return self._groups[self._place(number)].part

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Reads the columns `key`, `path` or `image_path`, and `caption` of some rows, if present.

        Raises:
            Damaged: a part is damaged.
            OSError: the rows can't be read.
        """
        import pyarrow.parquet as pq

        found: list[dict[str, Any]] = []
        for number in numbers:
            place = self._place(number)
            group = self._groups[place]
            row = group.row + number - self._begins[place]
            path = self._parts.path(self._parts.table, group.part)
            with self._guarded(group.part), self._storage.arrow(path) as source:
                file = pq.ParquetFile(source)
                # Other columns may hold values that Python can't represent, such as far dates.
                names = [name for name in file.schema_arrow.names if name in SHOWN]
                group, offset = divmod(row, ROW_GROUP)
                (values,) = file.read_row_group(group, names).slice(offset, 1).to_pylist()
            found.append(values)
        return found

    def _set(self, groups: list[RowGroup]) -> None:
        self._groups = groups
        self._begins = [0, *itertools.accumulate(group.rows for group in groups)]
        self.num_rows = self._begins[-1]
        self.gaps = gaps(self._job, self._shard_rows)
        if self.num_rows:
            return
        if damaged := [name for name in self._names if name not in self._shard_rows]:
            path = self._parts.path(self._parts.table, damaged[0])
            raise ValueError(f"{path} is damaged: run the same clip-jax embed command again")
        raise ValueError(f"{self._out} holds no embeddings yet")

    def _place(self, number: int) -> int:
        return bisect.bisect_right(self._begins, number) - 1

    def _gather(self, number: int, target: np.ndarray) -> None:
        place = self._place(number)
        group, row = self._groups[place], number - self._begins[place]
        with self._guarded(group.part):
            if group.offset is None or not isinstance(self._storage, Disk):
                self._read(group, row, target)
                return
            # Mapped: opening the file for each of hundreds of rows takes longer than they do.
            begin = group.offset + row * self.dim * self.dtype.itemsize
            bytes_ = self._bytes_of(group.path)[begin : begin + target.nbytes]
            _check(len(bytes_) == target.nbytes)
            target.view(np.uint8).reshape(-1)[:] = bytes_

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Turns errors into `Damaged`, except those of the machine or the store."""
        import pyarrow as pa

        try:
            yield
        except (Damaged, Unreachable):
            raise
        except (OSError, pa.ArrowException, *_MALFORMED) as error:
            if is_exhausted(error) or isinstance(error, PermissionError):
                raise
            raise Damaged({name}) from error

    def _read_part(self, name: str) -> list[RowGroup]:
        """Returns the row groups of a part; none if it is damaged or another job's."""
        try:
            with self._guarded(name):
                return list(self._read_footer(name))
        except Damaged:
            return []

    def _read_footer(self, name: str) -> Iterator[RowGroup]:
        footer = self._parts.footer(name)
        _check(footer is not None)
        assert footer is not None
        if array := self._parts.beside.get("embedding"):
            path = self._parts.path(array, name)
            offset = self._array_offset(path, footer.rows)
            groups = [RowGroup(name, path, 0, 0, footer.rows, offset)]
        else:
            path = self._parts.path(self._parts.table, name)
            begins = [*range(0, footer.rows, ROW_GROUP)]
            offsets = footer.at["embedding"]
            _check(len(offsets) == len(begins) == len(footer.groups) or not begins)
            groups = [
                RowGroup(name, path, i, begin, rows, offset if offset >= 0 else None)
                for i, (begin, rows, offset) in enumerate(
                    zip(begins, footer.groups[: len(begins)], offsets, strict=True)
                )
            ]
        self._shard_rows[name] = footer.shard_rows
        self._marks[name] = footer.rows, footer.mark
        yield from (group for group in groups if group.rows)

    def _array_offset(self, path: str, rows: int) -> int:
        head = io.BytesIO(self._storage.read_range(path, 0, 4096))
        _check(np.lib.format.read_magic(head) == (1, 0))  # which is what we write
        shape, _, dtype = np.lib.format.read_array_header_1_0(head)
        _check(shape == (rows, self.dim) and dtype == self.dtype)
        return head.tell()

    def _read(self, group: RowGroup, begin: int, target: np.ndarray) -> None:
        if group.offset is None:
            import pyarrow.parquet as pq

            with self._storage.arrow(group.path) as source:
                table = pq.ParquetFile(source).read_row_group(group.group, ["embedding"])
            target[:] = matrix(table.column(0))[begin : begin + len(target)]
            return
        place = group.offset + begin * self.dim * self.dtype.itemsize
        bytes_ = target.view(np.uint8).reshape(-1).data
        _check(self._storage.read_into(group.path, place, bytes_) == len(bytes_))


def _check(is_as_written: bool) -> None:
    if not is_as_written:
        raise ValueError("not as it was written")
