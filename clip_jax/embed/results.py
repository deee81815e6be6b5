"""Reads the output of an embedding job: as a dataset, or as a table with a count of its gaps."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.embed.chunks import shard_of
from clip_jax.embed.gaps import Gaps, gaps
from clip_jax.embed.identity import read_job
from clip_jax.embed.parts import Expected, Finished, NpyParts, Parts
from clip_jax.errors import is_exhausted
from clip_jax.sources.datasets import data_set_of
from clip_jax.sources.records import as_text
from clip_jax.storage import folder, storage

THREADS = 8
# In place of an error's reason.
_LOST = "could not be embedded, and why is lost: run the same clip-jax embed command again"


def read_embeddings(out: str | os.PathLike[str]) -> Any:
    """Opens the Parquet parts in a folder as one `pyarrow.dataset.Dataset`, which reads lazily.

    Example:
        `read_embeddings("out").to_table(columns=["key"])`, or `.to_batches()` for more rows than
        fit into memory. `.schema.metadata[b"clip_jax"]` is the model's identity, as JSON.

    Args:
        out: the folder; any address that fsspec knows.

    Returns:
        A dataset in the order of the input, with the columns `key`, `embedding` (fixed-size
        lists), where they exist `text_embedding`, `path` and `caption`, and those passed through.

    Raises:
        ValueError: there are no valid Parquet parts.
        OSError: the folder can't be read.

    Warns:
        Incomplete: parts are missing or damaged, whose rows are left out; says how many.
    """
    import pyarrow.dataset

    out = _named_in_utf8(folder(out))
    job = finished_job(out)
    if job["identity"]["format"] != "parquet":
        raise ValueError(f"{out} holds arrays: read img_emb/ and text_emb/ with numpy.load")
    parts = parts_of(out, job)
    whole = _whole(out, parts)
    for warning in _gaps(job, whole).warnings(out, parts.table):
        warnings.warn(warning, stacklevel=2)
    names = [parts.path(parts.table, name) for name in whole]
    where = storage(out)
    return pyarrow.dataset.dataset(
        [where.within(name) for name in names], format="parquet", filesystem=where.filesystem
    )


def finished_job(out: str) -> dict[str, Any]:
    """Reads the `job.json` in a folder.

    Raises:
        ValueError: there is none.
        OSError: the folder can't be read.
    """
    job = read_job(out)
    if job is None:
        raise ValueError(f"{out} is no output of clip-jax embed: it has no job.json")
    return job


def parts_of(out: str, job: dict[str, Any]) -> Parts:
    """Returns the parts of a job."""
    identity = job["identity"]
    columns = identity.get("columns")
    # After those of pictures, captions and keys.
    others = columns[3:] if isinstance(columns, list) else []
    expected = Expected(
        job["embeddings"],
        job["dim"],
        identity["dtype"],
        others,
        identity["rows_per_part"],
        job.get("shards"),
    )
    kind = NpyParts if identity["format"] == "npy" else Parts
    return kind(out, {"fingerprint": job["fingerprint"]}, expected, job.get("extensions", ()))


@dataclasses.dataclass(frozen=True)
class Results:
    """Rows of an embedding job.

    Attributes:
        table: an Arrow table of the columns asked for, in the order of the input.
        problems: the rows that the job could not embed, each with the reason.
        missing: how many rows are in no part, neither embedded nor as errors.
        unknown: how many files of the input have no part; they may be empty.
    """

    table: Any
    problems: list[str]
    missing: int
    unknown: int


def read_results(source: str | os.PathLike[str], columns: Sequence[str]) -> Results:
    """Reads the image embeddings of a job, and some other columns, from its valid parts.

    Raises:
        ValueError: there are no image embeddings, or no such column (the message lists the
            columns). No part is valid, or no row could be embedded. Or Arrow can't read a part.
        OSError: the parts can't be read.
        MemoryError: the columns don't fit into memory.

    Warns:
        Incomplete: the job is not finished, as far as the existing parts show.
    """
    source = _named_in_utf8(folder(source))
    with _arrows_errors(source):
        return _read(source, columns)


def _read(source: str, columns: Sequence[str]) -> Results:
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
        take = f"Embed into another folder, with --columns {absent[0]} to take it along"
        if _is_plain_folder(job.get("source")):
            take = (
                f"A folder of pictures has no columns to take along: give {job['source']} itself, "
                f"or embed a table of its pictures with a column {absent[0]!r}"
            )
        raise ValueError(f"{source} has no column {absent[0]!r}; its columns are {names}. {take}")
    problems = []
    for name, finished in whole.items():
        if finished.errors:  # else the table of errors is from an earlier run
            problems += [f"{error.key}: {error.reason}" for error in parts.errors(name)]
            problems += [f"row {row} of {name}: {_LOST}" for row in sorted(finished.lost)]
    # A column may be asked for twice: keys can be labels, too.
    table = dataset.to_table(columns=list(dict.fromkeys(("embedding", *columns))))
    if not len(table):
        raise ValueError(f"{source}: no picture could be read; the first: {problems[0]}")
    lacking = _gaps(job, whole)
    for warning in lacking.warnings(source, parts.table):
        warnings.warn(warning, stacklevel=4)
    return Results(table, problems, lacking.rows, len(lacking.shards))


def embeddings_of(table: Any, column: str) -> Float[np.ndarray, "n d"]:
    """Returns a column of fixed-size lists as a float32 array."""
    # Chunk by chunk: one Arrow array could have more numbers than its offsets can count.
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table[column].chunks]
    return np.concatenate(chunks, dtype=np.float32).reshape(len(table), -1)


def _gaps(job: Mapping[str, Any], whole: Mapping[str, Finished]) -> Gaps:
    return gaps(job, {name: finished.shard_rows for name, finished in whole.items()})


def _named_in_utf8(path: str) -> str:
    """Returns the path; raises ValueError if Arrow's datasets can't read a folder of that name."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{as_text(path)}: its name is not UTF-8; rename it to read it") from None
    return path


def _whole(source: str, parts: Parts) -> dict[str, Finished]:
    """Returns the metadata of the valid parts by name, in order, as `clip-jax embed` sees them."""
    names = sorted(parts.names())
    if not names:
        raise ValueError(f"{source} holds no parts yet")
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        found = zip(names, pool.map(parts.finished, names), strict=True)
        whole = {name: finished for name, finished in found if finished}
    if not whole:
        path = parts.path(parts.table, names[0])
        raise ValueError(f"{path} is damaged: run the same clip-jax embed command again")
    # A file that could not be opened counted as one row; a later run may have found more.
    rows: dict[int, int] = collections.defaultdict(int)
    for name, finished in whole.items():
        rows[shard_of(name)] = max(rows[shard_of(name)], finished.shard_rows)
    return {
        name: finished
        for name, finished in whole.items()
        if finished.shard_rows == rows[shard_of(name)]
    }


@contextlib.contextmanager
def _arrows_errors(source: str) -> Iterator[None]:
    """Turns Arrow's own exceptions, of a dozen kinds, into ValueErrors."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        if isinstance(error, OSError | MemoryError) or is_exhausted(error):
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{source} has parts that can't be read ({reason}): run the same clip-jax embed "
            "command again, with --verify if it is on an object store"
        ) from None


def _is_plain_folder(source: str | None) -> bool:
    """Whether a job's input is a folder of pictures that is still there, not one of tables."""
    if source is None or not storage(source).is_folder(source):
        return False
    return data_set_of(source) is None
