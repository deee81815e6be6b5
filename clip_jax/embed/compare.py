"""Checks at a start that the existing parts match the input as it is now.

Usually it only looks at the files: a part matches if they have the sizes and times, or ETags, that
they had when it was written. If these differ, or on request, its rows are read and compared.
"""

import bisect
import concurrent.futures
import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Collection, Sequence
from typing import Any

from tqdm import tqdm

from clip_jax.embed.chunks import shard_of
from clip_jax.embed.encoding import encoded
from clip_jax.embed.identity import SHOWN, Other, place, refuse_others
from clip_jax.embed.part_builder import Layout
from clip_jax.embed.parts import Finished, Part, Parts
from clip_jax.embed.plan import Plan
from clip_jax.loading import picture_digest
from clip_jax.messages import counted
from clip_jax.sources import Record, Rows
from clip_jax.sources.faults import Unread, problem_of
from clip_jax.sources.records import as_key
from clip_jax.storage import Unreachable, storage

# Records held in memory at a time, and threads that read their pictures.
RECORDS, THREADS = 64, 8
# In place of a digest: the picture was not compared.
_UNREAD = -1


class Comparison:
    """Compares a worker's parts with the rows of the input.

    Attributes:
        layout: the layout of the parts.
        rows: how many rows were compared and found to be the same.
    """

    def __init__(self, plan: Plan, layout: Layout, parts: Parts, *, show: bool):
        """Reads no file yet.

        Args:
            plan: lists the valid parts, and reads the input.
            layout: the layout of the parts.
            parts: the output.
            show: whether to show progress on standard error.
        """
        self._plan, self._parts, self._show = plan, parts, show
        self.layout = layout
        self._shards = layout.source.shards
        self.rows = 0

    def check(self, *, verify: bool, note: bool) -> None:
        """Raises an error if the parts were made from another input.

        A row that can't be read now doesn't count as a difference; its part stays as it is.

        Args:
            verify: whether to compare all rows, also those of unchanged files, and the pictures
                that a table points to. A row that can't be read is then an error.
            note: whether to record the files' sizes and times where the rows are the same.

        Raises:
            ValueError: the input is another one; the message says what differs.
            OSError: a store can't be reached; the output can't be read or written.
        """
        doubtful = []
        for name, finished in self._plan.finished.items():
            stamp = self._stamp(name, finished)
            if not finished.rows or (not verify and stamp is not None and stamp == finished.stamp):
                self._plan.known[name] = finished.mark
            elif not verify and self._is_older_version(finished) and self._are_older(name):
                self._take(name, finished, stamp, note)
            else:
                doubtful.append(name)
        self._compare(doubtful, verify, note)

    def check_changed(self) -> None:
        """Raises an error if rows have changed since the input was listed.

        Raises:
            ValueError: some have; the message says what differs.
            OSError: a store can't be reached, or the output can't be read.
        """

        def has_changed(shard: int) -> bool:
            try:
                return self._shards[shard].has_changed()
            except Unreachable:
                raise
            except OSError:  # the file is gone, but its rows were read before
                return False

        opened = sorted(self._plan.opened)
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            changed = set(itertools.compress(opened, pool.map(has_changed, opened)))
        if changed:
            self._check_counts(changed)
            self._plan.look_again(changed)
            finished = self._plan.finished.items()
            names = [name for name, f in finished if f.rows and shard_of(name) in changed]
            self._compare(names, verify=False, note=False)

    def _check_counts(self, shards: Collection[int]) -> None:
        """Refuses files that have got more rows while they were embedded."""
        for shard in shards:
            rows, before = self._plan.open(shard, check=False), self._plan.shard_rows.get(shard)
            count = self._plan.num_rows(shard, rows)
            if before is not None and count > before:
                raise ValueError(
                    f"{self._shards[shard].name} has changed during the run: it has {count:,} "
                    f"rows and had {before:,}. Start the same command again; if that is refused, "
                    "the input is another one now: give another folder"
                )

    def _is_older_version(self, finished: Finished) -> bool:
        """Whether an earlier version wrote the part, which stored no digests of pictures."""
        return self.layout.what != "texts" and not finished.has_digests

    def _are_older(self, name: str) -> bool:
        """Whether a part's input files were last changed before it was written, by the clocks."""
        chunk, finished = self._plan.chunk(name), self._plan.finished[name]
        path = self._parts.path(self._parts.table, name)
        written = storage(path).modified(path)
        files = self._shards[chunk.shard].files(finished.embedded(chunk.begin))
        return written is not None and all(_changed(file) < written for file in files)

    def _take(self, name: str, finished: Finished, stamp: str | None, note: bool) -> None:
        """Accepts a part as matching the input."""
        self._plan.known[name] = finished.mark
        if note and stamp != finished.stamp:
            self._parts.note(name, finished, stamp)

    def _stamp(self, name: str, finished: Finished) -> str | None:
        chunk = self._plan.chunk(name)
        return self._shards[chunk.shard].stamp(finished.embedded(chunk.begin))

    def _compare(self, names: Collection[str], verify: bool, note: bool) -> None:
        others: list[Other] = []
        is_terminal = sys.stderr.isatty()
        if names and self._show and not is_terminal:
            print(
                f"comparing {counted(len(names), 'part')} with the input",
                file=sys.stderr,
                flush=True,
            )
        hidden = not (names and self._show and is_terminal)
        with tqdm(
            unit="part", desc="comparing", total=len(names), leave=False, disable=hidden
        ) as bar:
            for shard, group in itertools.groupby(sorted(names), shard_of):
                rows = self._plan.open(shard, check=False)
                self._plan.recount(shard, rows)
                for name in group:
                    if len(others) < SHOWN:
                        others += self._compare_part(name, rows, verify, note)
                    bar.update()
        refuse_others(others)

    def _compare_part(self, name: str, opened: Rows, verify: bool, note: bool) -> list[Other]:
        chunk, finished = self._plan.chunk(name), self._plan.finished[name]
        found, path = self._parts.read(name, chunk.begin), self._parts.path(self._parts.table, name)
        if found is None:  # removed, or replaced by another process
            return []
        embedded = found.rows
        shard, where = self._shards[chunk.shard], place(self.layout.source, chunk)
        rows = _Rows(self.layout, shard.path, found.part, embedded, verify)
        numbered = self._plan.read(opened, chunk)
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            while some := list(itertools.islice(numbered, RECORDS)):
                for _ in pool.map(lambda row: rows.take(*row), some):
                    pass
        if difference := rows.difference():
            what, how = difference
            return [Other(path, what, f"{where}, where {how}")]
        if rows.are_gone(opened):
            how = f"the file has {len(opened):,} rows and had {finished.shard_rows:,}"
            return [Other(path, "rows", f"{where}, where {how}")]
        if verify and rows.unread:
            raise ValueError(f"{where} can't be verified: {next(iter(rows.unread.values()))}")
        if self._is_older_version(finished):
            raise ValueError(
                f"whether {where} are still those of {path} can't be told: an earlier version of "
                "clip-jax wrote it, and kept nothing of its pictures by which that could be told"
                f"{'' if verify else '; and their files have changed since'}. Give another folder "
                "for the output; or remove that part to have its rows embedded again."
            )
        self.rows += len(embedded) - len(rows.unread)
        if not rows.unread and found.mark == finished.mark:
            self._take(name, finished, self._stamp(name, finished), note)
        return []


class _Rows:
    """The rows of a part, and the same rows of the input as it is now.

    Attributes:
        unread: the problems of the rows that can't be read now, by position in the part.
    """

    def __init__(
        self, layout: Layout, source: str, part: Part, embedded: Sequence[int], verify: bool
    ):
        """Reads no row yet.

        Args:
            layout: the layout of the part.
            source: the path of the input's file or folder.
            part: the part as it was written.
            embedded: the numbers of the rows that it holds.
            verify: whether to read pictures outside that file or folder too.
        """
        self._layout, self._source, self._part, self._verify = layout, source, part, verify
        self._embedded = embedded
        self._places = {row: place for place, row in enumerate(embedded)}
        self._now: dict[int, tuple[Record, int | None]] = {}  # by position in the part
        self.unread: dict[int, str] = {}

    def take(self, row: int, record: Record) -> None:
        """Reads a row of the input; thread-safe.

        Raises:
            Unreachable: nothing can be read any more.
        """
        place = self._places.get(row)
        if place is None:
            return
        if record.problem is not None:
            self.unread[place] = record.problem
            return
        try:
            picture = self._picture(record)
            self._now[place] = dataclasses.replace(record, read=None), picture
        except Exception as error:  # of any kind
            self.unread[place] = problem_of(error)

    def are_gone(self, opened: Rows) -> bool:
        """Whether the file can be read to its end, and ends before some of these rows."""
        if not self.unread or isinstance(opened, Unread) or not len(opened):
            return False
        return all(self._embedded[place] >= len(opened) for place in self.unread)

    def difference(self) -> tuple[str, str] | None:
        """Returns "rows" or "pictures", whichever differ, and how the first one differs."""
        import pyarrow as pa

        places, path = sorted(self._now), self._layout.path
        schema, there = self._layout.schema(), self._part.columns
        if there.column_names != schema.names:
            lists = [", ".join(names) for names in (schema.names, there.column_names)]
            return "rows", f"the columns are {lists[0]} and were {lists[1]}"
        try:
            there = there.take(pa.array(places, pa.int64())).cast(schema)
            rows = [self._layout.row(self._now[place][0]) for place in places]
            here = pa.Table.from_pylist(rows, schema=schema)
        except (pa.ArrowException, OverflowError) as error:
            return "rows", f"a column has values of another kind: {error}"
        for name in schema.names:
            row = self._first_other(there.select([name]), here.select([name]))
            if row is None:
                continue
            key, old, new = there["key"][row], there[name][row], here[name][row]
            if name == "key":
                number = self._embedded[places[row]]
                return "rows", f"row {number} is {new.as_py()!r} and was {old.as_py()!r}"
            if name == path:
                return "pictures", f"that of {key.as_py()!r} was {old.as_py()}"
            return "rows", f"{key.as_py()!r} has another {name!r} than before"
        if self._part.pictures is not None:
            for key, i in zip(there["key"].to_pylist(), places, strict=True):
                if self._now[i][1] not in (_UNREAD, int(self._part.pictures[i])):
                    return "pictures", f"that of {key!r} is another than before"
        return None

    def _picture(self, record: Record) -> int | None:
        """Returns the digest of a record's picture; None without one, _UNREAD if not needed."""
        is_inside = (record.path or "").startswith(f"{as_key(self._source)}/")
        if self._part.pictures is None or not (is_inside or self._verify):
            return _UNREAD
        return None if record.read is None else picture_digest(record.read())

    def _first_other(self, there: Any, here: Any) -> int | None:
        """Returns the first row in which two tables of one column differ."""
        (name,) = there.column_names
        if name == self._layout.path:
            pairs = zip(there[name].to_pylist(), here[name].to_pylist(), strict=True)
            are_same = (self._is_same_place(*pair) for pair in pairs)
            return next((row for row, is_same in enumerate(are_same) if not is_same), None)
        if _are_same(there, here):
            return None
        rows = range(len(here))
        return bisect.bisect_left(
            rows, True, key=lambda row: not _are_same(there[: row + 1], here[: row + 1])
        )

    def _is_same_place(self, there: str | None, here: str | None) -> bool:
        """Whether two paths are the same, although the whole input may have been moved."""
        if there is None or here is None:
            return there == here
        if here.startswith(f"{as_key(self._source)}/"):
            return True  # its key and content identify it
        inside = here.removeprefix(f"{as_key(os.path.dirname(self._source))}/")
        return there == here or (inside != here and there.endswith(f"/{inside}"))


def _are_same(there: Any, here: Any) -> bool:
    """Whether two tables are written as the same bytes."""
    return encoded(there.combine_chunks(), {}, {}) == encoded(here.combine_chunks(), {}, {})


def _changed(path: str) -> float:
    """Returns the time of a file's last change in nanoseconds; infinity if it is unknown."""
    where = storage(path)
    modified = where.modified(path)
    return math.inf if modified is None else max(modified, where.stat(path).changed)
