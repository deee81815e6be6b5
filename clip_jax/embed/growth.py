"""Compares an input with what it was when its job began, and finds what has been added since."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clip_jax.embed.chunks import shard_of
from clip_jax.embed.extensions import Entry, Listing, extension, read_listing, write_listing
from clip_jax.embed.parts import Parts
from clip_jax.messages import counted, some
from clip_jax.sources import Input, Shard
from clip_jax.sources.excerpt import Excerpt
from clip_jax.sources.folder import FolderShard, digest_of
from clip_jax.sources.input_files import fingerprint_of
from clip_jax.sources.records import as_name


@dataclasses.dataclass(frozen=True)
class Grown:
    """An input and the extensions of its job.

    Attributes:
        rows: the input, with the shards of the job's beginning first, then those of each extension.
        extensions: the notes of all extensions, the one to be made included.
        first: what the input had when the job began; None if that is what it has now.
        new: what has been added since the last run.
        added: a description of that; empty if nothing has.
    """

    rows: Input
    extensions: Sequence[Mapping[str, Any]] = ()
    first: Listing | None = None
    new: Listing = ()
    added: str = ""

    def write_listings(self, out: str, base: str) -> None:
        """Writes what the input had at first, and what is new.

        Args:
            out: the folder of the job.
            base: the fingerprint of the input when the job began.

        Raises:
            OSError: they can't be written.
        """
        write_listing(out, self.first or listing_of(self.rows), base)
        if self.new:
            write_listing(out, self.new)


def listing_of(rows: Input) -> Listing:
    """Returns what an input has."""
    if isinstance(rows.shards[0], FolderShard):
        return [Entry(name) for name in rows.shards[0].names]
    return [Entry(shard.name, shard.fingerprint) for shard in rows.shards]


class Changed(ValueError):
    """Something that was embedded is gone or has changed.

    Attributes:
        problems: what, one line each.
    """

    def __init__(self, problems: Sequence[str]):
        super().__init__(some(problems, between="; "))
        self.problems = problems


def grown(
    rows: Input, out: str, job: Mapping[str, Any], parts: Parts, *, with_rows: bool
) -> Grown | None:
    """Compares the input with the one that a job has embedded.

    Args:
        rows: the input as it is now.
        out: the folder of the job.
        job: the content of its `job.json`, with its extensions.
        parts: its parts.
        with_rows: whether files may have got more rows.

    Returns:
        What has been added; None if what the input had isn't known.

    Raises:
        Changed: something that was embedded is gone or has changed.
        OSError: the output can't be read.
    """
    base, notes = job["identity"]["input"], job["extensions"]
    if not notes and base == rows.fingerprint:
        return Grown(rows)
    found = [read_listing(out, digest) for digest in (base, *(n["listing"] for n in notes))]
    found[0] = found[0] or _recovered(rows, job, parts)
    there = [listing for listing in found if listing is not None]
    if len(there) < len(found):
        return None
    new: Listing = []
    if rows.fingerprint != (notes[-1]["input"] if notes else base):

        def rows_before(entry: Entry) -> int | None:
            return _rows_before(entry, there, parts) if with_rows else None

        new = _new(_latest(there), listing_of(rows), rows_before)
    after = [*there, new] if new else there
    shards, firsts = _shards(rows, after)
    if new:
        before = notes[-1]["fingerprint"] if notes else job["fingerprint"]
        note = extension(before, rows.fingerprint, new, firsts[-1], len(shards))
        notes = [*notes, note]
    what = "picture" if isinstance(rows.shards[0], FolderShard) else "file"
    return Grown(dataclasses.replace(rows, shards=shards), notes, there[0], new, _added(new, what))


def _recovered(rows: Input, job: Mapping[str, Any], parts: Parts) -> Listing | None:
    """Returns what an input had that an earlier version has begun to embed, where that shows."""
    if isinstance(rows.shards[0], FolderShard):
        if job["extensions"]:
            return None
        keys: list[str] = []
        for name in sorted(parts.names()):
            if parts.finished(name):
                keys += [*parts.keys(name), *(error.key for error in parts.errors(name))]
        names = sorted(map(as_name, keys))
        listing, versions = list(map(Entry, names)), [(digest_of(names), str(len(names)))]
    else:
        listing = listing_of(rows)[: job.get("shards", 1)]
        versions = [(entry.name, entry.version) for entry in listing]
    return listing if fingerprint_of(versions) == job["identity"]["input"] else None


def _added(new: Listing, what: str) -> str:
    """Describes what is new."""
    longer = [entry.name for entry in new if entry.begin]
    parts = [f"more rows in {some(longer, most=3)}"] if longer else []
    if count := len(new) - len(longer):
        parts.insert(0, counted(count, f"more {what}"))
    return " and ".join(parts)


def _latest(listings: Sequence[Listing]) -> list[Entry]:
    """Returns the last versions of all entries, with the first row of the last excerpt."""
    found: list[Entry] = []
    for listing in listings:
        for entry in listing:
            if entry.begin:
                place = next(i for i, other in enumerate(found) if other.name == entry.name)
                found[place] = entry
            else:
                found.append(entry)
    return found


def _new(
    before: Sequence[Entry], now: Sequence[Entry], rows_before: Callable[[Entry], int | None]
) -> Listing:
    """Returns the entries that are new.

    Raises:
        ValueError: others are gone or have changed.
    """
    left: dict[str, list[Entry]] = collections.defaultdict(list)
    for entry in now:
        left[entry.name].append(entry)
    counts = collections.Counter(entry.name for entry in before)
    longer, problems = [], []
    for entry in before:
        here = left[entry.name]
        same = next((other for other in here if other.version == entry.version), None)
        if same is not None:
            here.remove(same)
        elif not here:
            problems.append(f"{entry.name} was embedded, and is gone")
        elif len(here) == 1 and counts[entry.name] == 1 and (begin := rows_before(entry)):
            longer.append(Entry(entry.name, here.pop().version, begin))
        else:
            problems.append(f"{entry.name} has another size or content than when it was embedded")
    if problems:
        raise Changed(problems)
    taken = collections.Counter(entry for entries in left.values() for entry in entries)
    fresh = []
    for entry in now:
        if taken[entry]:
            taken[entry] -= 1
            fresh.append(entry)
    return [*longer, *fresh]


def _rows_before(entry: Entry, listings: Sequence[Listing], parts: Parts) -> int | None:
    """Returns how many rows of a file the job has embedded; None if that doesn't show."""
    if not entry.version:
        return None
    names = [other.name for listing in listings for other in listing]
    last = len(names) - 1 - names[::-1].index(entry.name)
    of_file = [parts.finished(name) for name in parts.names() if shard_of(name) == last]
    count = max((part.shard_rows for part in of_file if part and part.rows), default=0)
    return entry.begin + count if count else None


def _shards(rows: Input, listings: Sequence[Listing]) -> tuple[list[Shard], list[int]]:
    """Returns the shards of a job, and the index of the first one of each listing."""
    whole = rows.shards[0]
    if isinstance(whole, FolderShard):
        parts = [whole.only([entry.name for entry in listing]) for listing in listings]
        return list(parts), list(range(len(parts)))
    ends: dict[str, list[int]] = collections.defaultdict(list)
    for listing in listings:
        for entry in listing:
            if entry.begin:
                ends[entry.name].append(entry.begin)
    left: dict[str, list[Shard]] = collections.defaultdict(list)
    for shard in rows.shards:
        left[shard.name].append(shard)
    shards: list[Shard] = []
    firsts = []
    for listing in listings:
        firsts.append(len(shards))
        for entry in listing:
            if entry.name not in ends:
                here = left[entry.name]
                shard = next(other for other in here if other.fingerprint == entry.version)
                here.remove(shard)
                shards.append(shard)
                continue
            end = next((end for end in ends[entry.name] if end > entry.begin), None)
            shards.append(Excerpt(left[entry.name][0], entry.begin, end))
    return shards, firsts
