"""Pairs to train on and records to embed, the protocols of their sources, and their problems."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from clip_jax.sources.left_out import LeftOut

# Suffixes of picture files: of all formats in `clip_jax.preprocess.FORMATS`, also where this
# machine's Pillow lacks one, so that all machines list the same rows.
IMAGES = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "ppm", "tif", "tiff"),
    *("jpe", "jfif", "apng", "dib", "pbm", "pgm", "pnm", "pfm", "ico", "avif", "avifs"),
    *("jp2", "j2k", "jpc", "jpf", "jpx", "j2c", "heic", "heif", "hif"),
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture and its captions.

    Attributes:
        key: identifies the pair; unique in its source.
        image: the bytes of an image file.
        captions: one or more, none of them blank.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]


class Pairs(Protocol):
    """Pairs to be read in any order, by several threads at a time.

    Attributes:
        left_out: what of the source can't be used.
    """

    left_out: LeftOut

    def __len__(self) -> int:
        """Returns how many pairs there are."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions of a pair, without reading its picture."""
        ...

    def key(self, index: int) -> str:
        """Returns the key of a pair, without reading its picture."""
        ...

    def picture(self, index: int) -> object:
        """Returns what equals that of another pair of the same picture; can be hashed."""
        ...

    def size(self, index: int) -> int:
        """Returns the size of a picture's file in bytes, without reading it.

        Raises:
            OSError: the size can't be found out.
        """
        ...

    def __getitem__(self, index: int) -> Pair:
        """Reads a pair.

        Raises:
            OSError: the picture can't be read.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Record:
    """A row of an input: a picture, a text or both, and other columns.

    Attributes:
        key: identifies the row; can be encoded as UTF-8.
        read: returns the bytes of the picture's file; raises OSError or ValueError, or
            `Unreachable` if the picture isn't at fault. None if there is no picture.
        path: the path of the picture, for `read_picture`.
        caption: the text, if there is one; the first of several.
        has_more_captions: whether there are others.
        columns: the columns passed through, by name.
        size: the bytes that the record keeps in memory until it is read.
        opens: whether it is the first record of a file that stays open until all are read.
        problem: what is wrong with the row, if that is known already.
    """

    key: str
    read: Callable[[], bytes] | None = None
    path: str | None = None
    caption: str | None = None
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: int = 0
    problem: str | None = None
    opens: bool = False
    has_more_captions: bool = False


class ListRows:
    """Rows in memory."""

    def __init__(self, records: list[Record], first: int = 0):
        """Stores the arguments.

        Args:
            records: the rows.
            first: the number of the first one, if these are only some of a file's rows.
        """
        self._records, self._first = records, first

    def __len__(self) -> int:
        return self._first + len(self._records)

    def records(self, begin: int, end: int) -> Iterator[Record]:
        yield from self._records[begin - self._first : end - self._first]

    def keys(self, begin: int, end: int) -> list[str | None]:
        return [None if row.problem else row.key for row in self.records(begin, end)]

    def between(self, begin: int, end: int) -> "ListRows":
        """Returns some of the rows, with the numbers they have; for other processes."""
        return ListRows(list(self.records(begin, end)), begin)

    def fields(self, names: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
        for row in self._records:
            yield row.columns or row.problem or {}


class Rows(Protocol):
    """The rows of an open shard."""

    def __len__(self) -> int:
        """Returns how many rows there are."""
        ...

    def records(self, begin: int, end: int) -> Iterator[Record]:
        """Yields rows `begin` to `end` - 1 in order; one thread may read at a time.

        Raises:
            OSError: they can't be read; `Unreachable` if the file isn't at fault.
            ValueError: the file is damaged.
        """
        ...

    def keys(self, begin: int, end: int) -> list[str | None]:
        """Returns the keys of those rows, None where a key would need the row's content.

        Raises:
            OSError: they can't be read.
        """
        ...


class Shard(Protocol):
    """A file of rows, or a folder of them.

    Attributes:
        name: the name of the file, without its folder.
        path: the path of the file or folder.
        fingerprint: distinguishes it from others of its name, on any machine; such as its size.
    """

    name: str
    path: str

    def stamp(self, rows: Sequence[int]) -> str | None:
        """Returns the version of these rows' files when they were listed; None if unknown."""
        ...

    def files(self, rows: Sequence[int]) -> list[str]:
        """Returns the paths of the files that hold these rows."""
        ...

    def has_changed(self) -> bool:
        """Whether it was written since it was listed.

        Raises:
            OSError: the files can't be examined now.
        """
        ...

    @property
    def fingerprint(self) -> str: ...

    def open(self) -> Rows:
        """Opens it and returns its rows.

        Raises:
            OSError: it can't be read; `Unreachable` if the file isn't at fault.
            ValueError: it is damaged, or holds something else than expected.
        """
        ...


def as_text(text: str) -> str:
    r"""Returns text that can be encoded as UTF-8; other bytes of a name are written as `\xe9`."""
    if text.isascii():  # the common case, made fast
        return text
    return re.sub("[\ud800-\udfff]", lambda found: _escaped(ord(found[0])), text)


def as_key(text: str) -> str:
    r"""As `as_text`, but injective: a literal `\xe9` in a name is written as `\x5cxe9`."""
    if "\\" not in text:
        return as_text(text)
    return as_text(re.sub(r"\\(?=x5c|x[89a-f][0-9a-f]|ud[89a-f][0-9a-f]{2})", r"\\x5c", text))


def as_name(text: str) -> str:
    """Inverts `as_key`."""
    return re.sub(r"\\(?:x(5c|[89a-f][0-9a-f])|u(d[89a-f][0-9a-f]{2}))", _unescaped, text)


def _escaped(surrogate: int) -> str:
    byte = surrogate - 0xDC00  # Python's surrogateescape
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else f"\\u{surrogate:04x}"


def _unescaped(found: re.Match[str]) -> str:
    if found[2]:
        return chr(int(found[2], 16))
    byte = int(found[1], 16)
    return chr(byte if byte < 0x80 else 0xDC00 + byte)


def parsed(text: str | bytes) -> Any:
    """Parses a JSON document.

    Raises:
        ValueError: it is not valid JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None


def as_captions(value: object) -> tuple[str, ...]:
    """Returns the captions, given one or a list of them, of which blank ones are dropped.

    Raises:
        ValueError: there is none, or one is not a string.
    """
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list | tuple) or not captions:
        raise ValueError("no caption")
    if any(not isinstance(caption, str | None) for caption in captions):
        raise ValueError("a caption that is no text")
    kept = tuple(caption for caption in captions if caption and caption.strip())
    if not kept:
        raise ValueError("a blank caption")
    return kept
