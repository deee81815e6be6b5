"""The rows that an embedding job has left, and what is known of those that it lacks."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.embed.index import finished_job, parts_of
from clip_jax.embed.parts import ERRORS, Finished, Parts
from clip_jax.embed.units import divide
from clip_jax.errors import is_exhausted
from clip_jax.storage import Storage, storage

THREADS = 8
# Parts, or files of the input, that a warning names.
SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Rows of an embedding job.

    Attributes:
        table: an Arrow table of the columns asked for, in the order of the input.
        problems: the job's own errors, rows that it could not embed, with the reason.
        missing: rows that no part holds, neither embedded nor as errors.
        unknown: files of the input that no part is of, which may be empty or not.
    """

    table: Any
    problems: list[str]
    missing: int
    unknown: int


def read_embedded(source: str, columns: Sequence[str]) -> Embedded:
    """The image embeddings of a job, and some other columns, of the parts that are whole.

    Raises:
        ValueError: there are no image embeddings, or there is no such column; says which there are.
            No part is whole, or no row could be embedded. Or Arrow can't read what is there.
        OSError: they can't be read.
        MemoryError: they don't fit into memory.

    Warns:
        UserWarning: the job is not finished, as far as the parts that are there can tell.
    """
    source = source.rstrip("/")
    with _arrows_errors(source):
        return _read(source, columns)


def _read(source: str, columns: Sequence[str]) -> Embedded:
    import pyarrow.dataset

    job, where = finished_job(source), storage(source)
    if job["identity"]["format"] != "parquet":
        raise ValueError(f"{source} holds arrays: embed with --format parquet to evaluate")
    what = "both" if "text_embedding" in columns else "images"
    if job["embeddings"].get("embedding") != "image":
        raise ValueError(f"{source} has no embeddings of images: embed them with --what {what}")
    if what == "both" and "text_embedding" not in job["embeddings"]:
        raise ValueError(f"{source} has no embeddings of captions: embed them with --what both")
    parts = parts_of(source, job)
    whole = _whole(source, parts)
    paths = [where.within(parts.path(parts.table, name)) for name in whole]
    dataset = pyarrow.dataset.dataset(paths, format="parquet", filesystem=where.filesystem)
    if absent := [name for name in columns if name not in dataset.schema.names]:
        names = ", ".join(map(repr, dataset.schema.names))
        raise ValueError(
            f"{source} has no column {absent[0]!r}; its columns are {names}. Embed into another "
            f"folder, with --columns {absent[0]} to take it along"
        )
    problems = [
        f"{error['key']}: {error['reason']}"
        for name, finished in whole.items()
        if finished.errors  # else what lies there is of an earlier try
        for error in _rows(where, parts.path(f"{ERRORS}/{parts.table}", name))
    ]
    # A column may be asked for twice: keys can be labels, too.
    table = dataset.to_table(columns=list(dict.fromkeys(("embedding", *columns))))
    if not len(table):
        raise ValueError(f"{source}: no picture could be read; the first: {problems[0]}")
    return Embedded(table, problems, *_warn(source, job, parts, whole))


def embeddings_of(table: Any, column: str) -> Float[np.ndarray, "n d"]:
    """A column of fixed-size lists as a float32 array."""
    # One by one: an Arrow array of all could have more numbers than its offsets can count.
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[column].chunks]
    return np.concatenate(chunks, dtype=np.float32).reshape(len(table), -1)


def _whole(source: str, parts: Parts) -> dict[str, Finished]:
    """What the parts that count say, by their names, in order; as `clip-jax embed` takes them."""
    names = sorted(parts.names())
    if not names:
        raise ValueError(f"{source} holds no parts yet")
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        found = zip(names, pool.map(parts.finished, names), strict=True)
        whole = {name: finished for name, finished in found if finished}
    if not whole:
        path = parts.path(parts.table, names[0])
        raise ValueError(f"{path} is damaged: run the same clip-jax embed command again")
    # A file that could not be opened was a single row; a later try may have found out more.
    rows: dict[int, int] = collections.defaultdict(int)
    for name, finished in whole.items():
        rows[_shard(name)] = max(rows[_shard(name)], finished.shard_rows)
    return {
        name: finished
        for name, finished in whole.items()
        if finished.shard_rows == rows[_shard(name)]
    }


def _rows(where: Storage, path: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(where.arrow(path)).to_pylist()


@contextlib.contextmanager
def _arrows_errors(source: str) -> Iterator[None]:
    """Makes Arrow's own exceptions, of which there is a dozen kinds, ValueErrors."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        if isinstance(error, OSError | MemoryError) or is_exhausted(error):
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{source} has parts that can't be read ({reason}): run the same clip-jax embed "
            "command again"
        ) from None


def _warn(
    source: str, job: Mapping[str, Any], parts: Parts, whole: Mapping[str, Finished]
) -> tuple[int, int]:
    """How many rows are missing for certain, and of how many files nothing is known; says so.

    A part tells how many rows its file of the input has. Of a file without any part nothing is
    known: it may be empty.
    """
    shards = {_shard(name): finished.shard_rows for name, finished in whole.items()}
    missing = {
        unit.name: len(unit)
        for shard, rows in shards.items()
        for unit in divide(shard, rows, job["identity"]["rows_per_part"])
        if unit.name not in whole
    }
    again = "run the same clip-jax embed command again"
    count = sum(missing.values())
    if missing:
        names = _listed([parts.table.format(name) for name in missing])
        warnings.warn(
            f"{source} is not finished: {count:,} rows are left out, whose parts are missing or "
            f"damaged ({names}): {again}",
            stacklevel=5,
        )
    # Jobs of earlier versions don't say how many files there were.
    if unknown := sorted(set(range(job.get("shards", max(shards) + 1))) - shards.keys()):
        names = _listed([parts.table.format(f"{shard:06d}-*") for shard in unknown])
        warnings.warn(
            f"{source} has no part of some files of its input ({names}): unless these are empty, "
            f"{again}",
            stacklevel=5,
        )
    return count, len(unknown)


def _shard(name: str) -> int:
    return int(name.partition("-")[0])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
