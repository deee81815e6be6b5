"""Pairs from a folder of pictures with a table of captions: CSV, JSON lines or Parquet."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clip_jax.sources.addresses import read_address
from clip_jax.sources.faults import guarded
from clip_jax.sources.lines import Columns, large_cells, parsed_rows
from clip_jax.sources.parquet import is_text, open_parquet, rows_of
from clip_jax.sources.records import Pair, as_captions, refuse
from clip_jax.storage import check_regular

TABLE = "captions"  # the name of the table in a folder, without its suffix


class TablePairs:
    """The rows of a table, each with the path of a picture and its captions.

    The columns are `image`, a path relative to the table's folder; `caption`, a text, or
    `captions`, a list of texts (in a CSV file one text); and `key`, by default the path. Other
    columns are ignored.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Reads the table, but no picture.

        Args:
            path: a .csv, .jsonl or .parquet file, or a folder with one of them named `captions`.

        Raises:
            ValueError: columns, captions or files are missing, or keys not unique; lists all
                problems.
            FileNotFoundError: there is no such table.
            ModuleNotFoundError: Parquet needs pyarrow.
        """
        table = _table(Path(path))
        read = _READERS.get(table.suffix)
        if read is None:
            raise ValueError(
                f"{table}: a table of captions ends in {', '.join(_READERS)}. Got {table.suffix!r}."
            )
        self._rows: list[tuple[str, Path, tuple[str, ...]]] = []
        problems, seen = [], set()
        check_regular(table)
        with guarded(str(table)):
            for number, row in enumerate(read(table), start=1):
                try:
                    if isinstance(row, str):
                        raise ValueError(row)
                    key, image, captions = _parse(row)
                    if key in seen:
                        raise ValueError(f"the key {key!r} has been there before")
                    file = table.parent / image
                    if not _is_file(file):
                        raise ValueError(f"no such picture: {image}")
                except ValueError as error:
                    problems.append(f"row {number}: {error}")
                    continue
                seen.add(key)
                self._rows.append((key, file, captions))
        refuse(str(table), problems)
        if not self._rows:
            raise ValueError(f"{table}: the table has no rows")

    def __len__(self) -> int:
        return len(self._rows)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._rows[index][2]

    def key(self, index: int) -> str:
        return self._rows[index][0]

    def size(self, index: int) -> int:
        return self._rows[index][1].stat().st_size

    def __getitem__(self, index: int) -> Pair:
        key, file, captions = self._rows[index]
        return Pair(key, read_address(str(file)), captions)


def _table(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(2, "no such file or folder", str(path))
        return path
    names = [f"{TABLE}{suffix}" for suffix in _READERS]
    found = [path / name for name in names if (path / name).is_file()]
    if len(found) != 1:
        what = "more than one table" if found else "no table"
        raise ValueError(f"{path}: {what} of captions; expected one of {', '.join(names)}")
    return found[0]


def _parse(row: dict[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    if not row.get("image"):
        raise ValueError(f"no 'image'; its columns are {', '.join(map(repr, row))}")
    if ("caption" in row) == ("captions" in row):
        raise ValueError(
            "there must be a column 'caption' or 'captions', one of them. "
            f"Got {', '.join(map(repr, row))}"
        )
    image = str(row["image"])
    captions = as_captions(row.get("caption", row.get("captions")))
    return str(row.get("key") or image), image, captions


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _read_lines(path: Path) -> Iterator[dict[str, Any] | str]:
    with large_cells():
        yield from parsed_rows(str(path), path.read_bytes(), Columns())


def _read_parquet(path: Path) -> Iterator[dict[str, Any] | str]:
    file = open_parquet(str(path), extra="train")
    columns = {column.name: column.type for column in file.schema_arrow}
    if "image" in columns and not is_text(columns["image"]):
        # Pairs are read at random, but reading one Parquet row reads thousands around it.
        raise ValueError(
            f"{path}: the column 'image' must hold paths of files. Got {columns['image']}. "
            "Write pictures that are in the table into files, or with their captions into .tar "
            "shards; clip-jax embed takes them as they are"
        )
    known = {"key", "image", "caption", "captions"}
    for batch in file.iter_batches(columns=[name for name in columns if name in known]):
        yield from rows_of(batch)


_READERS: dict[str, Callable[[Path], Iterator[dict[str, Any] | str]]] = {
    ".csv": _read_lines,
    ".jsonl": _read_lines,
    ".parquet": _read_parquet,
}
