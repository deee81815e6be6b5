"""Pairs from wherever they are, told by the path."""

import os

from clip_jax.sources.records import Pair as Pair
from clip_jax.sources.records import Pairs
from clip_jax.sources.table import TablePairs
from clip_jax.sources.tar import TarPairs


def open_pairs(path: str | os.PathLike[str]) -> Pairs:
    """The pairs of WebDataset shards (a path or pattern that ends in .tar), else of a table.

    Raises:
        ValueError: lists all that is wrong with them.
        FileNotFoundError: there is nothing there.
    """
    if os.fspath(path).endswith(".tar"):
        return TarPairs(path)
    return TablePairs(path)
