"""Some of the rows of a file, for files that have got more since they were embedded."""

from collections.abc import Iterator

from clip_jax.sources.files import ListedFile
from clip_jax.sources.records import Record, Rows, Shard


class Excerpt(ListedFile):
    """The rows of a file from one number to another, counted from 0 again."""

    def __init__(self, shard: Shard, begin: int, end: int | None):
        """Reads nothing.

        Args:
            shard: the file.
            begin: the number of the first row.
            end: the number after the last row; None for the file's end.
        """
        assert isinstance(shard, ListedFile)
        self.name, self.path, self.stat = shard.name, shard.path, shard.stat
        self.fingerprint = shard.fingerprint
        self._shard, self._begin, self._end = shard, begin, end

    def open(self) -> "_Rows":
        rows = self._shard.open()
        end = len(rows) if self._end is None else min(self._end, len(rows))
        return _Rows(rows, self._begin, max(end - self._begin, 0))


class _Rows:
    """Rows of an open file."""

    def __init__(self, rows: Rows, begin: int, count: int):
        self._rows, self._begin, self._count = rows, begin, count

    def __len__(self) -> int:
        return self._count

    def records(self, begin: int, end: int) -> Iterator[Record]:
        yield from self._rows.records(*self._within(begin, end))

    def keys(self, begin: int, end: int) -> list[str | None]:
        return self._rows.keys(*self._within(begin, end))

    def _within(self, begin: int, end: int) -> tuple[int, int]:
        return self._begin + begin, self._begin + max(min(end, self._count), begin)
