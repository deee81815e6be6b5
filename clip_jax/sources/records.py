"""What sources give: pairs to train on, records to embed; and how their problems are told."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from clip_jax.messages import counted, some

# What the names of pictures' files end in.
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "ppm", "tif", "tiff")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture and what it may be called.

    Attributes:
        key: says which one it is; no other of its source has the same.
        image: the bytes of an image file.
        captions: one or more, none of them blank.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]


class Pairs(Protocol):
    """Pairs to be read at random, by several threads at a time."""

    def __len__(self) -> int:
        """How many pairs."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """What one is called, without reading its picture."""
        ...

    def key(self, index: int) -> str:
        """Which one it is, likewise."""
        ...

    def size(self, index: int) -> int:
        """The bytes of its picture's file, likewise.

        Raises:
            OSError: they can't be told.
        """
        ...

    def __getitem__(self, index: int) -> Pair:
        """Reads one.

        Raises:
            OSError: it can't be read.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Record:
    """A row of an input: what is to be embedded, and what goes along with it.

    Attributes:
        key: says which one it is; text that UTF-8 can hold.
        read: gives the bytes of the picture's file; raises OSError or ValueError, `Unreachable`
            where that is not the picture's fault. None where there is no picture.
        path: where the picture is, for `read_picture`.
        caption: what is said of it, if anything is.
        columns: what else is known of it, by name.
        size: the bytes that the record keeps in memory until it is read.
        opens: whether it is the first of a file that stays open until its records are read.
        problem: what is wrong with it, if that is known already.
    """

    key: str
    read: Callable[[], bytes] | None = None
    path: str | None = None
    caption: str | None = None
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: int = 0
    problem: str | None = None
    opens: bool = False


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


class Rows(Protocol):
    """The rows of a shard, opened."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def records(self, begin: int, end: int) -> Iterator[Record]:
        """Those from `begin` to before `end`, in order; read by one thread at a time.

        Raises:
            OSError: they can't be read; `Unreachable`, if that is not the file's fault.
            ValueError: the file is damaged.
        """
        ...

    def keys(self, begin: int, end: int) -> list[str | None]:
        """The keys of those rows, as far as they can be told without reading what the rows hold.

        Raises:
            OSError: they can't be read.
        """
        ...


class Shard(Protocol):
    """A file of rows, or a folder of them.

    Attributes:
        name: of the file, without its folder.
        path: of the file or folder.
        fingerprint: what tells it from another of its name on whatever machine, as the number of
            its bytes does.
    """

    name: str
    path: str

    def stamp(self, rows: Sequence[int]) -> str | None:
        """What tells the files of these rows from what they were before, as they are listed here.

        None where that can't be told.
        """
        ...

    def files(self, rows: Sequence[int]) -> list[str]:
        """The paths of what holds these rows."""
        ...

    def has_changed(self) -> bool:
        """Whether it was written since it was listed.

        Raises:
            OSError: that can't be told now.
        """
        ...

    @property
    def fingerprint(self) -> str: ...

    def open(self) -> Rows:
        """Its rows.

        Raises:
            OSError: it can't be read; `Unreachable`, if that is not the file's fault.
            ValueError: it is damaged, or holds something else than expected.
        """
        ...


def as_text(text: str) -> str:
    r"""Text that UTF-8 can hold: bytes of a name that are not UTF-8 are written as `\xe9`."""
    if text.isascii():  # nearly all are, and there are very many
        return text
    return re.sub("[\ud800-\udfff]", lambda found: _escaped(ord(found[0])), text)


def as_key(text: str) -> str:
    r"""As `as_text`, but two names stay two: where one has `\xe9` itself, that is `\x5cxe9`."""
    if "\\" not in text:
        return as_text(text)
    return as_text(re.sub(r"\\(?=x5c|x[89a-f][0-9a-f]|ud[89a-f][0-9a-f]{2})", r"\\x5c", text))


def as_name(text: str) -> str:
    """The name that `as_key` has written."""
    return re.sub(r"\\(?:x(5c|[89a-f][0-9a-f])|u(d[89a-f][0-9a-f]{2}))", _unescaped, text)


def _escaped(surrogate: int) -> str:
    byte = surrogate - 0xDC00  # where Python keeps them
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else f"\\u{surrogate:04x}"


def _unescaped(found: re.Match[str]) -> str:
    if found[2]:
        return chr(int(found[2], 16))
    byte = int(found[1], 16)
    return chr(byte if byte < 0x80 else 0xDC00 + byte)


def parsed(text: str | bytes) -> Any:
    """A JSON document.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None


def refuse(source: str, problems: Sequence[str]) -> None:
    """Raises ValueError that lists the first of some problems, if there are any."""
    if not problems:
        return
    shown = some(problems, between="\n")
    raise ValueError(f"{source}: {counted(len(problems), 'problem')}:\n{shown}")


def as_captions(value: object) -> tuple[str, ...]:
    """The captions of a record that holds one or a list of them.

    Raises:
        ValueError: there is none, or one is blank or no string.
    """
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list | tuple) or not captions:
        raise ValueError("no caption")
    if not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise ValueError("a blank caption")
    return tuple(captions)
