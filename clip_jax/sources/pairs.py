"""Opens pairs by their path."""

import os
from collections.abc import Sequence
from pathlib import Path

from clip_jax.sources.beside import FolderPairs, NoPairs
from clip_jax.sources.columns import Columns
from clip_jax.sources.datasets import data_set_of, img2dataset_of, is_hub, parquet_of
from clip_jax.sources.records import Pair as Pair
from clip_jax.sources.records import Pairs
from clip_jax.sources.table import TablePairs, tables_in
from clip_jax.sources.tar import TarPairs
from clip_jax.sources.tar_index import is_shard
from clip_jax.sources.where import Where
from clip_jax.storage import is_remote, plain


def open_pairs(
    path: str | os.PathLike[str],
    columns: Columns | None = None,
    *,
    max_skipped: float = 0.0,
    where: Where | str | Sequence[str] | None = None,
) -> Pairs:
    """Opens the pairs of shards, of tables, or of a folder.

    Args:
        path: WebDataset's shards, a path or pattern ending in .tar, .tar.gz or .tgz; tables of
            captions, .csv, .tsv, .jsonl or .parquet; or a folder with a table named `captions` or
            `metadata`, or that img2dataset has written, or else with pictures that have their
            captions beside them, in .txt or .json files of the same name, or with Parquet files.
        columns: the names of a table's columns.
        max_skipped: the share of samples that may be faulty; `left_out` of the result tells them.
        where: the conditions that a sample must fit, such as "width>=256": its row in a table, or
            the fields of its .json member in a shard; by default every sample is taken.

    Raises:
        ValueError: too much of the data is faulty, which lists the problems; or a condition is
            malformed or names no column; or tables are elsewhere than on disk.
        FileNotFoundError: there is no such file.
    """
    where, name = Where.of(where), plain(path)
    if is_shard(name):
        return TarPairs(path, max_skipped=max_skipped, where=where)
    if is_remote(name):
        repository = name.removeprefix("hf://datasets/").partition("@")[0]
        how = (
            f"hf download --repo-type dataset {'/'.join(repository.split('/')[:2])} --local-dir DIR"
            if is_hub(name)
            else "copy them"
        )
        raise ValueError(f"{name}: tables and folders of pairs are read from disk: {how} first")
    if not os.path.isdir(path) or tables_in(Path(path)):
        return TablePairs(path, columns, max_skipped=max_skipped, where=where)
    found = img2dataset_of(name.rstrip("/"))
    if found is not None and found.suffix == "tar":
        return TarPairs(path, max_skipped=max_skipped, where=where, paths=found.paths)
    if found is not None and found.suffix:
        paths = found.paths
        return TablePairs(path, columns, max_skipped=max_skipped, where=where, paths=paths)
    if where and data_set_of(name) is None:
        raise ValueError(
            f"{name} is a folder of pictures, which has no columns to choose samples by"
        )
    try:
        return FolderPairs(path, max_skipped=max_skipped)
    except NoPairs:
        if (found := parquet_of(name.rstrip("/"))) is None:
            raise
        paths = found.paths
        return TablePairs(path, columns, max_skipped=max_skipped, where=where, paths=paths)
