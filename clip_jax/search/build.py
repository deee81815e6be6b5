"""Builds an index for approximate search over the output of an embedding job."""

import concurrent.futures
import dataclasses
import functools
import math
import os
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from clip_jax.embed.results import finished_job, parts_of
from clip_jax.messages import counted, some
from clip_jax.progress import Progress, announce
from clip_jax.search.index import MOST, Damaged, Index
from clip_jax.search.index_file import (
    NAME,
    DamagedIndex,
    Head,
    Manifest,
    path_of,
    read_head,
    write_head,
)
from clip_jax.search.kinds import Design, Kind, design, library, sampled, untrained, usual_kind
from clip_jax.search.lists import Lists
from clip_jax.storage import Disk, folder, storage

T = TypeVar("T")
LOCK = ".index.lock"
# Gigabytes that building may take by default.
MEMORY = 4.0
# The sample takes a quarter of them, and so do the lists that are being written; faiss copies much
# of the sample as it trains.
SHARE = 4
# Rows that are divided among the lists at a time.
BLOCK = 8192


@dataclasses.dataclass(frozen=True)
class Built:
    """An index that has been built, or was there.

    Attributes:
        path: the file.
        kind: how rows are kept.
        rows: how many rows it has.
        lists: how many lists they are divided among.
        size: bytes of the file.
        seconds: how long it took to build.
        is_new: False if the index was there, of the same parts.
    """

    path: str
    kind: Kind
    rows: int
    lists: int
    size: int
    seconds: float
    is_new: bool = True

    def __str__(self) -> str:
        what = f"{self.kind}, {counted(self.rows, 'row')} in {counted(self.lists, 'list')}"
        size = f"{self.size / 1e6:,.2f} MB"
        if not self.is_new:
            return f"{self.path} is there already: {what}, {size}"
        return f"{self.path}: {what}, {size}; {self.seconds:.1f} s"


def build_index(
    out: str | os.PathLike[str],
    *,
    kind: Kind | None = None,
    memory: float = MEMORY,
    threads: int | None = None,
    progress: bool = True,
) -> Built:
    """Builds an index of a job's embeddings, for `search(..., approximate=True)`.

    The index is one file beside the parts, which appears when it is complete and replaces the one
    before. One of the same parts and kind is left as it is, once its content has been checked.

    Args:
        out: the job's folder.
        kind: how a row is kept: "flat" in float32, all of which are compared; or in a list of which
            a search reads some, "ivf" in float16, "sq8" in a byte a dimension, "pq" in a byte for
            eight dimensions. By default "flat" up to 20,000 rows, "ivf" up to 200,000, then "pq".
        memory: gigabytes that building may take, besides the half that the program itself does.
        threads: how many compute; by default as many as there are cores.
        progress: whether to show the progress.

    Raises:
        ValueError: there are no embeddings; a part is damaged; the kind or the memory isn't fit for
            so many rows.
        ModuleNotFoundError: faiss is not installed.
        OSError: the output can't be read or written, or another process is building the index.

    Warns:
        Incomplete: parts are missing or damaged; the message says how many rows the index lacks.
    """
    begin = time.monotonic()
    faiss = library()
    out = folder(out)
    job, where = finished_job(out), storage(out)
    with where.locked(f"{out}/{LOCK}", f"the index of {out}"):
        for name in where.abandoned(out):
            if name.startswith(f".{NAME}."):
                where.remove(f"{out}/{name}")
        rows = Index(out, job)
        for warning in rows.gaps.warnings(out, parts_of(out, job).table):
            warnings.warn(warning, stacklevel=2)
        if there := _there(out, job, rows, kind):
            return there
        layout = _layout(rows, kind, memory)
        index = untrained(layout, rows.dim)
        _train(index, rows, layout, threads, progress)
        lists = Lists(
            out if isinstance(where, Disk) else None, layout.lists, rows.num_rows, index.code_size
        )
        try:
            _add(index, rows, lists, threads, progress)
            announce("writing", progress)
            manifest = Manifest(
                job["fingerprint"],
                rows.parts(),
                layout.kind,
                index.code_size,
                faiss.__version__,
            )

            def write(file: Any) -> None:
                sizes, checks = lists.write(file, int(memory * 1e9 / SHARE))
                head = faiss.serialize_index(index).tobytes()
                write_head(file, Head(manifest, head, sizes, checks))

            where.write_by(path_of(out), write)
        finally:
            lists.close()
    size = where.size(path_of(out))
    seconds = time.monotonic() - begin
    return Built(path_of(out), layout.kind, rows.num_rows, layout.lists, size, seconds)


def _layout(rows: Index, kind: Kind | None, memory: float) -> Design:
    """Returns the layout of the index; raises ValueError if it needs more memory."""
    # Each row's list is kept in two bytes until all are written.
    least = (2 * rows.num_rows + BLOCK * rows.dim * 8) * SHARE / 1e9
    if not least <= memory < math.inf:
        raise ValueError(
            f"an index of {counted(rows.num_rows, 'row')} takes {1.05 * least:.2g} GB of memory at "
            f"least. Got {memory:g}."
        )
    return design(rows.num_rows, int(memory * 1e9 / SHARE) // (4 * rows.dim), kind)


def _train(index: Any, rows: Index, layout: Design, threads: int | None, progress: bool) -> None:
    """Trains an index on rows that are drawn, always the same."""
    count = sampled(layout, rows.num_rows)
    if count < rows.num_rows:
        chosen = np.random.default_rng(0).choice(rows.num_rows, count, replace=False)
        chosen.sort()
    else:
        chosen = np.arange(rows.num_rows)
    sample, done = np.empty((count, rows.dim), np.float32), 0
    announce(f"reading {counted(count, 'row')} of {rows.num_rows:,}", progress)
    with Progress(progress) as shown:
        for begin, block in _blocks(rows):
            low, high = np.searchsorted(chosen, [begin, begin + len(block)])
            sample[low:high] = block[chosen[low:high] - begin]
            done += len(block)
            shown.update(done, total=rows.num_rows)
    announce(f"training {counted(layout.lists, 'list')}", progress)
    _computed(lambda: index.train(sample), threads)


def _add(index: Any, rows: Index, lists: Lists, threads: int | None, progress: bool) -> None:
    """Divides all rows among the lists."""
    faiss = library()

    def coded(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, places = index.quantizer.search(vectors, 1)
        codes = np.empty((len(vectors), index.code_size), np.uint8)
        arrays = map(faiss.swig_ptr, (vectors, places, codes))
        index.encode_vectors(len(vectors), *arrays)
        return places[:, 0], codes

    announce("adding all rows", progress)
    done = 0
    with Progress(progress) as shown:
        for _, block in _blocks(rows):
            vectors = np.ascontiguousarray(block, np.float32)
            lists.add(*_computed(functools.partial(coded, vectors), threads))
            done += len(block)
            shown.update(done, total=rows.num_rows)


def _computed(act: Callable[[], T], threads: int | None) -> T:
    """Computes in a thread of its own: this one answers signals, which faiss wouldn't."""
    found: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            if threads:
                library().omp_set_num_threads(threads)
            found.set_result(act())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found.result()


def _blocks(rows: Index) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the number of a block's first row, and its rows; the next one is read meanwhile."""

    def read(bounds: tuple[int, int]) -> np.ndarray:
        block = np.empty((bounds[1] - bounds[0], rows.dim), rows.dtype)
        rows.read(*bounds, block)
        return block

    bounds = rows.blocks(BLOCK)
    damaged: set[str] = set()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        next_ = pool.submit(read, bounds[0])
        for place, (begin, _) in enumerate(bounds):
            this = next_
            if place + 1 < len(bounds):
                next_ = pool.submit(read, bounds[place + 1])
            try:
                block = this.result()
            except Damaged as error:
                damaged |= error.parts
                continue
            norms = np.einsum("nd,nd->n", block, block, dtype=np.float32)
            wrong = np.flatnonzero(~(norms <= MOST**2)).tolist()  # or no number
            damaged.update(rows.part_of(begin + row) for row in wrong)
            if not damaged:
                yield begin, block
    if damaged:
        raise ValueError(
            f"{some(sorted(damaged), most=3)} {'is' if len(damaged) == 1 else 'are'} damaged: run "
            "the same clip-jax embed command again"
        )


def _there(out: str, job: dict[str, Any], rows: Index, kind: Kind | None) -> Built | None:
    """Returns the index that is there, if it is sound and what would be built."""
    path, where = path_of(out), storage(out)
    try:
        head = read_head(path)
    except (FileNotFoundError, DamagedIndex):
        return None
    found = head.manifest
    if found.fingerprint != job["fingerprint"] or found.parts != rows.parts():
        return None
    kind = kind or usual_kind(found.rows)
    if found.kind != kind:
        return None
    for begin, end, check in zip(head.offsets, head.offsets[1:], head.checks, strict=False):
        if zlib.crc32(where.read_range(path, int(begin), int(end))) != check:
            return None
    lists = len(head.sizes)
    return Built(path, kind, found.rows, lists, where.size(path), 0.0, is_new=False)
