"""Exact search for several queries in one pass over the rows, for a server that stays open."""

import concurrent.futures
import threading
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Float32, Int64

from clip_jax.memory import aligned_empty
from clip_jax.placement import default_device
from clip_jax.search.exact import BLOCK, LARGE_BLOCK, MOST, THREADS
from clip_jax.search.index import Damaged, Index

# Queries of a pass: the next larger of these sizes is compiled.
QUERIES = (1, 4, 16)
# How far a score of the matrix product may be from the exact one. Rows within it of the last that
# is wanted are scored again, so that neither the other queries nor the device change an answer.
MARGIN = 1e-5


class AllDamaged(ValueError):
    """No part is left that can be searched."""


class ExactIndex:
    """The embeddings of a job, searched for several queries at once.

    Row numbers stay as they are: rows of parts that turn out to be damaged are only left out.

    Attributes:
        num_rows: how many rows there are, those left out included.
        dim: the dimension of the embeddings.
        lost: the parts that turned out to be damaged.
    """

    def __init__(self, index: Index):
        """Reads nothing yet."""
        self._index = index
        self.num_rows, self.dim = index.num_rows, index.dim
        self.lost: set[str] = set()
        self._is_there: Bool[np.ndarray, " n"] | None = None  # None for all
        width = index.dim * index.dtype.itemsize
        size = max(BLOCK.get(default_device().platform, LARGE_BLOCK) // width, 1)
        self._size = min(size, index.num_rows)

    def search(
        self,
        queries: Float32[np.ndarray, "q d"],
        ks: Sequence[int],
        masks: Sequence[Bool[np.ndarray, " n"] | None] | None = None,
    ) -> list[tuple[Float32[np.ndarray, " k"], Int64[np.ndarray, " k"]]]:
        """Finds the rows nearest to each query, as `search` does.

        Args:
            queries: normalised embeddings.
            ks: how many rows for each; it gets fewer if there are fewer.
            masks: for each, which rows to take; None for all.

        Returns:
            For each the scores and the numbers of its rows, best first, ties by number.

        Raises:
            ValueError: all parts are damaged.
            OSError: the rows can't be read.
        """
        masks = [None] * len(queries) if masks is None else masks
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for begin in range(0, len(queries), QUERIES[-1]):
            some = slice(begin, begin + QUERIES[-1])
            found += self._pass(queries[some], ks[some], masks[some])
        return found

    def embeddings(self, numbers: Sequence[int]) -> Float32[np.ndarray, "n d"]:
        """Returns the embeddings of some rows.

        Raises:
            Damaged: a part is damaged.
            OSError: they can't be read.
        """
        return self._index.gather(numbers).astype(np.float32)

    def leave_out(self, parts: Collection[str]) -> None:
        """Leaves out the rows of damaged parts from now on.

        Raises:
            AllDamaged: no others are left.
        """
        self.lost |= set(parts)
        is_there = np.ones(self.num_rows, bool)
        for name, begin, end in self._index.bounds():
            if name in self.lost:
                is_there[begin:end] = False
        self._is_there = is_there
        self._check_left()

    def _check_left(self) -> None:
        if self._is_there is not None and not self._is_there.any():
            raise AllDamaged("all parts are damaged: run the same clip-jax embed command again")

    def present(self, mask: Bool[np.ndarray, " n"] | None) -> Bool[np.ndarray, " n"] | None:
        """Returns a mask of rows without those that are left out; None for all rows."""
        self._check_left()
        if mask is None or self._is_there is None:
            return self._is_there if mask is None else mask
        return mask & self._is_there

    @property
    def num_lost(self) -> int:
        """How many rows are left out because their parts turned out to be damaged."""
        return 0 if self._is_there is None else int((~self._is_there).sum())

    def _pass(
        self,
        queries: Float32[np.ndarray, "q d"],
        ks: Sequence[int],
        masks: Sequence[Bool[np.ndarray, " n"] | None],
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        while True:
            damaged: set[str] = set()
            present = [self.present(mask) for mask in masks]
            best = [_Best(q, k, m) for q, k, m in zip(queries, ks, present, strict=True)]
            self._compare(queries, best, damaged)
            if not damaged:
                return [each.ranked() for each in best]
            self.leave_out(damaged)

    def _compare(
        self, queries: Float32[np.ndarray, "q d"], best: Sequence["_Best"], damaged: set[str]
    ) -> None:
        padded = np.zeros((next(n for n in QUERIES if n >= len(queries)), self.dim), np.float32)
        padded[: len(queries)] = queries
        on_device, mine, skipped = jax.device_put(padded), threading.local(), frozenset(self.lost)

        def compare(block: tuple[int, int]) -> None:
            begin, end = block
            wanting = [each for each in best if each.wants(begin, end)]
            if not wanting:
                return
            if not hasattr(mine, "rows"):
                mine.rows = aligned_empty((self._size, self.dim), self._index.dtype)
                mine.rows[:] = 0
            try:
                self._index.read(begin, end, mine.rows, skipped)
            except Damaged as error:
                damaged.update(error.parts)
                return
            # Fetched before the next block is read: a CPU device may compute in this very buffer.
            scores = np.asarray(_scores(mine.rows, on_device))[: end - begin, : len(queries)]
            if not (is_sound := np.abs(scores) <= MOST).all():
                for row in np.flatnonzero(~is_sound.all(axis=1)).tolist():
                    damaged.add(self._index.part_of(begin + row))
                return
            for each, column in zip(best, scores.T, strict=True):
                if each in wanting:
                    each.add(column, mine.rows, begin)

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(compare, self._index.blocks(self._size)):
                pass


class _Best:
    """The best rows for one query so far."""

    def __init__(self, query: np.ndarray, k: int, mask: np.ndarray | None):
        self._query, self._k, self._mask = query, k, mask
        self._scores, self._rows = np.empty(0, np.float32), np.empty(0, np.int64)
        self._least = -np.inf  # the score of the last row that is wanted
        self._lock = threading.Lock()

    def wants(self, begin: int, end: int) -> bool:
        """Whether some of these rows may be taken."""
        return self._mask is None or bool(self._mask[begin:end].any())

    def add(self, scores: np.ndarray, rows: np.ndarray, begin: int) -> None:
        """Adds the rows of a block whose scores are good enough."""
        is_good = scores >= self._least - MARGIN
        if self._mask is not None:
            is_good &= self._mask[begin : begin + len(scores)]
        places = np.flatnonzero(is_good)
        if len(places) > self._k:
            found = scores[places]
            places = places[found >= np.partition(found, -self._k)[-self._k] - MARGIN]
        if not len(places):
            return
        exact = (rows[places].astype(np.float32) * self._query[None]).sum(axis=1)
        with self._lock:
            self._scores = np.concatenate([self._scores, exact])
            self._rows = np.concatenate([self._rows, begin + places])
            if len(self._rows) > self._k:
                order = np.lexsort((self._rows, -self._scores))[: self._k]
                self._scores, self._rows = self._scores[order], self._rows[order]
                self._least = self._scores[-1]

    def ranked(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scores and the numbers of the rows, best first."""
        order = np.lexsort((self._rows, -self._scores))
        return self._scores[order], self._rows[order]


@jax.jit
def _scores(rows: Float[Array, "b d"], queries: Float[Array, "q d"]) -> Float[Array, "b q"]:
    return jnp.matmul(rows.astype(jnp.float32), queries.T, precision=jax.lax.Precision.HIGHEST)
