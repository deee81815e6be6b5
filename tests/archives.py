"""Inputs of rows: tar shards, tables of captions, Parquet files; and the records that they give."""

import io
import json
import tarfile

import pytest

from clip_jax.sources import Columns, open_input


def write_tar(path, members: dict[str, bytes]):
    """A shard of these members; gives its path."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_table(folder, kind: str, rows: list[dict]):
    """A table "captions" of that kind in the folder; gives its path."""
    path = folder / f"captions.{kind}"
    if kind == "csv":
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def rows_of(source, columns: Columns | None = None) -> list:
    """All records of an input."""
    records = []
    for shard in open_input(source, columns).shards:
        rows = shard.open()
        records += rows.records(0, len(rows))
    return records


def parquet(path, table: dict, **options):
    """A Parquet file of these columns; gives its path."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(table), path, **options)
    return path
