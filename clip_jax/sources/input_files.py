"""What an input is, and how its tar files and tables are opened."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from clip_jax.sources.advice import address_columns, advice_for_addresses
from clip_jax.sources.chosen import ChosenShard, Tally
from clip_jax.sources.columns import Columns, lacking
from clip_jax.sources.datasets import DOWNLOADED, OF_IMG2DATASET
from clip_jax.sources.features import class_names, fitted, not_pictures, picture_columns
from clip_jax.sources.lines import LinesShard
from clip_jax.sources.parquet import ParquetShard, column_types
from clip_jax.sources.records import Shard
from clip_jax.sources.tar import TarShard
from clip_jax.sources.tar_index import is_shard
from clip_jax.sources.where import Where
from clip_jax.storage import Unreachable

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
        instead: what there is in place of pictures, and what to do; empty if nothing is known.
        where: the conditions that the rows fit.
        tally: counts the rows that fit.
        classes: the columns passed through that have names of classes in place of their numbers.
        unused: the columns of a table that are neither taken nor passed through.
    """

    shards: Sequence[Shard]
    has_images: bool
    has_captions: bool
    fingerprint: str
    types: Mapping[str, Any]
    columns: Columns = Columns()
    remark: str = ""
    instead: str = ""
    where: Where = Where()
    tally: Tally = dataclasses.field(default_factory=Tally)
    classes: Sequence[str] = ()
    unused: Sequence[str] = ()


def suffix_of(source: str) -> str:
    """Returns "tar" for shards, a table's suffix, or an empty string for anything else."""
    suffix = "tar" if is_shard(source) else source.rpartition(".")[2].lower()
    return suffix if suffix in ("tar", *TABLES) else ""


def open_files(
    source: str, paths: Sequence[str], suffix: str, columns: Columns, where: Where
) -> Input:
    """Lists the rows of files of one kind.

    Args:
        source: what the user calls them.
        paths: the files.
        suffix: "tar", or one of `TABLES`.
        columns: the names of a table's columns.
        where: the conditions that a row must fit.

    Raises:
        ValueError: a table lacks columns; the message lists those it has.
        OSError: none of them can be read.
    """
    if suffix == "tar":
        return _open_shards(source, paths, columns, where)
    kind: Any = ParquetShard if suffix == "parquet" else LinesShard
    shards = [kind(path, columns) for path in paths]
    names = _first(shards, kind.names)
    schema = _first(shards, ParquetShard.schema) if suffix == "parquet" else None
    try:
        columns = columns.found_in(names, picture_columns(schema) if schema else ())
        reason = _no_pictures(schema, columns)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    has_addresses = suffix == "txt" and _first(shards, LinesShard.has_addresses)
    _check(source, names, columns, where)
    types: dict[str, Any] = dict.fromkeys(columns.others)
    classes: Sequence[str] = ()
    if schema is not None:
        types |= column_types(shards, columns.others)
        if unknown := [name for name in columns.others if types[name] is None]:
            raise OSError(
                f"{source}: no file with the column {unknown[0]!r} can be read now: start the same "
                "command again"
            )
        where = fitted(where, schema)
        if columns.image in names and OF_IMG2DATASET.issubset(names):
            where = where.also(DOWNLOADED)
        classes = [n for n in columns.others if n in names and class_names(schema, n) is not None]
    has_images, has_captions = columns.image in names and not reason, columns.caption in names
    instead = f"{source}: {reason}" if reason else ""
    if not has_images and not reason and (address_columns(names) or has_addresses):
        instead = advice_for_addresses(source, names, columns)
    tally = Tally(where)
    needed = _needed(columns, where)
    shards = [_chosen(kind(path, needed), columns, where, tally) for path in paths]
    listing = fingerprint_of_shards(shards)
    return Input(
        *(shards, has_images, has_captions, listing, types, columns),
        instead=instead,
        where=where,
        tally=tally,
        classes=classes,
        unused=[name for name in names if name not in _taken(columns)],
    )


def fingerprint_of(versions: Iterable[tuple[str, str]]) -> str:
    """Returns an input's fingerprint, given the names and fingerprints of its shards."""
    digest = hashlib.sha256()
    for name, fingerprint in versions:
        digest.update(os.fsencode(name) + f"\0{fingerprint}\n".encode())
    return digest.hexdigest()


def fingerprint_of_shards(shards: Sequence[Shard]) -> str:
    """Returns the fingerprint of an input of these shards."""
    return fingerprint_of((shard.name, shard.fingerprint) for shard in shards)


def _open_shards(source: str, paths: Sequence[str], columns: Columns, where: Where) -> Input:
    needed = _needed(columns, where).others
    shards = [TarShard(path, needed) for path in paths]
    _first(shards, TarShard.check)
    if where:
        there = _first(shards, TarShard.field_names)
        if missing := [name for name in where.names if name not in there]:
            raise ValueError(
                f"{source}: no row of the first shard has {' and '.join(map(repr, missing))}, by "
                f"which rows are asked for where {where}; its .json members have "
                f"{', '.join(map(repr, there)) or 'nothing'}"
            )
    tally = Tally(where)
    rows = [_chosen(shard, columns, where, tally) for shard in shards]
    listing, types = fingerprint_of_shards(rows), dict.fromkeys(columns.others)
    return Input(rows, True, True, listing, types, columns, where=where, tally=tally)


def _taken(columns: Columns) -> set[str]:
    return {columns.image, columns.caption, columns.key, *columns.others}


def _needed(columns: Columns, where: Where) -> Columns:
    """Returns the columns with those that the conditions name among the others."""
    others = tuple(dict.fromkeys((*columns.others, *where.names)))
    return dataclasses.replace(columns, others=others)


def _chosen(shard: Any, columns: Columns, where: Where, tally: Tally) -> Any:
    return ChosenShard(shard, where, columns.others, tally) if where else shard


def _no_pictures(schema: Any, columns: Columns) -> str:
    """Returns what a table's column of pictures holds instead; an empty string if all is well."""
    if schema is None or columns.image not in schema.names:
        return ""
    if not (kind := not_pictures(schema, columns.image)):
        return ""
    there = [f"image_column={name!r}" for name in picture_columns(schema)]
    instead = f"; pictures are taken by {' or '.join(there)}" if there else ""
    return (
        f"the column {columns.image!r} is {kind}; expected pictures: the bytes of their files, "
        f"structs of `bytes` and `path`, or paths{instead}"
    )


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


def _check(source: str, names: Sequence[str], columns: Columns, where: Where) -> None:
    default = Columns()
    asked = [columns.image] * (columns.image != default.image)
    asked += [columns.caption] * (columns.caption != default.caption)
    asked += [columns.key] * (columns.key != default.key)
    missing = [name for name in (*asked, *columns.others) if name not in names]
    if not missing and columns.image not in names and columns.caption not in names:
        if address_columns(names):
            raise ValueError(advice_for_addresses(source, names, columns))
        missing = [columns.image, columns.caption]
    if missing:
        raise lacking(source, missing, names, columns.others)
    if absent := [name for name in where.names if name not in names]:
        raise ValueError(
            f"{source}: no column {' and no column '.join(map(repr, absent))}, by which rows are "
            f"asked for where {where}; its columns are {', '.join(map(repr, names))}"
        )
