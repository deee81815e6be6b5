"""Rows of text files: one text per line, or tables as CSV or JSON lines."""

import contextlib
import csv
import functools
import io
import itertools
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from clip_jax.sources.addresses import read_address
from clip_jax.sources.advice import is_address
from clip_jax.sources.columns import Columns
from clip_jax.sources.faults import guarded, problem_of
from clip_jax.sources.files import ListedFile
from clip_jax.sources.records import ListRows, Record, as_captions, as_key, as_text, parsed
from clip_jax.sources.utf8 import BOM, check_utf_8
from clip_jax.storage import Unreachable, absolute, is_remote, storage

# Bytes at the start of a file from which its columns and its fingerprint are taken.
BEGINNING = 1 << 20
# Bytes of a cell. Python's own limit, 131,072, is global to the process; a reader that exceeds it
# goes on in the middle of the cell as if rows followed.
MOST_OF_A_CELL = 1 << 26
_CSV_LIMIT = threading.Lock()


class LinesShard(ListedFile):
    """The rows of a .txt, .csv, .tsv or .jsonl file, which is read whole.

    An unreadable row is a record with a problem.
    """

    def __init__(self, path: str, columns: Columns):
        """Gets the file's size; reads nothing yet."""
        super().__init__(path)
        self._size = self.stat.size
        self._path, self._columns = path, columns

    @property
    def fingerprint(self) -> str:
        """Its size and a checksum of its beginning, as different tables often have one size."""
        try:
            return f"{self._size} {zlib.crc32(self._beginning())}"
        except Unreachable:
            raise
        except OSError:  # one unreadable file must not stop the others
            return str(self._size)

    def open(self) -> ListRows:
        with guarded(self._path):
            text = storage(self._path).read(self._path)
            with large_cells():
                return ListRows(
                    [
                        record(row, f"{self.name}:{number}", self._path, self._columns)
                        for number, row in enumerate(self._parsed(text), start=1)
                    ]
                )

    def names(self) -> list[str]:
        """Returns the columns found in the file's beginning.

        Raises:
            OSError: the file can't be read.
            ValueError: no row in its beginning can be parsed, or it is not UTF-8.
        """
        text, ending = self._beginning(), self._path.rpartition(".")[2].lower()
        with guarded(self._path):
            check_utf_8(text)
        if ending == "txt":
            return [self._columns.caption]
        if ending in ("csv", "tsv"):
            lines = csv_text(text, "backslashreplace")
            with large_cells():
                rows: list[Any] = [next(csv_rows(lines, _delimiter(ending, lines)), [])]
            if not isinstance(rows[0], str):
                with guarded(self._path):
                    rows = [_distinct(rows[0], self._columns)]
        else:
            whole = text if len(text) < BEGINNING else text.rpartition(b"\n")[0]
            rows = list(self._parsed(whole))
        names = dict.fromkeys(name for row in rows if not isinstance(row, str) for name in row)
        if not names:
            problem = next((row for row in rows if isinstance(row, str)), "there is no row")
            raise ValueError(f"{self._path}: {problem}")
        return list(names)

    def has_addresses(self) -> bool:
        """Whether the file's first line is a web address.

        Raises:
            OSError: the file can't be read.
        """
        return is_address(self._beginning().lstrip()[:10].decode("ascii", "replace"))

    def _beginning(self) -> bytes:
        return storage(self._path).read_range(self._path, 0, BEGINNING)

    def _parsed(self, text: bytes) -> Iterator["_Row"]:
        return parsed_rows(self._path, text, self._columns)


def parsed_rows(path: str, text: bytes, columns: Columns) -> Iterator["_Row"]:
    """Yields each row as values by column, or as a string that tells its problem.

    Args:
        path: the path of the table; its suffix gives the format.
        text: the content of the file.
        columns: the column names, for formats without any.

    Raises:
        ValueError: the file is UTF-16 or UTF-32.
    """
    check_utf_8(text)
    lines = text.removeprefix(BOM).splitlines(True)
    return _PARSERS[path.rpartition(".")[2].lower()](lines, columns)


def record_of(row: Mapping[str, Any], number: str, table: str, columns: Columns) -> Record:
    """Returns a table's row as a record; with a problem if it has neither picture nor caption.

    Args:
        row: values by column.
        number: the key if the row has none.
        table: the table's path; paths of pictures are relative to its folder.
        columns: the names of the columns.
    """
    image, caption, problem = row.get(columns.image), row.get(columns.caption), None
    if isinstance(image, Mapping):  # the form of Hugging Face data sets
        image = image.get("bytes") or image.get("path")
    captions: tuple[str, ...] = ()
    read = path = None
    size = 0
    if isinstance(image, bytes) and image:
        read, size = functools.partial(bytes, image), len(image)
        path = f"{absolute(table)}/{number.rpartition(':')[2]}"
    elif isinstance(image, str) and image:
        path = _beside(table, image)
        read = functools.partial(read_address, path)
    try:
        captions = as_captions(caption)
    except ValueError as error:
        if read is None:
            problem = f"no picture, and {error}" if columns.image in row else str(error)
    key = row.get(columns.key)
    if key is None or key == "":
        key = image if isinstance(image, str) and image else number
    others = {name: row.get(name) for name in columns.others}
    path = path and as_key(path)
    first, has_more = next(iter(captions), None), len(captions) > 1
    return Record(key_of(key), read, path, first, others, size, problem, has_more_captions=has_more)


def key_of(value: Any) -> str:
    """Returns a value of the key column as a key."""
    if isinstance(value, bytes):
        return as_key(value.decode("utf-8", "surrogateescape"))
    return as_text(str(value))


def record(row: Mapping[str, Any] | str, number: str, table: str, columns: Columns) -> Record:
    """As `record_of`; a problem, also one given as `row`, becomes a record with it."""
    number = as_key(number)
    if isinstance(row, str):
        return Record(number, problem=row)
    try:
        return record_of(row, number, table, columns)
    except Exception as error:  # one bad row, whatever it holds, must not stop the others
        return Record(number, problem=problem_of(error))


def _beside(table: str, path: str) -> str:
    if is_remote(path) or os.path.isabs(path):
        return path
    return f"{os.path.dirname(absolute(table))}/{path}"


# What may stand between the cells of a .csv file, the usual first, and its name.
_DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}
# A row's values by column, or a description of its problem.
_Row = dict[str, Any] | str


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


def _parse_csv(lines: Sequence[bytes], columns: Columns, ending: str = "csv") -> Iterator[_Row]:
    names: list[str] | None = None
    text = csv_text(b"".join(lines), "surrogateescape")
    delimiter = _delimiter(ending, text)
    for cells in csv_rows(text, delimiter):
        if isinstance(cells, str):
            yield cells
        elif names is None:
            names = _distinct(cells, columns)
        elif len(cells) > len(names):
            yield f"more cells than columns, which {_DELIMITERS[delimiter]} in a caption makes"
        elif any(cell and not cell.isascii() and _broken(cell) for cell in cells):
            yield "the row is not UTF-8"
        else:
            yield (
                dict(zip(names, cells, strict=True))
                if len(cells) == len(names)
                else dict(itertools.zip_longest(names, cells))
            )


def _distinct(names: list[str], columns: Columns) -> list[str]:
    """Returns the names of a CSV file's columns, without spaces around them.

    Of those that nobody asks for, two may be equal.

    Raises:
        ValueError: two columns have a name that is asked for.
    """
    names = [name.strip() for name in names]
    for name in (columns.image, columns.caption, columns.key, *columns.others):
        if names.count(name) > 1:
            raise ValueError(
                f"{names.count(name)} columns have the name {name!r}; rename all but one"
            )
    return names


def csv_text(text: bytes, errors: str) -> list[str]:
    """Returns the lines of a CSV file."""
    # A blank line in front would be read as an empty header.
    text = text.removeprefix(BOM).lstrip(b"\r\n")
    return io.StringIO(text.decode("utf-8", errors), newline="").readlines()


def _delimiter(ending: str, lines: Sequence[str]) -> str:
    """Returns what stands between a table's cells: OpenCLIP's .csv files have tabs, for one."""
    if ending == "tsv":
        return "\t"
    header = lines[0] if lines else ""
    return next((mark for mark in _DELIMITERS if mark in header), ",")


def csv_rows(lines: Sequence[str], delimiter: str = ",") -> Iterator[list[str] | str]:
    """Yields the rows that are not blank; in place of a bad one, its problem."""
    # A quote added at the end begins a row of its own, unless a cell was left open: it closes that.
    reader = csv.reader(itertools.chain(lines, ['"']), delimiter=delimiter)
    while True:
        begin = reader.line_num
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield f"the row is no CSV: {error}"
            if "field limit" in str(error):  # the rest of the cell would be read as rows
                return
            continue
        if row is None or begin == len(lines):
            return
        if reader.line_num > len(lines):
            yield f"the row is no CSV: a quote in line {begin + 1} is never closed"
        elif row:
            # With bars there are spaces, as Flickr30k has them.
            yield [cell.strip() for cell in row] if delimiter == "|" else row


@contextlib.contextmanager
def large_cells() -> Iterator[None]:
    """Raises the csv module's limit in the block only, as it is global to the process."""
    with _CSV_LIMIT:
        limit = csv.field_size_limit(MOST_OF_A_CELL)
        try:
            yield
        finally:
            csv.field_size_limit(limit)


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
    "tsv": functools.partial(_parse_csv, ending="tsv"),
}
