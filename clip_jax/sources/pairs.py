"""Opens pairs by their path."""

import os

from clip_jax.sources.records import Pair as Pair
from clip_jax.sources.records import Pairs
from clip_jax.sources.table import TablePairs
from clip_jax.sources.tar import TarPairs


def open_pairs(path: str | os.PathLike[str]) -> Pairs:
    """Opens the pairs of WebDataset shards (a path or pattern ending in .tar), else of a table.

    Raises:
        ValueError: the data is faulty; lists all problems.
        FileNotFoundError: there is no such file.
    """
    if os.fspath(path).endswith(".tar"):
        return TarPairs(path)
    return TablePairs(path)
