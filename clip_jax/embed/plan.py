"""What is left to do of a job, and the records of it one after another."""

import concurrent.futures
import dataclasses
from collections.abc import Iterator

from clip_jax.embed.parts import Parts
from clip_jax.embed.units import Share, Unit, divide
from clip_jax.embed.watch import Watch
from clip_jax.sources import Input, Record, Rows, faults


@dataclasses.dataclass(frozen=True)
class Task:
    """A unit to be embedded.

    Attributes:
        unit: which one.
        shard_rows: the rows of its shard.
        rows: those to embed; all of the unit's, or those that could not be before.
    """

    unit: Unit
    shard_rows: int
    rows: range | frozenset[int]

    @property
    def is_retry(self) -> bool:
        """Whether the other rows of the unit are there already."""
        return len(self.rows) < len(self.unit)


class Plan:
    """The share of a job that a process has still to do."""

    def __init__(
        self,
        source: Input,
        parts: Parts,
        share: Share,
        *,
        rows_per_part: int,
        retry_errors: bool,
        watch: Watch,
    ):
        """Looks through the parts that are there.

        Args:
            source: the whole input.
            parts: the output.
            share: of this process.
            rows_per_part: rows of a unit.
            retry_errors: whether rows that could not be embedded are tried again.
            watch: is told what was done before.

        Raises:
            ValueError: it is of other pictures.
            OSError: the output can't be read.
        """
        self._source, self._parts, self._share = source, parts, share
        self._rows_per_part, self._retry, self._watch = rows_per_part, retry_errors, watch
        self._shards = share.shards(len(source.shards))
        mine = [name for name in sorted(parts.names()) if self._is_mine(name)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = zip(mine, pool.map(parts.finished, mine), strict=True)
            self._finished = {name: finished for name, finished in found if finished}
        watch.parts_before = len(self._finished)
        self._check_contents()
        # A part says how many rows its shard has, which then need not be opened for that; unless
        # a file that could not be read, which is a single row, is tried again.
        counts: dict[int, set[int | None]] = {}
        for name, finished in self._finished.items():
            is_open = retry_errors and finished.errors
            count = None if is_open else finished.shard_rows
            counts.setdefault(int(name.partition("-")[0]), set()).add(count)
        self._known: dict[int, int | None] = {
            shard: found.pop() for shard, found in counts.items() if len(found) == 1
        }
        self._opened = self._rows = self._to_do = 0

    @property
    def total(self) -> int | None:
        """How many rows there are to do, estimated from the shards opened so far."""
        if not self._opened:
            return None
        return round(self._to_do * len(self._shards) / self._opened)

    @property
    def is_empty(self) -> bool:
        """Whether the whole input was seen, and has no rows."""
        return self._opened == len(self._source.shards) and not self._rows

    def clean(self) -> None:
        """Removes what killed processes of this share have left."""
        without = {name for name, finished in self._finished.items() if not finished.errors}
        self._parts.clean(self._is_mine, without)

    def tasks(self) -> Iterator[tuple[Task, Rows | None]]:
        """The units to do, each with the rows of its shard; None unless they had to be opened.

        Raises:
            OSError: a file can't be read.
        """
        for shard in self._shards:
            opened: Rows | None = None
            count = self._known.get(shard)
            if count is None:
                opened = self._open(shard)
                count = len(opened)
            tasks = [
                Task(unit, count, rows)
                for unit in divide(shard, count, self._rows_per_part)
                if self._share.takes(unit, len(self._source.shards))
                if (rows := self._missing(unit, count))
            ]
            self._opened += 1
            self._rows += count
            self._to_do += sum(len(task.rows) for task in tasks)
            for task in tasks:
                yield task, opened

    def records(self) -> Iterator[tuple[Task, int, Record]]:
        """The records to embed, with their units and their places in their shards.

        Raises:
            OSError: a file can't be read.
        """
        shard, rows = -1, None
        for task, opened in self.tasks():
            if task.unit.shard != shard:
                shard, rows = task.unit.shard, opened or self._open(task.unit.shard)
            assert rows is not None
            for number, record in self._numbered(rows, task):
                if number in task.rows:
                    yield task, number, record

    def _check_contents(self) -> None:
        """Refuses other pictures of the same names, before they are mixed with those there."""
        if self._source.contents is None:
            return
        for name, finished in self._finished.items():
            number = int(name.partition("-")[2])
            begin = number * self._rows_per_part
            end = min(begin + self._rows_per_part, finished.shard_rows)
            unit = Unit(0, number, begin, end)
            failed = {e.row for e in self._parts.errors(name)} if finished.errors else set()
            contents = self._source.contents(unit.rows_but(failed))
            if finished.contents not in (None, contents):
                raise ValueError(
                    f"the output holds embeddings of other pictures: rows {begin} to {end - 1} of "
                    "the input have the same names and other sizes. Give another folder for the "
                    f"output; or remove part {name} to embed these rows again."
                )

    def _numbered(self, rows: Rows, task: Task) -> Iterator[tuple[int, Record]]:
        unit, name = task.unit, self._source.shards[task.unit.shard].name
        return enumerate(faults.all_records(rows, name, unit.begin, unit.end), unit.begin)

    def _open(self, shard: int) -> Rows:
        return faults.opened(self._source.shards[shard])

    def _missing(self, unit: Unit, shard_rows: int) -> range | frozenset[int]:
        """The rows of a unit that are to be embedded."""
        finished = self._finished.get(unit.name)
        if finished is None or finished.shard_rows != shard_rows:
            return range(unit.begin, unit.end)
        self._watch.rows_before += finished.rows
        if finished.errors and self._retry:
            return frozenset(error.row for error in self._parts.errors(unit.name))
        self._watch.errors_before += finished.errors
        return range(0)

    def _is_mine(self, name: str) -> bool:
        shard, _, number = name.partition("-")
        if not (shard.isdecimal() and number.isdecimal()):
            return False
        unit = Unit(int(shard), int(number), 0, 0)
        num_shards = len(self._source.shards)
        return unit.shard in self._shards and self._share.takes(unit, num_shards)
