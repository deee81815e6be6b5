"""Pairs in an order that keeps those of one caption apart."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from clip_jax.sources import Pairs

PASSES = 1 << 20  # that stand for without end, which Grain's sources can't be


class Spread:
    """Items pass after pass, those of one group about evenly spread over each; a Grain source.

    Of what is alike less meets in one batch than in a shuffled order, in which a contrastive loss
    takes one of them for wrong beside the other's text.
    """

    def __init__(self, items: Sequence[Any], groups: Int[np.ndarray, " n"], seed: int):
        """Keeps what is given.

        Args:
            items: read as they are asked for.
            groups: of each item the number of its group, from 0.
            seed: decides the order, another one in each pass.
        """
        self._items, self._groups, self._seed = items, groups, seed
        # Grain's threads are in one pass, or at the end of one and the start of the next.
        self._order = functools.lru_cache(2)(self._order_of)

    def __len__(self) -> int:
        return len(self._items) * PASSES

    def __getitem__(self, index: int) -> Any:
        number, place = divmod(index, len(self._items))
        return self._items[int(self._order(number)[place])]

    def _order_of(self, number: int) -> Int[np.ndarray, " n"]:
        return spread(self._groups, np.random.default_rng((self._seed, number)))


def groups_of(pairs: Pairs) -> Int[np.ndarray, " n"]:
    """The number of each pair's first caption among all that there are."""
    captions = [pairs.captions(i)[0] for i in range(len(pairs))]
    return np.unique(captions, return_inverse=True)[1]


def spread(groups: Int[np.ndarray, " n"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """A random order in which the c members of a group are each in a part of its own.

    Between two of them lies half of an even distance, n / c, or more; no more is even, since then
    groups of one size would meet again and again.
    """
    order = rng.permutation(len(groups))
    group = groups[order]
    counts = np.bincount(group)
    by_group = np.argsort(group, kind="stable")
    rank = np.empty(len(group))
    rank[by_group] = np.arange(len(group)) - (np.cumsum(counts) - counts)[group[by_group]]
    places = rank + rng.uniform(0, 0.5, len(counts))[group] + rng.uniform(0, 0.5, len(group))
    return order[np.argsort(places / counts[group], kind="stable")]
