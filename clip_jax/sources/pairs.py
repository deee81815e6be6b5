"""Opens pairs by their path."""

import os
from pathlib import Path

from clip_jax.sources.beside import FolderPairs
from clip_jax.sources.columns import Columns
from clip_jax.sources.records import Pair as Pair
from clip_jax.sources.records import Pairs
from clip_jax.sources.table import TablePairs, tables_in
from clip_jax.sources.tar import TarPairs
from clip_jax.sources.tar_index import is_shard


def open_pairs(
    path: str | os.PathLike[str], columns: Columns | None = None, *, max_skipped: float = 0.0
) -> Pairs:
    """Opens the pairs of shards, of tables, or of a folder.

    Args:
        path: WebDataset's shards, a path or pattern ending in .tar, .tar.gz or .tgz; tables of
            captions, .csv, .tsv, .jsonl or .parquet; or a folder with a table named `captions` or
            `metadata`, or else with pictures that have their captions beside them, in .txt or .json
            files of the same name.
        columns: the names of a table's columns.
        max_skipped: the share of samples that may be faulty; `left_out` of the result tells them.

    Raises:
        ValueError: too much of the data is faulty; lists the problems.
        FileNotFoundError: there is no such file.
    """
    if is_shard(os.fspath(path)):
        return TarPairs(path, max_skipped=max_skipped)
    if os.path.isdir(path) and not tables_in(Path(path)):
        return FolderPairs(path, max_skipped=max_skipped)
    return TablePairs(path, columns, max_skipped=max_skipped)
