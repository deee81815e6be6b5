"""What is left to do of a job, and the records of it one after another."""

import concurrent.futures
import dataclasses
from collections.abc import Collection, Iterator

from clip_jax.embed.identity import Other, place, refuse_others
from clip_jax.embed.parts import Parts
from clip_jax.embed.units import Share, Unit, divide, shard_of
from clip_jax.embed.watch import Watch
from clip_jax.sources import Input, Record, Rows, faults


@dataclasses.dataclass(frozen=True)
class Task:
    """A unit to be embedded.

    Attributes:
        unit: which one.
        shard_rows: the rows of its shard.
        rows: those to embed; all of the unit's, or those that could not be before.
        known: the mark of the part that is there, if its rows are known to be the input's.
    """

    unit: Unit
    shard_rows: int
    rows: range | frozenset[int]
    known: int | None = None

    @property
    def is_retry(self) -> bool:
        """Whether the other rows of the unit are there already."""
        return len(self.rows) < len(self.unit)


class Plan:
    """The share of a job that a process has still to do.

    Attributes:
        finished: the parts that count.
        known: the marks of those of them whose rows are known to be the input's.
        opened: the shards that were opened.
    """

    def __init__(
        self,
        source: Input,
        parts: Parts,
        share: Share,
        *,
        rows_per_part: int,
        retry_errors: bool,
        watch: Watch,
        entirely: bool = False,
    ):
        """Looks through the parts that are there.

        Args:
            source: the whole input.
            parts: the output.
            share: of this process.
            rows_per_part: rows of a unit.
            retry_errors: whether rows that could not be embedded are tried again.
            watch: is told what was done before.
            entirely: whether parts are read whole on stores, too.

        Raises:
            OSError: the output can't be read.
        """
        self._source, self._parts, self._share = source, parts, share
        self._rows_per_part, self._retry, self._watch = rows_per_part, retry_errors, watch
        self._shards = share.shards(len(source.shards))
        mine = [name for name in sorted(parts.names()) if self._is_mine(name)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = zip(mine, pool.map(lambda n: parts.finished(n, entirely), mine), strict=True)
            self.finished = {name: finished for name, finished in found if finished}
        watch.parts_before = len(self.finished)
        # A part says how many rows its shard has, which then need not be opened for that; unless
        # a file that could not be read, which is a single row, is tried again.
        self._parts_of: dict[int, list[str]] = {}
        counts: dict[int, set[int | None]] = {}
        for name, finished in self.finished.items():
            self._parts_of.setdefault(shard_of(name), []).append(name)
            is_open = retry_errors and finished.errors
            count = None if is_open else finished.shard_rows
            counts.setdefault(shard_of(name), set()).add(count)
        self._known: dict[int, int | None] = {
            shard: found.pop() for shard, found in counts.items() if len(found) == 1
        }
        self.opened: set[int] = set()
        self.known: dict[str, int] = {}
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
        """Removes what killed processes of this share have left, or ends it."""
        without = {name for name, finished in self.finished.items() if not finished.errors}
        self._parts.settle(self._is_mine)
        self._parts.clean(self._is_mine, without)

    def unit(self, name: str) -> Unit:
        """The unit of a part that counts, as it was then."""
        shard, _, number = name.partition("-")
        begin, finished = int(number) * self._rows_per_part, self.finished[name]
        return Unit(int(shard), int(number), begin, begin + finished.rows + finished.errors)

    def tasks(self) -> Iterator[tuple[Task, Rows | None]]:
        """The units to do, each with the rows of its shard; None unless they had to be opened.

        Raises:
            ValueError: a file has other rows than the parts that are there.
            OSError: a store can't be reached.
        """
        for shard in self._shards:
            opened: Rows | None = None
            count = self._known.get(shard)
            if count is None:
                opened = self.open(shard)
                count = max(len(opened), self._rows_before(shard, opened))
            tasks = [
                Task(unit, count, rows, self.known.get(unit.name))
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
            ValueError: a file has other rows than the parts that are there.
            OSError: a store can't be reached.
        """
        shard, rows = -1, None
        for task, opened in self.tasks():
            if task.unit.shard != shard:
                shard, rows = task.unit.shard, opened or self.open(task.unit.shard)
            assert rows is not None
            for number, record in self._numbered(rows, task):
                if number in task.rows:
                    yield task, number, record

    def open(self, shard: int, check: bool = True) -> Rows:
        """The rows of a shard; of one that can't be opened, rows that say why.

        Args:
            shard: its index.
            check: whether their keys are compared with those of the parts that are there.

        Raises:
            ValueError: it has other rows than the parts that are there.
            OSError: a store can't be reached.
        """
        rows = faults.opened(self._source.shards[shard])
        if not isinstance(rows, faults.Unread):
            self.opened.add(shard)
            if check:
                self._check_keys(shard, rows)
        return rows

    def read(self, rows: Rows, unit: Unit) -> Iterator[tuple[int, Record]]:
        """All rows of a unit, with their numbers; those that can't be read say why.

        Raises:
            OSError: a store can't be reached.
        """
        yield from self._numbered(rows, Task(unit, 0, range(0)))

    def look_again(self, shards: Collection[int]) -> None:
        """Looks at what parts of some shards there are now.

        Raises:
            OSError: the output can't be read.
        """
        for name in self._parts.names():
            if self._is_mine(name) and shard_of(name) in shards:
                if finished := self._parts.finished(name):
                    self.finished[name] = finished

    def _numbered(self, rows: Rows, task: Task) -> Iterator[tuple[int, Record]]:
        unit, name = task.unit, self._source.shards[task.unit.shard].name
        return enumerate(faults.all_records(rows, name, unit.begin, unit.end), unit.begin)

    def _rows_before(self, shard: int, opened: Rows) -> int:
        """How many rows a shard had when some of it was embedded, which it can't have lost.

        One that shows fewer now is damaged, or can't be read for a moment.
        """
        parts = [self.finished[name] for name in self._parts_of.get(shard, ())]
        is_read = not isinstance(opened, faults.Unread)
        return max((part.shard_rows for part in parts if part.rows or not is_read), default=0)

    def _check_keys(self, shard: int, rows: Rows) -> None:
        """Refuses a file whose rows have other keys than its parts, before more of it is read."""
        for name in self._parts_of.get(shard, ()):
            unit, finished = self.unit(name), self.finished[name]
            if not finished.rows:
                continue
            try:
                keys = dict(enumerate(rows.keys(unit.begin, unit.end), start=unit.begin))
            except Exception as error:  # it can't be read now
                faults.told(error)
                continue
            keys_there = self._parts.keys(name)
            if len(keys_there) != finished.rows:  # another process has just replaced it
                continue
            for row, there in zip(finished.embedded(unit.begin), keys_there, strict=True):
                if (key := keys.get(row)) is not None and key != there:
                    path = self._parts.path(self._parts.table, name)
                    how = f"{place(self._source, unit)}, where row {row} is {key!r}"
                    refuse_others([Other(path, "rows", f"{how} and was {there!r}")])

    def _missing(self, unit: Unit, shard_rows: int) -> range | frozenset[int]:
        """The rows of a unit that are to be embedded."""
        finished = self.finished.get(unit.name)
        if finished is None or finished.shard_rows != shard_rows:
            return range(unit.begin, unit.end)
        self._watch.rows_before += finished.rows
        if finished.errors and self._retry:
            return finished.failed
        self._watch.errors_before += finished.errors - len(finished.lost)
        return finished.lost

    def _is_mine(self, name: str) -> bool:
        shard, _, number = name.partition("-")
        if not (shard.isdecimal() and number.isdecimal()):
            return False
        unit = Unit(int(shard), int(number), 0, 0)
        num_shards = len(self._source.shards)
        return unit.shard in self._shards and self._share.takes(unit, num_shards)
