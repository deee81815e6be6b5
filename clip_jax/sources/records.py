"""What a source of image-text pairs gives, and how its problems are told."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol


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

    def __getitem__(self, index: int) -> Pair:
        """Reads one.

        Raises:
            OSError: it can't be read.
        """
        ...


def refuse(source: str, problems: Sequence[str]) -> None:
    """Raises ValueError that lists the first of some problems, if there are any."""
    if not problems:
        return
    shown = list(problems[:10])
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    raise ValueError("\n".join([f"{source}: {len(problems)} problems:", *shown]))


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
