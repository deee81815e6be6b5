"""The rows that a job's output lacks, as far as the existing parts show."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.embed.chunks import divide
from clip_jax.messages import counted, some

# How many parts a message names.
SHOWN = 3


class Incomplete(UserWarning):
    """Rows are left out because their parts are missing or damaged.

    Attributes:
        rows: how many are certainly missing; 0 if a file of the input may just be empty.
    """

    def __init__(self, message: str, rows: int = 0):
        super().__init__(message)
        self.rows = rows


@dataclasses.dataclass(frozen=True)
class Gaps:
    """The missing rows.

    Attributes:
        chunks: how many rows each missing chunk has, by its name.
        shards: the indices of the input's files without any part; they may be empty.
    """

    chunks: Mapping[str, int]
    shards: Sequence[int]

    @property
    def rows(self) -> int:
        """How many rows are certainly missing."""
        return sum(self.chunks.values())

    def warnings(self, out: str, table: str) -> list[Incomplete]:
        """Returns one warning for each kind of gap.

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
    """Compares the existing chunks with those that the job must have.

    Args:
        job: the content of `job.json`.
        shard_rows: how many rows its shard has, for each existing chunk by name.
    """
    # A file that could not be opened counted as one row; a later run may have found more.
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
    # Jobs of earlier versions don't record how many files the input has.
    shards = range(job.get("shards", max(rows, default=-1) + 1))
    return Gaps(chunks, [shard for shard in shards if shard not in rows])
