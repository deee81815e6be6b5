"""What a job's output lacks, as far as the parts that are there can tell."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.embed.chunks import divide
from clip_jax.messages import counted, some

# Parts that a message names.
SHOWN = 3


class Incomplete(UserWarning):
    """Rows are left out, since their parts are missing or damaged.

    Attributes:
        rows: how many for certain; 0 where a file of the input may just be empty.
    """

    def __init__(self, message: str, rows: int = 0):
        super().__init__(message)
        self.rows = rows


@dataclasses.dataclass(frozen=True)
class Gaps:
    """What is missing.

    Attributes:
        chunks: how many rows each missing chunk has, by its name.
        shards: files of the input without any part; of which nothing is known, they may be empty.
    """

    chunks: Mapping[str, int]
    shards: Sequence[int]

    @property
    def rows(self) -> int:
        """How many rows are missing for certain."""
        return sum(self.chunks.values())

    def warnings(self, out: str, table: str) -> list[Incomplete]:
        """One for each kind of gap.

        Args:
            out: the folder.
            table: the pattern of the parts' names.
        """
        found, again = [], "run the same clip-jax embed command again"
        if self.chunks:
            names = some((table.format(name) for name in self.chunks), most=SHOWN)
            are = "is" if self.rows == 1 else "are"
            text = (
                f"{out} is not finished: {counted(self.rows, 'row')} {are} left out, whose parts "
                f"are missing or damaged ({names}): {again}"
            )
            found.append(Incomplete(text, self.rows))
        if self.shards:
            names = some((table.format(f"{shard:06d}-*") for shard in self.shards), most=SHOWN)
            text = (
                f"{out} has no part of some files of its input ({names}): unless these are empty, "
                f"{again}"
            )
            found.append(Incomplete(text))
        return found


def gaps(job: Mapping[str, Any], shard_rows: Mapping[str, int]) -> Gaps:
    """Compares what is there with what there must be.

    Args:
        job: what is noted of it.
        shard_rows: by the names of the chunks that are there, how many rows their shards have.
    """
    # A file that could not be opened was a single row; a later try may have found out more.
    rows: dict[int, int] = collections.defaultdict(int)
    for name, count in shard_rows.items():
        shard = int(name.partition("-")[0])
        rows[shard] = max(rows[shard], count)
    chunks = {
        chunk.name: len(chunk)
        for shard, count in sorted(rows.items())
        for chunk in divide(shard, count, job["identity"]["rows_per_part"])
        if shard_rows.get(chunk.name) != count
    }
    # Jobs of earlier versions don't say how many files there were.
    shards = range(job.get("shards", max(rows, default=-1) + 1))
    return Gaps(chunks, [shard for shard in shards if shard not in rows])
