"""A Parquet file of a few kilobytes whose rows are all the same large picture."""

import pytest

from clip_jax.sources import open_input, parquet
from clip_jax.sources.parquet import MOST_IN_ROWS, ROWS
from clip_jax.sources.table import TablePairs

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path, sizes: list[int], rows: int) -> None:
    """One row group for each size, with one value that all its rows have."""
    schema = pa.schema([("image", pa.binary()), ("caption", pa.string())])
    limit = {"dictionary_pagesize_limit": 1 << 31, "write_statistics": False}
    with pq.ParquetWriter(path, schema, compression="zstd", **limit) as writer:
        for size in sizes:
            images = pa.array([bytes(size)] * rows, pa.binary())
            captions = [f"caption {i} of {size}" for i in range(rows)]
            writer.write_table(pa.table([images, captions], schema=schema))


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """The bytes of pictures in each batch that is read."""
    found: list[int] = []
    of_batch = parquet.rows_of

    def rows_of(batch):
        rows = of_batch(batch)
        found.append(sum(len(row["image"]) for row in rows if isinstance(row, dict)))
        return rows

    for module in ("clip_jax.sources.parquet", "clip_jax.sources.batches"):
        monkeypatch.setattr(f"{module}.rows_of", rows_of)
    return found


def test_rows_of_one_large_picture_are_not_all_in_memory_at_a_time(tmp_path, seen, monkeypatch):
    monkeypatch.setattr(parquet, "MOST_IN_ROWS", 1 << 20)
    write(tmp_path / "a.parquet", [10, 1 << 18, 1 << 21], 40)
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    (shard,) = open_input(tmp_path / "a.parquet").shards
    records = list(shard.open().records(0, 120))
    assert [record.caption for record in records[79:81]] == [
        "caption 39 of 262144",
        "caption 0 of 2097152",
    ]
    assert len(records) == 120 and max(seen) <= 1 << 21


def test_training_reads_them_likewise_and_keeps_the_picture_once(tmp_path, seen, monkeypatch):
    monkeypatch.setattr(parquet, "MOST_IN_ROWS", 1 << 20)
    write(tmp_path / "a.parquet", [1 << 18], 40)
    pairs = TablePairs(tmp_path / "a.parquet")
    assert sum(len(pairs.captions(i)) for i in range(len(pairs))) == 40
    assert max(seen) <= 1 << 20 and pairs._spool is not None
    assert pairs._spool.size == 1 << 18


def test_ordinary_rows_are_read_as_many_at_a_time_as_before(tmp_path, seen):
    write(tmp_path / "a.parquet", [1000], 3 * ROWS)
    (shard,) = open_input(tmp_path / "a.parquet").shards
    assert len(list(shard.open().records(0, 3 * ROWS))) == 3 * ROWS
    assert seen == [1000 * ROWS] * 3 and MOST_IN_ROWS > 1000 * ROWS
