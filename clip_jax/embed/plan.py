"""The chunks of a job that are left to do, and a stream of their records."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Collection, Iterator

from clip_jax.embed.chunks import Chunk, Worker, divide, shard_of
from clip_jax.embed.counts import Counts
from clip_jax.embed.identity import Other, place, refuse_others
from clip_jax.embed.parts import Parts
from clip_jax.messages import counted
from clip_jax.sources import Input, Record, Rows, Shard, faults
from clip_jax.sources.records import as_key
from clip_jax.storage import Unreachable


@dataclasses.dataclass(frozen=True)
class Pending:
    """A chunk to be embedded.

    Attributes:
        chunk: the chunk.
        shard_rows: how many rows its shard has.
        rows: the rows to embed: all of the chunk's, or only those that failed before.
        known: the mark of the existing part, if it is known to match the input.
    """

    chunk: Chunk
    shard_rows: int
    rows: range | frozenset[int]
    known: int | None = None

    @property
    def is_retry(self) -> bool:
        """Whether the chunk's other rows have been embedded already."""
        return len(self.rows) < len(self.chunk)


class Plan:
    """The work that a worker still has to do for a job.

    Attributes:
        finished: the valid parts, by the names of their chunks.
        known: the marks of the valid parts that are known to match the input.
        opened: the indices of the shards that were opened.
        shard_rows: how many rows each shard has, of the shards planned so far.
    """

    def __init__(
        self,
        source: Input,
        parts: Parts,
        worker: Worker,
        *,
        rows_per_part: int,
        retry_errors: bool,
        counts: Counts,
        entirely: bool = False,
    ):
        """Reads the metadata of the existing parts.

        Args:
            source: the whole input.
            parts: the output.
            worker: which of the processes this is.
            rows_per_part: rows of a chunk.
            retry_errors: whether to try again the rows that could not be embedded.
            counts: receives the counts of earlier runs.
            entirely: whether to read whole parts on object stores too.

        Raises:
            ValueError: the output has parts of files that the input doesn't have.
            OSError: the output can't be read.
        """
        self._source, self._parts, self._worker = source, parts, worker
        self._rows_per_part, self._retry, self._counts = rows_per_part, retry_errors, counts
        self._open: Callable[[Shard], Rows] = faults.opened
        self._shards = worker.shards(len(source.shards))
        parts.check_strays()
        mine = [name for name in sorted(parts.names()) if self._is_mine(name)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = zip(mine, pool.map(lambda n: parts.finished(n, entirely), mine), strict=True)
            self.finished = {name: finished for name, finished in found if finished}
        counts.parts_before = len(self.finished)
        self._there: dict[int, set[str]] = {}
        for name in mine:
            self._there.setdefault(shard_of(name), set()).add(name)
        # Parts give their shard's number of rows, so that it need not be opened to count them;
        # except to retry a file that could not be read, which counts as one row.
        self._parts_of: dict[int, list[str]] = {}
        sizes: dict[int, set[int | None]] = {}
        for name, finished in self.finished.items():
            self._parts_of.setdefault(shard_of(name), []).append(name)
            is_open = retry_errors and finished.errors
            count = None if is_open else finished.shard_rows
            sizes.setdefault(shard_of(name), set()).add(count)
        self._known: dict[int, int | None] = {
            shard: found.pop() for shard, found in sizes.items() if len(found) == 1
        }
        self.opened: set[int] = set()
        self.shard_rows: dict[int, int] = {}
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
        """Whether the whole input was seen and has no rows."""
        return self._opened == len(self._source.shards) and not self._rows

    def clean(self) -> None:
        """Completes or removes files left unfinished by killed processes of this worker."""
        without = {name for name, finished in self.finished.items() if not finished.errors}
        self._parts.settle(self._is_mine)
        self._parts.clean(self._is_mine, without)

    def chunk(self, name: str) -> Chunk:
        """Returns the chunk of a valid part, as it was when the part was written."""
        shard, _, number = name.partition("-")
        begin, finished = int(number) * self._rows_per_part, self.finished[name]
        return Chunk(int(shard), int(number), begin, begin + finished.rows + finished.errors)

    def pending(self) -> Iterator[tuple[Pending, Rows | None]]:
        """Yields the chunks to do, each with its shard's rows, or None if not opened yet.

        Raises:
            ValueError: a file has other rows than the existing parts, or was written just now.
            OSError: a store can't be reached.
        """
        for shard in self._shards:
            opened: Rows | None = None
            count = self._known.get(shard)
            if count is None:
                opened = self.open(shard)
                count, before = len(opened), self._rows_before(shard, opened)
                if before and self.num_rows(shard, opened) <= before:  # but for damage at its end
                    count = before
            chunks = divide(shard, count, self._rows_per_part)
            if not isinstance(opened, faults.Unread):
                strays = self._there.get(shard, set()) - {chunk.name for chunk in chunks}
                where = self._source.shards[shard].path
                self._parts.refuse(strays, f"{where} has {counted(count, 'row')}")
            todo = [
                Pending(chunk, count, rows, self.known.get(chunk.name))
                for chunk in chunks
                if self._worker.takes(chunk, len(self._source.shards))
                if (rows := self._missing(chunk, count))
            ]
            self.shard_rows[shard] = count
            self._opened += 1
            self._rows += count
            self._to_do += sum(len(pending.rows) for pending in todo)
            for pending in todo:
                yield pending, opened

    def opened_chunks(self) -> Iterator[tuple[Pending, Rows]]:
        """Yields the chunks to do, each with its shard's rows.

        Raises:
            ValueError: a file has other rows than the existing parts, or was written just now.
            OSError: a store can't be reached.
        """
        shard, rows = -1, None
        for pending, opened in self.pending():
            if pending.chunk.shard != shard:
                shard, rows = pending.chunk.shard, opened or self.open(pending.chunk.shard)
            assert rows is not None
            yield pending, rows

    def records(self) -> Iterator[tuple[Pending, int, Record]]:
        """Yields the records to embed, each with its chunk and its row number in the shard.

        Raises:
            ValueError: a file has other rows than the existing parts, or was written just now.
            OSError: a store can't be reached.
        """
        for pending, rows in self.opened_chunks():
            for number, record in self._numbered(rows, pending):
                if number in pending.rows:
                    yield pending, number, record

    def open_by(self, opened: Callable[[Shard], Rows]) -> None:
        """Has shards opened by a function, which does the same as `faults.opened`."""
        self._open = opened

    def unopened(self) -> list[Shard]:
        """Returns the shards whose number of rows isn't known, in the order of `pending`."""
        return [self._source.shards[i] for i in self._shards if self._known.get(i) is None]

    def open(self, shard: int, check: bool = True) -> Rows:
        """Opens a shard; if it can't be opened, returns rows that give the reason.

        Args:
            shard: the shard's index.
            check: whether to compare its keys with those of the existing parts.

        Raises:
            ValueError: the shard has other rows than the existing parts, or was written since the
                input was listed.
            OSError: a store can't be reached.
        """
        rows = self._open(self._source.shards[shard])
        if total := getattr(rows, "total", None):  # another process may have opened it
            self._source.tally.add(self._source.shards[shard].path, len(rows), total)
        if not isinstance(rows, faults.Unread):
            self.opened.add(shard)
            if check:
                self._check_keys(shard, rows)
                self._check_as_listed(shard)
        return rows

    def read(self, rows: Rows, chunk: Chunk) -> Iterator[tuple[int, Record]]:
        """Yields all rows of a chunk with their numbers; unreadable ones give the reason.

        Raises:
            OSError: a store can't be reached.
        """
        yield from self._numbered(rows, Pending(chunk, 0, range(0)))

    def recount(self, shard: int, rows: Rows) -> None:
        """Has a shard that has more rows than its parts say embedded with all of its rows."""
        known = self._known.get(shard)
        if known is not None and self.num_rows(shard, rows) > known:
            self._known[shard] = None

    def num_rows(self, shard: int, rows: Rows) -> int:
        """Returns how many rows a shard has, without the one that stands for a damaged end."""
        count = len(rows)
        if isinstance(rows, faults.Unread) or not count:
            return 0
        name = self._source.shards[shard].name
        (last,) = faults.all_records(rows, name, count - 1, count)
        is_damage = last.problem is not None and last.key == as_key(name)  # the file's own name
        return count - is_damage

    def look_again(self, shards: Collection[int]) -> None:
        """Reads again the metadata of the parts of some shards.

        Raises:
            OSError: the output can't be read.
        """
        for name in self._parts.names():
            if self._is_mine(name) and shard_of(name) in shards:
                if finished := self._parts.finished(name):
                    self.finished[name] = finished

    def _numbered(self, rows: Rows, pending: Pending) -> Iterator[tuple[int, Record]]:
        chunk, name = pending.chunk, self._source.shards[pending.chunk.shard].name
        return enumerate(faults.all_records(rows, name, chunk.begin, chunk.end), chunk.begin)

    def _rows_before(self, shard: int, opened: Rows) -> int:
        """Returns how many rows a shard had when parts of it were written.

        If it shows fewer now, it is damaged or can't be read at the moment.
        """
        parts = [self.finished[name] for name in self._parts_of.get(shard, ())]
        is_read = not isinstance(opened, faults.Unread)
        return max((part.shard_rows for part in parts if part.rows or not is_read), default=0)

    def _check_keys(self, shard: int, rows: Rows) -> None:
        """Raises an error, before more is read, if a file's keys differ from its parts'."""
        for name in self._parts_of.get(shard, ()):
            chunk, finished = self.chunk(name), self.finished[name]
            if not finished.rows:
                continue
            try:
                keys = dict(enumerate(rows.keys(chunk.begin, chunk.end), start=chunk.begin))
            except Exception as error:  # it can't be read now
                faults.problem_of(error)
                continue
            keys_there = self._parts.keys(name)
            if len(keys_there) != finished.rows:  # another process has just replaced the part
                continue
            for row, there in zip(finished.embedded(chunk.begin), keys_there, strict=True):
                if (key := keys.get(row)) is not None and key != there:
                    path = self._parts.path(self._parts.table, name)
                    how = f"{place(self._source, chunk)}, where row {row} is {key!r}"
                    refuse_others([Other(path, "rows", f"{how} and was {there!r}")])

    def _check_as_listed(self, shard: int) -> None:
        """Raises an error, before rows are embedded, if a file is not the one that was listed."""
        found = self._source.shards[shard]
        try:
            has_changed = found.has_changed()
        except Unreachable:
            raise
        except OSError:  # the file is gone, but was opened before
            return
        if has_changed:
            raise ValueError(
                f"{found.path} was written while the job was starting or running. Start the same "
                "command again once it is complete; if that is refused, the input is another one "
                "now: give another folder"
            )

    def _missing(self, chunk: Chunk, shard_rows: int) -> range | frozenset[int]:
        """Returns the rows of a chunk that are left to embed."""
        finished = self.finished.get(chunk.name)
        if finished is None or finished.shard_rows != shard_rows:
            return range(chunk.begin, chunk.end)
        self._counts.rows_before += finished.rows
        if finished.errors and self._retry:
            return finished.failed
        self._counts.errors_before += finished.errors - len(finished.lost)
        return finished.lost

    def _is_mine(self, name: str) -> bool:
        shard, _, number = name.partition("-")
        if not (shard.isdecimal() and number.isdecimal()):
            return False
        chunk = Chunk(int(shard), int(number), 0, 0)
        num_shards = len(self._source.shards)
        return chunk.shard in self._shards and self._worker.takes(chunk, num_shards)
