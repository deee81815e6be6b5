"""Rows of text files: a text a line, or tables as CSV and JSON lines, with or without pictures."""

import collections
import csv
import dataclasses
import functools
import io
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from clip_jax.sources.files import ListedFile
from clip_jax.sources.records import Record, as_captions, parsed
from clip_jax.storage import Unreachable, absolute, is_remote, storage

# Bytes of a file by which its columns are told, and whether it has changed.
BEGINNING = 1 << 20
# What some programs write in front of UTF-8.
BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what.

    Attributes:
        image: the picture: its path from the table's folder, or the bytes of its file.
        caption: the text, or a list of which the first is taken.
        key: says which row it is; without such a column the path or the row's number does.
        others: to be taken along as they are.

    Raises:
        ValueError: one of the others is named twice.
    """

    image: str = "image"
    caption: str = "caption"
    key: str = "key"
    others: tuple[str, ...] = ()

    def __post_init__(self):
        if twice := [name for name, n in collections.Counter(self.others).items() if n > 1]:
            raise ValueError(f"columns to take along are named twice: {', '.join(twice)}")


class LinesShard(ListedFile):
    """The rows of a .txt, .csv or .jsonl file, which is read whole.

    A row that can't be read is a row with a problem.
    """

    def __init__(self, path: str, columns: Columns):
        """Looks at the file's size, and reads nothing yet."""
        super().__init__(path)
        self._size = self.stat.size
        self._path, self._columns = path, columns

    @property
    def sign(self) -> str:
        """Its size and a checksum of its beginning: tables of one size are easily made."""
        try:
            return f"{self._size} {zlib.crc32(self._beginning())}"
        except Unreachable:
            raise
        except OSError:  # one file that can't be read, among others
            return str(self._size)

    def open(self) -> "ListRows":
        rows = self._parsed(storage(self._path).read(self._path))
        return ListRows(
            [
                _record(row, f"{self.name}:{number}", self._path, self._columns)
                for number, row in enumerate(rows, start=1)
            ]
        )

    def names(self) -> list[str]:
        """The columns that there are, as far as the file's beginning tells.

        Raises:
            OSError: it can't be read.
            ValueError: no row of its beginning can be read.
        """
        text, ending = self._beginning(), self._path.rpartition(".")[2].lower()
        if ending == "txt":
            return [self._columns.caption]
        if ending == "csv":
            rows = [next(_csv_rows(csv.reader(_csv_text(text, "backslashreplace"))), [])]
        else:
            whole = text if len(text) < BEGINNING else text.rpartition(b"\n")[0]
            rows = list(self._parsed(whole))
        names = dict.fromkeys(name for row in rows if not isinstance(row, str) for name in row)
        if not names:
            problem = next((row for row in rows if isinstance(row, str)), "there is no row")
            raise ValueError(f"{self._path}: {problem}")
        return list(names)

    def _beginning(self) -> bytes:
        return storage(self._path).read_range(self._path, 0, BEGINNING)

    def _parsed(self, text: bytes) -> Iterator["_Row"]:
        lines = text.removeprefix(BOM).splitlines(True)
        return _PARSERS[self._path.rpartition(".")[2].lower()](lines, self._columns)


class ListRows:
    """Rows in memory."""

    def __init__(self, records: list[Record]):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def records(self, begin: int, end: int) -> Iterator[Record]:
        yield from self._records[begin:end]

    def keys(self, begin: int, end: int) -> list[str | None]:
        return [None if row.problem else row.key for row in self._records[begin:end]]


def record_of(row: Mapping[str, Any], number: str, table: str, columns: Columns) -> Record:
    """A table's row as a record.

    Args:
        row: values by column.
        number: the key of a row that has none.
        table: the table's path, from whose folder the paths of pictures go.
        columns: which are which.

    Raises:
        ValueError: there is neither picture nor caption.
    """
    image, caption, problem = row.get(columns.image), row.get(columns.caption), None
    if isinstance(image, Mapping):  # as Hugging Face's data sets have it
        image = image.get("bytes") or image.get("path")
    read = path = None
    size = 0
    if isinstance(image, bytes) and image:
        read, size = functools.partial(bytes, image), len(image)
        path = f"{absolute(table)}/{number.rpartition(':')[2]}"
    elif isinstance(image, str) and image:
        path = _beside(table, image)
        read = functools.partial(storage(path).read, path)
    try:
        caption = as_captions(caption)[0]
    except ValueError as error:
        caption, problem = None, None
        if read is None:
            problem = f"no picture, and {error}" if columns.image in row else str(error)
    key = row.get(columns.key)
    if key is None or key == "":
        key = image if isinstance(image, str) and image else number
    others = {name: row.get(name) for name in columns.others}
    return Record(as_key(key), read, path, caption, others, size, problem)


def as_key(value: Any) -> str:
    """A value of the column of keys as a key."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _record(row: Mapping[str, Any] | str, number: str, table: str, columns: Columns) -> Record:
    return (
        Record(number, problem=row)
        if isinstance(row, str)
        else record_of(row, number, table, columns)
    )


def _beside(table: str, path: str) -> str:
    if is_remote(path) or os.path.isabs(path):
        return path
    return f"{os.path.dirname(absolute(table))}/{path}"


# Parsers give a row's values by column, or what is wrong with the row.
_Row = Mapping[str, Any] | str


def _parse_txt(lines: Sequence[bytes], columns: Columns) -> Iterator[_Row]:
    for line in lines:
        text = _decoded(line)
        yield {columns.caption: text.strip()} if text is not None else "the line is not UTF-8"


def _parse_jsonl(lines: Sequence[bytes], columns: Columns) -> Iterator[_Row]:
    for line in lines:
        if not line.strip():
            continue
        try:
            row = parsed(line)
        except ValueError as error:
            yield f"the line is no JSON: {error}"
            continue
        yield row if isinstance(row, dict) else "the line is no JSON object"


def _parse_csv(lines: Sequence[bytes], columns: Columns) -> Iterator[_Row]:
    for row in _csv_rows(csv.DictReader(_csv_text(b"".join(lines), "surrogateescape"))):
        if isinstance(row, str):
            yield row
        elif row.pop(None, None) is not None:  # pyright: ignore[reportArgumentType]
            yield "more cells than columns, which a comma in a caption makes"
        elif any(value and not value.isascii() and _broken(value) for value in row.values()):
            yield "the row is not UTF-8"
        else:
            yield row


def _csv_text(text: bytes, errors: str) -> io.StringIO:
    # A blank line in front would be taken for a header without names.
    return io.StringIO(text.removeprefix(BOM).lstrip(b"\r\n").decode("utf-8", errors), newline="")


def _csv_rows(rows: Iterator[Any]) -> Iterator[Any]:
    """The rows of one of csv's readers; what is wrong in place of those that it trips over."""
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"the row is no CSV: {error}"


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def _broken(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


_PARSERS: dict[str, Callable[[Sequence[bytes], Columns], Iterator[_Row]]] = {
    "txt": _parse_txt,
    "jsonl": _parse_jsonl,
    "csv": _parse_csv,
}
