"""Division of an input into chunks of rows, and of the chunks among workers."""

import dataclasses

# With fewer files than this for each process, the chunks of each file are shared instead of files.
SHARDS_EACH = 4


@dataclasses.dataclass(frozen=True, order=True)
class Chunk:
    """Rows of one shard that make one part.

    Attributes:
        shard: the index of the shard.
        number: of the chunk in its shard.
        begin: its first row, counted from the shard's.
        end: the row after its last.
    """

    shard: int
    number: int
    begin: int
    end: int

    @property
    def name(self) -> str:
        """Tells it from the others of a job, and sorts as they do."""
        return f"{self.shard:06d}-{self.number:06d}"

    def __len__(self) -> int:
        return self.end - self.begin


def shard_of(name: str) -> int:
    """The index of the shard of a chunk of that name."""
    return int(name.partition("-")[0])


def divide(shard: int, rows: int, rows_per_part: int) -> list[Chunk]:
    """The chunks of a shard, which depend on nothing but these numbers."""
    return [
        Chunk(shard, number, begin, min(begin + rows_per_part, rows))
        for number, begin in enumerate(range(0, rows, rows_per_part))
    ]


@dataclasses.dataclass(frozen=True)
class Worker:
    """One of several processes that do a job together, and which chunks it takes.

    A process with enough files takes whole ones, so that nobody else has to open them.

    Attributes:
        index: of the process.
        count: of the processes.
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
        """The indices of the shards that this process opens."""
        by_shard = num_shards >= SHARDS_EACH * self.count
        return range(self.index, num_shards, self.count) if by_shard else range(num_shards)

    def takes(self, chunk: Chunk, num_shards: int) -> bool:
        """Whether that chunk, of one of its shards, is this process's."""
        by_shard = num_shards >= SHARDS_EACH * self.count
        return by_shard or (chunk.shard + chunk.number) % self.count == self.index
