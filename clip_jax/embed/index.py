"""What an embedding job has left, to be read: as a dataset, or as blocks of embeddings."""

import dataclasses
import io
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clip_jax.embed.identity import read_job
from clip_jax.embed.parts import ABOUT, FILE, ROW_GROUP, NpyParts, Parts, matrix
from clip_jax.storage import Disk, plain, storage


def read_embeddings(out: str | os.PathLike[str]) -> Any:
    """The Parquet parts in a folder as one `pyarrow.dataset.Dataset`, read as far as it is used.

    Example:
        `read_embeddings("out").to_table(columns=["key"])`, or `.to_batches()` for more rows than
        fit into memory. `.schema.metadata[b"clip_jax"]` is the model's identity, as JSON.

    Args:
        out: the folder; any address that fsspec knows.

    Returns:
        A dataset with the columns `key`, `embedding` (fixed-size lists), those of `text_embedding`,
        `path` and `caption` that there are, and what was taken along; in the order of the input.

    Raises:
        ValueError: there are no Parquet parts.
        OSError: the folder can't be read.
    """
    import pyarrow.dataset

    out = plain(out).rstrip("/")
    job = finished_job(out)
    if job["identity"]["format"] != "parquet":
        raise ValueError(f"{out} holds arrays: read img_emb/ and text_emb/ with numpy.load")
    parts = parts_of(out, job)
    names = [parts.path(parts.table, name) for name in sorted(parts.names())]
    if not names:
        raise ValueError(f"{out} holds no parts yet")
    where = storage(out)
    return pyarrow.dataset.dataset(
        [where.within(name) for name in names], format="parquet", filesystem=where.filesystem
    )


def finished_job(out: str) -> dict[str, Any]:
    """What is noted of the job in a folder.

    Raises:
        ValueError: there is none.
        OSError: the folder can't be read.
    """
    job = read_job(out)
    if job is None:
        raise ValueError(f"{out} is no output of clip-jax embed: it has no job.json")
    return job


def parts_of(out: str, job: dict[str, Any]) -> Parts:
    """The parts of that job."""
    about = {"fingerprint": job["fingerprint"]}
    if job["identity"]["format"] == "npy":
        return NpyParts(out, about, job["embeddings"])
    return Parts(out, about)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Embeddings that lie together in a file.

    Attributes:
        part: the name of its part.
        path: the file.
        group: the row group in it.
        row: the first row, counted from the part's.
        rows: how many.
        offset: of the first byte; None where the file has to be decoded.
    """

    part: str
    path: str
    group: int
    row: int
    rows: int
    offset: int | None


class Index:
    """The embeddings of a job, to be read block by block.

    Attributes:
        dim: columns of the embeddings.
        dtype: of the embeddings.
        num_rows: how many there are.
    """

    def __init__(self, out: str, job: dict[str, Any]):
        """Reads the parts' footers; those of another job don't count.

        Raises:
            ValueError: there are no parts; or one is damaged, which the same `clip-jax embed`
                command as before does again.
            OSError: the folder can't be read.
        """
        self.dim = job["dim"]
        self.dtype = np.dtype(job["identity"]["dtype"])
        self._parts, self._storage = parts_of(out, job), storage(out)
        self._fingerprint = job["fingerprint"]
        self._pieces = [
            piece for name in sorted(self._parts.names()) for piece in self._read_footer(name)
        ]
        self._begins = [0, *itertools.accumulate(piece.rows for piece in self._pieces)]
        self.num_rows = self._begins[-1]
        self._maps: dict[str, np.memmap] = {}
        if not self._pieces:
            raise ValueError(f"{out} holds no embeddings yet")

    def blocks(self, rows: int) -> list[tuple[int, int]]:
        """Where blocks of so many rows begin and end."""
        return [
            (begin, min(begin + rows, self.num_rows)) for begin in range(0, self.num_rows, rows)
        ]

    def read(self, begin: int, end: int, target: np.ndarray) -> None:
        """Reads rows into `target`, (rows, d); by any thread.

        Raises:
            OSError: they can't be read.
        """
        first = max(np.searchsorted(self._begins, begin, side="right") - 1, 0)
        for piece, start in zip(self._pieces[first:], self._begins[first:], strict=False):
            if start >= end:
                return
            low, high = max(begin, start), min(end, start + piece.rows)
            if low < high:
                target[low - begin : high - begin] = self._read(piece, low - start, high - start)

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Key, path, caption and so on of some rows."""
        import pyarrow.parquet as pq

        found: list[dict[str, Any]] = []
        for number in numbers:
            place = int(np.searchsorted(self._begins, number, side="right")) - 1
            piece = self._pieces[place]
            row = piece.row + number - self._begins[place]
            path = self._parts.path(self._parts.table, piece.part)
            file = pq.ParquetFile(self._storage.arrow(path))
            names = [name for name in file.schema_arrow.names if "embedding" not in name]
            group, offset = divmod(row, ROW_GROUP)
            (values,) = file.read_row_group(group, names).slice(offset, 1).to_pylist()
            found.append(values)
        return found

    def _read_footer(self, name: str) -> Iterator[Piece]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._parts.path(self._parts.table, name)
        try:
            metadata = pq.read_metadata(self._storage.arrow(path))
            about, file = (json.loads(metadata.metadata[key]) for key in (ABOUT, FILE))
        except (pa.ArrowException, LookupError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged: run the same clip-jax embed command again ({error})"
            ) from None
        if about["fingerprint"] != self._fingerprint:
            return
        if array := self._parts.beside.get("embedding"):
            path = self._parts.path(array, name)
            offsets = [self._array_offset(path)] if metadata.num_rows else []
            yield from (Piece(name, path, 0, 0, metadata.num_rows, o) for o in offsets)
            return
        row = 0
        for group, offset in enumerate(file["at"]["embedding"]):
            rows = metadata.row_group(group).num_rows
            yield Piece(name, path, group, row, rows, offset if offset >= 0 else None)
            row += rows

    def _array_offset(self, path: str) -> int:
        head = io.BytesIO(self._storage.read_range(path, 0, 4096))
        assert np.lib.format.read_magic(head) == (1, 0)  # which is what we write
        np.lib.format.read_array_header_1_0(head)
        return head.tell()

    def _read(self, piece: Piece, begin: int, end: int) -> np.ndarray:
        if piece.offset is None:
            import pyarrow.parquet as pq

            file = pq.ParquetFile(self._storage.arrow(piece.path))
            return matrix(file.read_row_group(piece.group, ["embedding"]).column(0))[begin:end]
        width = self.dim * self.dtype.itemsize
        low, high = piece.offset + begin * width, piece.offset + end * width
        if isinstance(self._storage, Disk):
            if piece.path not in self._maps:
                self._maps[piece.path] = np.memmap(piece.path, np.uint8, mode="r")
            data: Any = self._maps[piece.path][low:high]
        else:
            data = self._storage.read_range(piece.path, low, high)
        return np.frombuffer(data, self.dtype).reshape(end - begin, self.dim)
