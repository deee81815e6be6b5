"""Pairs from tables of captions: CSV, tabs, JSON lines; Parquet, with pictures inside, too."""

import dataclasses
import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from clip_jax.sources.addresses import read_address
from clip_jax.sources.advice import address_columns, advice_for_addresses
from clip_jax.sources.batches import compared_rows
from clip_jax.sources.columns import CAPTIONS, Columns, as_columns, lacking
from clip_jax.sources.datasets import DOWNLOADED, OF_IMG2DATASET
from clip_jax.sources.faults import guarded
from clip_jax.sources.features import fitted, not_pictures, picture_columns
from clip_jax.sources.left_out import LeftOut, distinct
from clip_jax.sources.lines import LinesShard, large_cells, parsed_rows
from clip_jax.sources.members import Member
from clip_jax.sources.parquet import (
    ParquetShard,
    batches_of,
    is_text,
    open_parquet,
)
from clip_jax.sources.patterns import expand
from clip_jax.sources.records import Pair, as_captions
from clip_jax.sources.spool import Spool
from clip_jax.sources.where import Where
from clip_jax.storage import check_regular, is_remote

# The names of a table in a folder, without suffix: ours, and that of Hugging Face's data sets.
TABLES = ("captions", "metadata")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


class Picture(Protocol):
    """Where a picture's bytes are."""

    @property
    def size(self) -> int:
        """Its size in bytes; raises OSError if it can't be found out."""
        ...

    def read(self) -> bytes:
        """Reads its bytes; raises OSError if they can't be read."""
        ...


@dataclasses.dataclass(frozen=True)
class PictureFile:
    """A picture in a file of its own."""

    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def read(self) -> bytes:
        return read_address(str(self.path))


class TablePairs:
    """The pictures of tables with their captions.

    The columns are `image`, a path relative to the table's folder, or the bytes of a picture in a
    Parquet file; `caption`, a text, or `captions`, a list of texts; and `key`, by default the path.
    Rows of one key and one picture are one pair with several captions. Other columns are ignored.

    Attributes:
        left_out: the rows that can't be used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Columns | None = None,
        *,
        max_skipped: float = 0.0,
        where: Where | None = None,
        paths: Sequence[str] | None = None,
    ):
        """Reads the tables, but no picture beside them; those inside are copied to TMPDIR.

        Args:
            path: .csv, .tsv, .jsonl or .parquet files, by a path or a pattern; or a folder with
                one of them named `captions`, or else `metadata`.
            columns: the names of the columns.
            max_skipped: the share of rows that may be faulty.
            where: the conditions that a row must fit.
            paths: the tables, if they are known; `path` is then only their name in messages.

        Raises:
            ValueError: a table lacks columns, or too many rows lack captions or pictures; lists
                the problems.
            FileNotFoundError: there is no such table.
            ModuleNotFoundError: Parquet needs pyarrow.
        """
        self._keys: list[str] = []
        self._pictures: list[Picture] = []
        self._captions: list[tuple[str, ...]] = []
        self._numbers: dict[str, int] = {}  # of pairs, by key
        self._inside: dict[bytes, Member] = {}  # pictures inside tables, by digest
        self._spool: Spool | None = None
        self._where, columns = where or Where(), as_columns(columns)
        self.left_out = LeftOut(os.fspath(path), self._where)
        tables = _tables(Path(path)) if paths is None else list(map(Path, paths))
        for table in tables:
            if table.suffix not in SUFFIXES:
                raise ValueError(
                    f"{table}: a table of captions ends in {', '.join(SUFFIXES)}. "
                    f"Got {table.suffix!r}."
                )
        for table in tables:
            check_regular(table)
            with guarded(str(table)):
                self._add(table, columns)
        self._inside.clear()
        self.left_out.check(len(self), len(tables), max_skipped)
        if not self._keys:
            raise ValueError(f"{self.left_out.source}: the table has no rows")

    def __len__(self) -> int:
        return len(self._keys)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions[index]

    def key(self, index: int) -> str:
        return self._keys[index]

    def picture(self, index: int) -> object:
        return self._pictures[index]

    def size(self, index: int) -> int:
        return self._pictures[index].size

    def __getitem__(self, index: int) -> Pair:
        return Pair(self._keys[index], self._pictures[index].read(), self._captions[index])

    def _add(self, table: Path, columns: Columns) -> None:
        names = _names(table, columns)
        columns, where = _training_columns(table, columns, names), self._where
        if absent := [name for name in where.names if names and name not in names]:
            raise ValueError(
                f"{table}: no column {absent[0]!r}, by which rows are asked for where {where}; its "
                f"columns are {', '.join(map(repr, names))}"
            )
        if table.suffix == ".parquet":
            schema = ParquetShard(str(table), columns).schema()
            where = fitted(where, schema)
            if OF_IMG2DATASET.issubset(names):
                self.left_out.where = where = where.also(DOWNLOADED)
        for number, row in enumerate(_rows(table, columns, where), start=1):
            try:
                if isinstance(row, str):
                    raise ValueError(row)
                if not where.holds(row):
                    self.left_out.unchosen += 1
                    continue
                self._add_row(table, number, row, columns)
            except ValueError as error:
                self.left_out.problems.append(f"{_place(table, number, self.left_out)}{error}")

    def _add_row(self, table: Path, number: int, row: dict[str, Any], columns: Columns) -> None:
        image = row.get(columns.image)
        if isinstance(image, dict):  # the form of Hugging Face's data sets
            image = image.get("bytes") or image.get("path")
        if not image:
            raise ValueError(f"no {columns.image!r}; its columns are {', '.join(map(repr, row))}")
        captions = as_captions(_captions(row, columns))
        where = f"{table.name}:{number}"
        if isinstance(image, bytes):
            picture, key = self._copied(where, image), where
        else:
            picture, key = _beside(table, str(image)), str(image)
        if row.get(columns.key):
            key = str(row[columns.key])
        known = self._numbers.get(key)
        if known is not None and self._pictures[known] == picture:
            self._captions[known] += captions
            return
        key = distinct(key, self._numbers, where)
        self._numbers[key] = len(self._keys)
        self._keys.append(key)
        self._pictures.append(picture)
        self._captions.append(captions)

    def _copied(self, name: str, data: bytes) -> Member:
        """Returns where a picture is that stands in a table; one that comes again is kept once."""
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if digest not in self._inside:
            self._spool = self._spool or Spool()
            self._inside[digest] = self._spool.add(name, data)
        return self._inside[digest]


def tables_in(folder: Path) -> list[Path]:
    """Returns the tables of captions in a folder: those of the first name of which there are."""
    for name in TABLES:
        paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
        if found := [path for path in paths if path.is_file()]:
            return found
    return []


def _tables(path: Path) -> list[Path]:
    if path.is_dir():
        found = tables_in(path)
        if len(found) != 1:
            what = "more than one table" if found else "no table"
            names = ", ".join(f"{TABLES[0]}{suffix}" for suffix in SUFFIXES)
            raise ValueError(f"{path}: {what} of captions; expected one of {names}")
        return found
    if not path.exists():
        if glob.has_magic(str(path)) or "{" in str(path):
            return [Path(each) for each in expand(str(path))]
        raise FileNotFoundError(2, "no such file or folder", str(path))
    return [path]


def _place(table: Path, number: int, left_out: LeftOut) -> str:
    """Names a row: by its number alone where there is only this table."""
    return f"row {number}: " if str(table) == left_out.source else f"{table}: row {number}: "


def _names(table: Path, columns: Columns) -> Sequence[str]:
    """Returns the columns of a table; none where no row can be read, of which its rows tell."""
    if table.suffix == ".parquet":
        return ParquetShard(str(table), columns).names()
    try:
        return LinesShard(str(table), columns).names()
    except ValueError:
        return ()


def _training_columns(table: Path, columns: Columns, names: Sequence[str]) -> Columns:
    """Returns the names by which a table has the pictures and the captions.

    Raises:
        ValueError: it lacks one of them, or has both `caption` and `captions`.
    """
    if not names:
        return columns
    if table.suffix == ".parquet":
        schema = ParquetShard(str(table), columns).schema()
        if columns.image not in names:
            columns = columns.found_in(names, picture_columns(schema))
        if columns.image in names and (kind := not_pictures(schema, columns.image)):
            raise ValueError(f"{table}: the column {columns.image!r} is {kind}; expected pictures")
    image, caption = columns.image_in(names), columns.caption
    if caption == Columns.caption and CAPTIONS in names:
        if caption in names and table.suffix != ".jsonl":
            raise _both(names)
        caption = CAPTIONS
    else:
        caption = columns.caption_in(names)
    if missing := [name for name in (image, caption) if name not in names]:
        if image in missing and address_columns(names):
            raise ValueError(advice_for_addresses(str(table), names, columns, embeds=False))
        raise lacking(str(table), missing, names)
    return dataclasses.replace(columns, image=image, caption=caption)


def _captions(row: dict[str, Any], columns: Columns) -> Any:
    """Returns one caption or several: of JSON lines, each may have it another way."""
    if columns.caption not in (Columns.caption, CAPTIONS):
        return row.get(columns.caption)
    found = [row[name] for name in (Columns.caption, CAPTIONS) if name in row]
    if len(found) > 1:
        raise _both(row)
    return found[0] if found else None


def _both(names: Iterable[str]) -> ValueError:
    return ValueError(
        f"there must be a column {Columns.caption!r} or {CAPTIONS!r}, one of them. "
        f"Got {', '.join(map(repr, names))}"
    )


def _beside(table: Path, image: str) -> PictureFile:
    if is_remote(image):
        raise ValueError(
            f"the picture is an address, {image}: training reads pictures from disk; download "
            "them first, as img2dataset does"
        )
    file = Path(os.path.normpath(table.parent / image))
    try:
        is_there = (table.parent / image).is_file()
    except OSError:  # a name that is too long
        is_there = False
    if not is_there:
        raise ValueError(f"no such picture: {image}")
    return PictureFile(file)


def _rows(table: Path, columns: Columns, where: Where) -> Iterator[dict[str, Any] | str]:
    if table.suffix != ".parquet":
        with large_cells():
            yield from parsed_rows(str(table), table.read_bytes(), columns)
        return
    file = open_parquet(str(table), extra="train")
    types = {column.name: column.type for column in file.schema_arrow}
    wanted = {columns.image, columns.caption, columns.key, *where.names}
    wanted = [name for name in types if name in wanted]
    if is_text(types[columns.image]):
        batches = file.iter_batches(1 << 14, columns=wanted)
    else:
        batches = batches_of(file, range(file.num_row_groups), wanted)
    for batch in batches:
        yield from compared_rows(batch, file.schema_arrow, where.names)
