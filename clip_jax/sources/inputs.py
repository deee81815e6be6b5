"""Opens an input of rows to embed by its address, and reads pictures by their paths."""

import contextlib
import dataclasses
import errno
import os
import re
from collections.abc import Sequence

from clip_jax.sources.addresses import read_address
from clip_jax.sources.columns import Columns, as_columns
from clip_jax.sources.datasets import Found, hint_of_hub, img2dataset_of, is_hub, parquet_of
from clip_jax.sources.folder import FolderShard, NoPictures, others_of
from clip_jax.sources.input_files import TABLES, Input, fingerprint_of_shards, open_files, suffix_of
from clip_jax.sources.parquet import read_row
from clip_jax.sources.patterns import expand
from clip_jax.sources.records import as_name
from clip_jax.sources.tar import read_member
from clip_jax.sources.tar_index import SHARDS
from clip_jax.sources.where import Where
from clip_jax.storage import is_remote, plain, storage


def open_input(
    source: str | os.PathLike[str],
    columns: Columns | None = None,
    *,
    suffixes: Sequence[str] = (),
    captions: bool = False,
    where: Where | str | Sequence[str] | None = None,
) -> Input:
    """Lists the files of an input.

    Args:
        source: a folder of pictures; tar files; or tables: .txt, .csv, .tsv, .jsonl, .parquet. A
            pattern with `*`, `?`, `[...]` and braces may name several files. Or a folder that
            img2dataset has written, or one of Parquet files, such as a data set of the Hugging Face
            Hub, hf://datasets/owner/name. Any address that fsspec knows.
        columns: the names of a table's columns.
        suffixes: of a folder's files that are pictures, besides the usual ones.
        captions: whether to read the captions that a folder may have beside its pictures, in .txt
            or .json files of the same name.
        where: the conditions that a row must fit, such as "width>=256"; by default every row is
            taken.

    Raises:
        ValueError: the input is empty, a condition is malformed, or a table lacks columns; the
            message lists those it has.
        OSError: the input doesn't exist or can't be read.
    """
    source, columns, where = plain(source), as_columns(columns), Where.of(where)
    suffix = suffix_of(source)
    # A folder may be named like a file: Spark writes tables as folders.
    if not (suffix and _is_pattern(source)) and storage(source).is_folder(source):
        return _folder(source, columns, where, suffixes, captions)
    if not suffix:
        if not _is_pattern(source):
            _check_there(source)
        raise ValueError(
            f"{source}: expected a folder of pictures, or files that end in "
            f"{', '.join('.' + s for s in (*SHARDS, *TABLES))}. Got "
            f"{source.rpartition('.')[2].lower()!r}."
        )
    return open_files(source, expand(source), suffix, columns, where)


def read_picture(path: str, image_column: str = Columns.image) -> bytes:
    """Reads a picture's file, given a record's path.

    Raises:
        OSError: it can't be read.
        ValueError: there is no picture there.
    """
    # Unescaped, or as written by earlier versions, which didn't escape.
    for name in dict.fromkeys((as_name(path), path)):
        with contextlib.suppress(FileNotFoundError):
            return _read_picture(name, image_column)
    raise FileNotFoundError(errno.ENOENT, "no such picture", path)


def _read_picture(path: str, image_column: str) -> bytes:
    for found in re.finditer(r"\.(tar|tar\.gz|tgz|parquet)/", path):
        file, inside = path[: found.end() - 1], path[found.end() :]
        try:
            if found[1] != "parquet":
                return read_member(file, inside)
            if inside.isdecimal():
                return read_row(file, int(inside), image_column)
        except OSError:
            # It may be a folder of that name. A web server can't be asked without a download.
            if not (is_remote(file) or storage(file).is_folder(file)):
                raise
    return read_address(path)


def _folder(
    source: str, columns: Columns, where: Where, suffixes: Sequence[str], captions: bool
) -> Input:
    folder = source.rstrip("/")
    found = img2dataset_of(folder)
    if found is None and is_hub(source):
        found = parquet_of(folder)
    if found is not None and found.suffix:
        return _files(source, found, columns, where)
    try:
        shard = FolderShard(source, suffixes, captions=captions)
    except NoPictures as error:
        tables = None if error.has_shards else parquet_of(folder)
        if tables is None:
            raise
        return _files(source, tables, columns, where)
    for names, what in ((columns.others, "take along"), (where.names, "choose rows by")):
        if names:
            raise ValueError(f"{source} is a folder of pictures, which has no columns to {what}.")
    remark = others_of(source, shard.others) if found is None else found.remark
    listing = fingerprint_of_shards([shard])
    return Input([shard], True, shard.has_captions, listing, {}, remark=remark)


def _files(source: str, found: Found, columns: Columns, where: Where) -> Input:
    rows = open_files(source, found.paths, found.suffix, columns, where)
    return dataclasses.replace(rows, remark=found.remark)


def _is_pattern(source: str) -> bool:
    return any(character in source for character in "*?[{")


def _check_there(source: str) -> None:
    """Raises OSError if there is nothing of that name."""
    try:
        storage(source).size(source)
    except FileNotFoundError as error:
        reason = f"{error.strerror}{hint_of_hub(source)}"
        raise FileNotFoundError(errno.ENOENT, reason, source) from None
