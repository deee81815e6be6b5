"""Opens an input of rows to embed by its address, and reads pictures by their paths."""

import contextlib
import dataclasses
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from clip_jax.sources.addresses import read_address
from clip_jax.sources.columns import Columns, lacking
from clip_jax.sources.folder import FolderShard, others_of
from clip_jax.sources.lines import LinesShard
from clip_jax.sources.parquet import ParquetShard, column_types, read_row
from clip_jax.sources.patterns import expand
from clip_jax.sources.records import Shard, as_name
from clip_jax.sources.tar import TarShard, read_member
from clip_jax.storage import Unreachable, is_remote, plain, storage

TABLES = ("txt", "csv", "tsv", "jsonl", "parquet")


@dataclasses.dataclass(frozen=True)
class Input:
    """The rows to embed.

    Attributes:
        shards: files of rows, sorted by name.
        has_images: whether rows have pictures.
        has_captions: whether rows have captions.
        fingerprint: a hash of the files' names and of the fingerprints of tables and tar files. A
            folder's excludes sizes, so that unreadable pictures can be repaired.
        types: the Arrow types of the columns passed through; None, for text, if untyped.
        columns: the names of the columns as the tables have them.
        remark: what was left out of a folder; empty if nothing was.
    """

    shards: Sequence[Shard]
    has_images: bool
    has_captions: bool
    fingerprint: str
    types: Mapping[str, Any]
    columns: Columns = Columns()
    remark: str = ""


def open_input(
    source: str | os.PathLike[str],
    columns: Columns | None = None,
    *,
    suffixes: Sequence[str] = (),
    captions: bool = False,
) -> Input:
    """Lists the files of an input.

    Args:
        source: a folder of pictures; tar files; or tables: .txt, .csv, .tsv, .jsonl, .parquet. A
            pattern with `*`, `?`, `[...]` and braces may name several files. Any address that
            fsspec knows.
        columns: the names of a table's columns.
        suffixes: of a folder's files that are pictures, besides the usual ones.
        captions: whether to read the captions that a folder may have beside its pictures, in .txt
            or .json files of the same name.

    Raises:
        ValueError: the input is empty, or a table lacks columns; the message lists those it has.
        OSError: the input doesn't exist or can't be read.
    """
    source = plain(source)
    columns = columns or Columns()
    suffix = source.rpartition(".")[2].lower()
    known = suffix in ("tar", *TABLES)
    # A folder may be named like a file: Spark writes tables as folders.
    if not (known and _is_pattern(source)) and storage(source).is_folder(source):
        return _folder(source, columns, suffixes, captions)
    if not known:
        if not _is_pattern(source):
            storage(source).size(source)  # raises if there is nothing
        raise ValueError(
            f"{source}: expected a folder of pictures, or files that end in "
            f"{', '.join('.' + s for s in ('tar', *TABLES))}. Got {suffix!r}."
        )
    paths = expand(source)
    if suffix == "tar":
        shards = [TarShard(path, columns.others) for path in paths]
        _first(shards, TarShard.check)
        types = dict.fromkeys(columns.others)
        return Input(shards, True, True, _listing(shards), types, columns)
    types: dict[str, Any] = dict.fromkeys(columns.others)
    kind: Any = ParquetShard if suffix == "parquet" else LinesShard
    shards = [kind(path, columns) for path in paths]
    names = _first(shards, kind.names)
    try:
        found = columns.found_in(names)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if found != columns:
        columns = found
        shards = [kind(path, columns) for path in paths]
    if suffix == "parquet":
        types |= column_types(shards, columns.others)
    _check(source, names, columns)
    if suffix == "parquet" and (
        unknown := [name for name in columns.others if types[name] is None]
    ):
        raise OSError(
            f"{source}: no file with the column {unknown[0]!r} can be read now: start the same "
            "command again"
        )
    has_images, has_captions = columns.image in names, columns.caption in names
    return Input(shards, has_images, has_captions, _listing(shards), types, columns)


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
    for found in re.finditer(r"\.(tar|parquet)/", path):
        file, inside = path[: found.end() - 1], path[found.end() :]
        try:
            if found[1] == "tar":
                return read_member(file, inside)
            if inside.isdecimal():
                return read_row(file, int(inside), image_column)
        except OSError:
            # It may be a folder of that name. A web server can't be asked without a download.
            if not (is_remote(file) or storage(file).is_folder(file)):
                raise
    return read_address(path)


def _folder(source: str, columns: Columns, suffixes: Sequence[str], captions: bool) -> Input:
    if columns.others:
        raise ValueError(f"{source} is a folder of pictures, which has no columns to take along.")
    shard = FolderShard(source, suffixes, captions=captions)
    remark = others_of(source, shard.others)
    return Input([shard], True, shard.has_captions, _listing([shard]), {}, remark=remark)


def _is_pattern(source: str) -> bool:
    return any(character in source for character in "*?[{")


def _first(shards: Sequence[Any], look: Callable[[Any], Any]) -> Any:
    """Returns the result of `look` for the first shard that can be read."""
    problem: Exception | None = None
    for shard in shards:
        try:
            return look(shard)
        except Unreachable:
            raise
        except (OSError, ValueError) as error:
            problem = problem or error
    raise problem or ValueError("no files")


def _check(source: str, names: Sequence[str], columns: Columns) -> None:
    default = Columns()
    asked = [columns.image] * (columns.image != default.image)
    asked += [columns.caption] * (columns.caption != default.caption)
    asked += [columns.key] * (columns.key != default.key)
    missing = [name for name in (*asked, *columns.others) if name not in names]
    if not missing and columns.image not in names and columns.caption not in names:
        missing = [columns.image, columns.caption]
    if missing:
        raise lacking(source, missing, names, columns.others)


def fingerprint_of(versions: Iterable[tuple[str, str]]) -> str:
    """Returns an input's fingerprint, given the names and fingerprints of its shards."""
    digest = hashlib.sha256()
    for name, fingerprint in versions:
        digest.update(os.fsencode(name) + f"\0{fingerprint}\n".encode())
    return digest.hexdigest()


def _listing(shards: Sequence[Shard]) -> str:
    return fingerprint_of((shard.name, shard.fingerprint) for shard in shards)
