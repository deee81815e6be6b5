"""The rows of a file that fit some conditions."""

import array
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from clip_jax.sources.files import ListedFile
from clip_jax.sources.records import Record, Rows
from clip_jax.sources.where import Where


class Fields(Rows, Protocol):
    """Rows whose values can be read without their pictures."""

    def fields(self, names: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
        """Yields the values of each row by column, or the problem of one that can't be read.

        Raises:
            OSError: they can't be read.
            ValueError: the file is damaged, or has no such column.
        """
        ...


class Tally:
    """Counts of the rows that were taken of the files that were opened."""

    def __init__(self, where: Where | None = None):
        """Starts with no files."""
        self._where = where
        self._counts: dict[str, tuple[int, int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Pickled, it begins anew: what opened files count has no part in what a shard is."""
        return vars(self) | {"_counts": {}}

    def add(self, path: str, taken: int, total: int) -> None:
        """Notes a file; once more changes nothing."""
        self._counts[path] = taken, total

    def sentences(self) -> list[str]:
        """Returns the sentence that tells of it, if a file was opened."""
        if not self._counts:
            return []
        taken, total = (sum(each) for each in zip(*self._counts.values(), strict=True))
        return [
            f"{taken:,} of {total:,} rows fit where {self._where}, and the others are left out (of "
            "the files that were opened now)"
        ]


class ChosenShard(ListedFile):
    """The rows of a file that fit, numbered among themselves in the same order.

    A row that can't be read is taken, and tells its problem.
    """

    def __init__(self, shard: Any, where: Where, others: Sequence[str], tally: Tally):
        """Reads nothing.

        Args:
            shard: the file, opened with the columns that the conditions need beside the others.
            where: the conditions.
            others: the columns that are passed through.
            tally: is told how many rows fit.
        """
        self.name, self.path, self.stat = shard.name, shard.path, shard.stat
        self._shard, self._where, self._others, self._tally = shard, where, others, tally

    @property
    def fingerprint(self) -> str:
        """That of the whole file; the conditions are part of what identifies a job."""
        return self._shard.fingerprint

    def open(self) -> "ChosenRows":
        rows: Fields = self._shard.open()
        chosen = ChosenRows(rows, self._where, self._others, self.name)
        self._tally.add(self.path, len(chosen), len(rows))
        return chosen


class ChosenRows:
    """Those rows of an open file."""

    def __init__(self, rows: Fields, where: Where, others: Sequence[str], name: str):
        """Reads the values of the columns that the conditions name, of all rows."""
        self._rows, self._others, self._name = rows, others, name
        self._numbers = array.array("q")
        self._problems: dict[int, str] = {}
        for number, values in enumerate(rows.fields(where.names)):
            if isinstance(values, str):
                self._problems[number] = values
            elif not where.holds(values):
                continue
            self._numbers.append(number)

    def __len__(self) -> int:
        return len(self._numbers)

    def records(self, begin: int, end: int) -> Iterator[Record]:
        wanted = self._numbers[begin:end]
        if not wanted:
            return
        place, opens = 0, False
        for number, record in enumerate(self._rows.records(wanted[0], wanted[-1] + 1), wanted[0]):
            opens = opens or record.opens
            if number != wanted[place]:
                continue
            columns = {name: record.columns.get(name) for name in self._others}
            problem = record.problem or self._problems.get(number)
            yield dataclasses.replace(record, columns=columns, problem=problem, opens=opens)
            place, opens = place + 1, False

    def keys(self, begin: int, end: int) -> list[str | None]:
        wanted = self._numbers[begin:end]
        if not wanted:
            return []
        keys = self._rows.keys(wanted[0], wanted[-1] + 1)
        return [keys[number - wanted[0]] for number in wanted]
