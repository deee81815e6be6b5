"""A random order of pairs that keeps those with the same caption apart."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from clip_jax.sources import Pairs

PASSES = 1 << 20  # practically endless; Grain's sources must be finite


class Spread:
    """A Grain source that repeats items in passes, with each group spread evenly over a pass.

    Fewer pairs with the same caption meet in a batch than after a shuffle: a contrastive loss
    wrongly treats them as negatives.
    """

    def __init__(self, items: Sequence[Any], groups: Int[np.ndarray, " n"], seed: int):
        """Stores the arguments.

        Args:
            items: the items, read on access.
            groups: the number of each item's group, from 0.
            seed: determines the order, which is different in each pass.
        """
        self._items, self._groups, self._seed = items, groups, seed
        # Two orders are enough: Grain's threads are in the same pass or in adjacent ones.
        self._order = functools.lru_cache(2)(self._order_of)

    def __len__(self) -> int:
        return len(self._items) * PASSES

    def __getitem__(self, index: int) -> Any:
        number, place = divmod(index, len(self._items))
        return self._items[int(self._order(number)[place])]

    def _order_of(self, number: int) -> Int[np.ndarray, " n"]:
        return spread(self._groups, np.random.default_rng((self._seed, number)))


def groups_of(pairs: Pairs) -> Int[np.ndarray, " n"]:
    """Numbers the distinct first captions, and returns the number of each pair's."""
    captions = [pairs.captions(i)[0] for i in range(len(pairs))]
    return np.unique(captions, return_inverse=True)[1]


def spread(groups: Int[np.ndarray, " n"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Returns a random order that spreads the c members of each group over n places.

    Consecutive members are at least about half of the even distance n / c apart. The rest is
    random, because at even distances the same groups would meet in every batch.
    """
    order = rng.permutation(len(groups))
    group = groups[order]
    counts = np.bincount(group)
    by_group = np.argsort(group, kind="stable")
    rank = np.empty(len(group))
    rank[by_group] = np.arange(len(group)) - (np.cumsum(counts) - counts)[group[by_group]]
    places = rank + rng.uniform(0, 0.5, len(counts))[group] + rng.uniform(0, 0.5, len(group))
    return order[np.argsort(places / counts[group], kind="stable")]
