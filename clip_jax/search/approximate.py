"""Approximate search: an index names candidates, which are compared with the query exactly."""

import concurrent.futures
import contextlib
import mmap
import os
import tempfile
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from clip_jax.embed.results import finished_job
from clip_jax.messages import counted, some
from clip_jax.search.index import MOST, Damaged, Index
from clip_jax.search.index_file import DamagedIndex, Head, path_of, read_head
from clip_jax.search.kinds import library
from clip_jax.storage import Disk, folder, storage

# Candidates that are compared exactly: so many, and so many times k where that is more.
CANDIDATES, TIMES = 200, 4
# The lists that are read: so many, or that part of all of them, and as many as have so many times
# as many rows as there are candidates.
PROBES, OF_LISTS, READ = 32, 64, 8
# Candidates that are read at a time.
BLOCK = 8192
# Lists of a remote index that are fetched at a time.
THREADS = 8


def has_index(out: str | os.PathLike[str]) -> bool:
    """Whether an output folder has an index, whatever its state.

    Raises:
        OSError: the folder can't be read.
    """
    path = path_of(folder(out))
    try:
        storage(path).size(path)
    except FileNotFoundError:
        return False
    return True


def open_index(out: str | os.PathLike[str], *, threads: int | None = None) -> "ApproximateIndex":
    """Opens the index of a job, as `build_index` has left it, for any number of searches.

    Args:
        out: the job's folder.
        threads: of a search for several queries at once; by default as many as there are cores.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: it is damaged, of another job, or of other parts than there are now; the message
            says what to do.
        ModuleNotFoundError: faiss is not installed.
        OSError: it can't be read.
    """
    library()
    out = folder(out)
    job, path = finished_job(out), path_of(out)
    try:
        head = read_head(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{out} has no index: run clip-jax index {out}") from None
    except DamagedIndex:
        raise _damaged(out) from None
    if head.manifest.fingerprint != job["fingerprint"]:
        raise ValueError(
            f"{path} is the index of another job, {head.manifest.fingerprint}; this one is "
            f"{job['fingerprint']}: run clip-jax index {out}"
        )
    rows = Index(out, job)
    if stale := _differences(head.manifest.parts, rows.parts()):
        raise ValueError(f"{path} is not of these parts: {stale}; run clip-jax index {out}")
    return ApproximateIndex(out, head, rows, threads)


class ApproximateIndex:
    """An index that is open: mapped, so that nothing has to be closed. Threads may share it.

    Attributes:
        kind: how it keeps rows, as in `build_index`.
        num_rows: how many rows it has.
        dim: the dimension of the embeddings.
        gaps: the rows of the job that it lacks.
    """

    def __init__(self, out: str, head: Head, rows: Index, threads: int | None = None):
        """Maps the lists; `open_index` checks that they are of these rows."""
        faiss = library()
        self.kind, self.num_rows = head.manifest.kind, rows.num_rows
        self.dim, self.gaps = rows.dim, rows.gaps
        self._out, self._head, self._rows, self._threads = out, head, rows, threads
        try:
            self._index: Any = faiss.deserialize_index(np.frombuffer(head.index, np.uint8))
        except RuntimeError as error:
            raise ValueError(
                f"faiss {faiss.__version__} can't read {path_of(out)}, which is of faiss "
                f"{head.manifest.faiss} ({str(error).splitlines()[-1]}): run clip-jax index {out}"
            ) from None
        self._lists = _Lists(path_of(out), head)
        self._index.replace_invlists(self._lists.inverted, False)
        self._index.ntotal = self.num_rows

    def search(
        self, queries: Float[np.ndarray, "q d"], k: int
    ) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """Finds rows that are nearest to each of some queries.

        Args:
            queries: float32, normalised.
            k: how many rows; all if there are fewer.

        Returns:
            The exact cosines, float32, best first, and the numbers of the rows, int64, in whose
            order ties come.

        Raises:
            ValueError: the queries have another dimension or aren't normalised, `k` is less than 1,
                or the index or a part is damaged; the message says what to do.
            OSError: the index or a part can't be read.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries must have shape (q, {self.dim}). Got {queries.shape}.")
        norms = np.linalg.norm(queries, axis=1)
        if not (np.abs(norms - 1) < 0.01).all():
            raise ValueError(f"queries must be normalised. Got {norms.tolist()} as their norms.")
        if k < 1:
            raise ValueError(f"k must be at least 1. Got {k}.")
        queries = np.ascontiguousarray(queries, np.float32)
        k = min(k, self.num_rows)
        scores = np.empty((len(queries), k), np.float32)
        numbers = np.empty((len(queries), k), np.int64)
        for place, found in enumerate(self._candidates(queries, k)):
            cosines = self._cosines(found, queries[place])
            order = np.lexsort((found, -cosines))[:k]
            scores[place], numbers[place] = cosines[order], found[order]
        return scores, numbers

    def embeddings(self, numbers: Sequence[int]) -> Float[np.ndarray, "n d"]:
        """Returns the embeddings of some rows, float32.

        Raises:
            ValueError: a part is damaged.
            OSError: a part can't be read.
        """
        with self._advised():
            return self._rows.gather(numbers).astype(np.float32)

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Returns the columns `key`, `path` or `image_path`, and `caption` of some rows, if there.

        Raises:
            ValueError: a part is damaged.
            OSError: a part can't be read.
        """
        with self._advised():
            return self._rows.rows(numbers)

    def _candidates(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        """Returns the numbers of at least k rows for each query."""
        faiss = library()
        if self._threads:
            faiss.omp_set_num_threads(self._threads)
        lists = len(self._head.sizes)
        count = min(max(CANDIDATES, TIMES * k), self.num_rows)
        reaching = -(-READ * count * lists // self.num_rows)
        probes = min(max(PROBES, lists // OF_LISTS, reaching), lists)
        while True:
            cosines, places = self._index.quantizer.search(queries, probes)
            self._lists.check(np.unique(places).tolist(), self._out)
            # Whose own function takes no number of lists.
            found = np.empty((len(queries), count), np.int64)
            distances = np.empty((len(queries), count), np.float32)
            self._index.search_preassigned_c(
                len(queries),
                faiss.swig_ptr(queries),
                count,
                faiss.swig_ptr(places),
                faiss.swig_ptr(cosines),
                faiss.swig_ptr(distances),
                faiss.swig_ptr(found),
                False,
                faiss.SearchParametersIVF(nprobe=probes),
            )
            there = [row[row >= 0] for row in found]
            if probes == lists or min(map(len, there), default=k) >= k:
                return there
            probes = min(2 * probes, lists)

    def _cosines(self, numbers: np.ndarray, query: np.ndarray) -> np.ndarray:
        cosines, wide = np.empty(len(numbers)), query.astype(np.float64)
        with self._advised():
            for begin in range(0, len(numbers), BLOCK):
                rows = self._rows.gather(numbers[begin : begin + BLOCK].tolist())
                with np.errstate(all="ignore"):
                    # In float64, so that rows that are equal have equal scores wherever they stand.
                    found = np.einsum("nd,d->n", rows.astype(np.float64), wide)
                cosines[begin : begin + BLOCK] = found
            wrong = numbers[~(np.abs(cosines) <= MOST)]
            if len(wrong):
                raise Damaged({self._rows.part_of(number) for number in wrong.tolist()})
        return cosines.astype(np.float32)

    @contextlib.contextmanager
    def _advised(self):
        try:
            yield
        except Damaged as error:
            raise ValueError(
                f"{self._out}: {some(sorted(error.parts))} can't be read: run the same clip-jax "
                "embed command again, then clip-jax index; or search without --approximate"
            ) from None


class _Lists:
    """The lists of an index, mapped; those of a remote one are fetched when they are needed."""

    def __init__(self, path: str, head: Head):
        """Maps them; nothing is read.

        Raises:
            OSError: the file can't be opened.
        """
        faiss = library()
        self._path, self._offsets, self._checks = path, head.offsets, head.checks
        self._is_checked = np.zeros(len(head.sizes), bool)
        self._lock = threading.Lock()
        self._storage = storage(path)
        self._is_here = isinstance(self._storage, Disk)
        total = int(self._offsets[-1])
        sizes = head.sizes.astype(np.uint64)  # has a name, as the pointer doesn't keep it alive
        with open(path, "rb") if self._is_here else tempfile.TemporaryFile() as file:
            if not self._is_here:
                file.truncate(total)  # takes no room where nothing is written
            access = mmap.ACCESS_READ if self._is_here else mmap.ACCESS_WRITE
            self._bytes = mmap.mmap(file.fileno(), total, access=access)
            # By its descriptor: the name may be that of another file by now.
            self.inverted = faiss.OnDiskInvertedLists(
                len(sizes), head.manifest.code_size, f"/dev/fd/{file.fileno()}"
            )
            self.inverted.read_only = True
            self.inverted.prefetch_nthread = 0
            self.inverted.set_all_lists_sizes(faiss.swig_ptr(sizes))
            self.inverted.totsize = total
            self.inverted.do_mmap()

    def check(self, places: Sequence[int], out: str) -> None:
        """Checks the content of lists before their first use.

        Raises:
            ValueError: one is damaged.
            OSError: one can't be read.
        """
        with self._lock:
            places = [place for place in places if not self._is_checked[place]]
            if not self._is_here:
                with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
                    list(pool.map(self._fetch, places))
            for place in places:
                begin, end = self._offsets[place : place + 2].tolist()
                if zlib.crc32(memoryview(self._bytes)[begin:end]) != self._checks[place]:
                    raise _damaged(out)
                self._is_checked[place] = True

    def _fetch(self, place: int) -> None:
        begin, end = self._offsets[place : place + 2].tolist()
        data = self._storage.read_range(self._path, begin, end)
        self._bytes[begin : begin + len(data)] = data


def _damaged(out: str) -> ValueError:
    return ValueError(f"{path_of(out)} is damaged or cut: run clip-jax index {out}")


def _differences(of_index: list[list[Any]], there: list[list[Any]]) -> str:
    """Describes how the parts of an index differ from those there are; empty if they don't."""
    before, now = ({name: rest for name, *rest in parts} for parts in (of_index, there))
    gone = sorted(before.keys() - now.keys())
    new = now.keys() - before.keys()
    other = sorted(name for name in before.keys() & now.keys() if before[name] != now[name])
    found = []
    if new:
        rows = sum(now[name][0] for name in new)
        found.append(f"the job has {counted(len(new), 'more part')} ({counted(rows, 'row')})")
    if other:
        found.append(f"{some(other, most=3)} {'has' if len(other) == 1 else 'have'} changed")
    if gone:
        found.append(f"{some(gone, most=3)} {'is' if len(gone) == 1 else 'are'} missing or damaged")
    return ", ".join(found)
