"""Rows as they travel to the processes that decode them: little, and without pictures."""

import bisect
import collections
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.embed.plan import Pending
from clip_jax.loading import Loaded
from clip_jax.sources import Record, Rows, Shard, faults
from clip_jax.sources.folder import FolderShard
from clip_jax.sources.parquet import ParquetRows, ParquetShard
from clip_jax.sources.records import ListRows, as_key
from clip_jax.sources.tar import TarRows

# How many files a process keeps open.
OPEN = 4


class Reopened:
    """The rows of a file that each process opens by itself, such as Parquet."""

    def __init__(self, shard: Shard, rows: Rows):
        """Keeps the number of rows, and where the file's row groups end."""
        self.shard, self._count = shard, len(rows)
        self.total = getattr(rows, "total", None)  # of a file of which some rows were chosen
        groups = rows._groups if isinstance(rows, ParquetRows) else []
        self.ends = [sum(groups[: i + 1]) for i in range(len(groups))]

    def __len__(self) -> int:
        return self._count

    def records(self, begin: int, end: int) -> Iterator[Record]:
        """As `Rows.records`."""
        yield from _opened(self.shard).records(begin, end)

    def keys(self, begin: int, end: int) -> list[str | None]:
        """As `Rows.keys`."""
        return _opened(self.shard).keys(begin, end)


def opened(shard: Shard) -> Rows:
    """Opens a shard and returns rows that can travel; `faults.Unread` if it can't be read.

    Raises:
        Unreachable: the file isn't at fault.
    """
    rows = faults.opened(shard)
    travel = isinstance(rows, FolderShard | ListRows | TarRows | faults.Unread)
    return rows if travel else Reopened(shard, rows)


def is_light(shard: Shard) -> bool:
    """Whether little is read to open a shard, so that the driver may do that."""
    return isinstance(shard, FolderShard | ParquetShard)


def between(rows: Rows, begin: int, end: int) -> Any:
    """Returns some of the rows of an open shard, with the numbers they have."""
    cut = getattr(rows, "between", None)
    return rows if cut is None else cut(begin, end)


def groups(pending: Pending, rows: Rows, size: int) -> list[Sequence[int]]:
    """Divides the rows of a chunk that are to be embedded into groups to be decoded.

    Args:
        pending: the chunk.
        rows: the rows of its shard. A row group is read from its beginning for each of its groups:
            no group has rows of two.
        size: the most rows of a group.
    """
    numbers = pending.rows if isinstance(pending.rows, range) else sorted(pending.rows)
    ends: Sequence[int] = rows.ends if isinstance(rows, Reopened) else ()
    found, begin = [], 0
    while begin < len(numbers):
        end = min(begin + size, len(numbers))
        at = bisect.bisect_right(ends, numbers[begin])
        if at < len(ends):
            end = bisect.bisect_left(numbers, ends[at], begin, end)
        found.append(numbers[begin:end])
        begin = end
    return found


def crashed(rows: Rows, name: str, number: int, tries: int) -> Loaded:
    """Returns a row in place of one whose decoder crashes, without reading its content."""
    key = None if isinstance(rows, Reopened) else rows.keys(number, number + 1)[0]
    problem = f"decoding it crashed its process, {tries} times"
    return Loaded(None, number, Record(key or as_key(f"{name}:{number}")), problem=problem)


_open: collections.OrderedDict[bytes, Rows] = collections.OrderedDict()


def _opened(shard: Shard) -> Rows:
    """Opens a shard, or returns it if it is still open."""
    key = pickle.dumps(shard)
    if key not in _open:
        _open[key] = shard.open()
        while len(_open) > OPEN:
            _open.popitem(last=False)
    _open.move_to_end(key)
    return _open[key]
