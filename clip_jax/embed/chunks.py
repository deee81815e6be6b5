"""Division of an input into chunks of rows, and of the chunks among workers."""

import dataclasses

# With fewer files than this per process, the processes divide the chunks of each file instead.
SHARDS_EACH = 4


@dataclasses.dataclass(frozen=True, order=True)
class Chunk:
    """Rows of one shard that make one part.

    Attributes:
        shard: the index of the shard.
        number: the index of the chunk in its shard.
        begin: the number of its first row in the shard.
        end: the number after its last row.
    """

    shard: int
    number: int
    begin: int
    end: int

    @property
    def name(self) -> str:
        """The chunk's unique name in a job; names sort as the chunks do."""
        return f"{self.shard:06d}-{self.number:06d}"

    def __len__(self) -> int:
        return self.end - self.begin


def shard_of(name: str) -> int:
    """Returns the index of the shard, given the name of a chunk."""
    return int(name.partition("-")[0])


def divide(shard: int, rows: int, rows_per_part: int) -> list[Chunk]:
    """Returns the chunks of a shard, which depend on nothing but these numbers."""
    return [
        Chunk(shard, number, begin, min(begin + rows_per_part, rows))
        for number, begin in enumerate(range(0, rows, rows_per_part))
    ]


@dataclasses.dataclass(frozen=True)
class Worker:
    """One of several processes that share a job, and its choice of chunks.

    If there are enough files, each process takes whole ones, so that no other opens them.

    Attributes:
        index: the index of this process.
        count: the number of processes.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"a shard I/N must have 0 <= I < N. Got {self.index}/{self.count}; the first of "
                f"{max(self.count, 1)} is 0/{max(self.count, 1)}."
            )

    def shards(self, num_shards: int) -> range:
        """Returns the indices of the shards that this process opens."""
        by_shard = num_shards >= SHARDS_EACH * self.count
        return range(self.index, num_shards, self.count) if by_shard else range(num_shards)

    def takes(self, chunk: Chunk, num_shards: int) -> bool:
        """Whether this process does a chunk of one of its shards."""
        by_shard = num_shards >= SHARDS_EACH * self.count
        return by_shard or (chunk.shard + chunk.number) % self.count == self.index
