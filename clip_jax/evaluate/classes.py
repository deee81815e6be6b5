"""The names of classes, from labels or from a text file, and rows held out of each class."""

import collections
import io
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from clip_jax.messages import some
from clip_jax.sources.stand_ins import stand_ins
from clip_jax.sources.utf8 import check_utf_8

# One row in so many of each class is held out.
FIFTH = 5
# Words joined or numbered as in names of files, golden_retriever and 001.Albatross; and cat|dog.
_JOINED = re.compile(r"[^\W_]+_|\d+[._]\s*[^\W\d]|.*[|;]")
# A line of a list in Python or JSON, with its quotes or brackets.
_QUOTED = re.compile(r"""[\[{(]|[\])}],?;?|\[.*\],?|\[?\s*(['"]).+\1\s*,?\s*\]?""")


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Returns the lines of a text file that are not blank.

    Raises:
        ValueError: there are none, the file is not UTF-8, or it is a list of Python's or JSON.
        OSError: the file can't be read.
    """
    try:
        content = Path(path).read_bytes()
        check_utf_8(content)
        text = io.StringIO(content.decode("utf-8-sig"), newline=None)  # with any line ends
    except ValueError:
        raise ValueError(f"{os.fspath(path)} is not UTF-8: save it as that") from None
    if not (lines := [line.strip() for line in text if line.strip()]):
        raise ValueError(f"{os.fspath(path)} is empty: expected one entry a line")
    if quoted := [line for line in lines if _QUOTED.fullmatch(line)]:
        raise ValueError(
            f"{os.fspath(path)} is no plain text: expected one entry a line, without the quotes "
            f"and brackets of a list. Got {quoted[0][:60]}"
        )
    return lines


def name_classes(
    labels: Sequence[str], lines: Sequence[str] | None
) -> tuple[list[str], Int[np.ndarray, " n"]]:
    """Returns the names of the classes, and the class of each label as an index into them.

    Args:
        labels: one a row.
        lines: one a class: the label; or the label, a tab and the name; or, for labels that are
            numbers, the names of class 0, class 1, and so on. None if the labels are the names,
            which are then sorted.

    Raises:
        ValueError: a label has no line, or two; names it. Or the names begin with their numbers.
        TypeError: the lines are one text, or a dictionary.
    """
    if isinstance(lines, str | Mapping):
        raise TypeError(
            f"class_names must be a sequence of strings, one a class: the label; or the label, a "
            f"tab and the name. Got {lines!r:.100}"
        )
    if lines is None:
        lines = sorted(set(labels))
    pairs = [line.partition("\t") for line in lines]
    if all(tab for _, tab, _ in pairs):
        keys, names = [key.strip() for key, _, _ in pairs], [name.strip() for _, _, name in pairs]
    else:
        keys = names = list(lines)
    twice = sorted(key for key, count in collections.Counter(keys).items() if count > 1)
    if twice and (keys is not names or not _are_numbers(labels, len(names))):
        raise ValueError(
            f"classes given more than once: {some(twice)}. Names may be, where the labels are the "
            f"numbers of the lines from 0, or each line is a label, a tab and the name"
        )
    numbers = {key: i for i, key in enumerate(keys)}
    missing = sorted(set(labels) - numbers.keys())
    if (missing or twice) and _are_numbers(labels, len(names)):
        if any(
            all(re.match(rf"0*{i}\W", line) for i, line in enumerate(lines, first))
            for first in (0, 1)
        ):
            raise ValueError(
                f"each class is given with its number, as {lines[0]!r}, which would be part of its "
                f"name. Expected the number, a tab and the name; or the name alone"
            )
        return names, np.array([int(label) for label in labels])
    if missing:
        raise ValueError(
            f"labels that are not among the {len(names)} classes: {some(missing)}. Expected a "
            "line for each: the label, or the label, a tab and the name"
        )
    return names, np.array([numbers[label] for label in labels])


def _are_numbers(labels: Sequence[str], count: int) -> bool:
    """Whether labels are the numbers of so many classes."""
    return all(label.isdecimal() and int(label) < count for label in set(labels))


def check_classes(
    source: str, labels: Sequence[str], lines: Sequence[str] | None, *, are_prompts: bool = True
) -> None:
    """Checks that classes can be told apart, and have names that a model has read of.

    Args:
        source: where the labels come from, for the error.
        labels: of rows or of classes.
        lines: as for `name_classes`.
        are_prompts: whether the names of classes become prompts.

    Raises:
        ValueError: there is only one class, so that any model is right; or labels without names
            are numbers or the like, which would be scored as "a photo of a 0.".

    Warns:
        UserWarning: words of labels without names are joined as in names of files.
    """
    names = sorted(set(labels))
    if not names:
        return  # not known yet
    if len(names if lines is None else set(lines)) < 2:
        raise ValueError(
            f"{source}: any model is right where there is only one class. Expected at least two "
            f"classes. Got one class: {names[0]!r}"
            + (". Give the names of the others, too" if are_prompts else "")
        )
    if lines is not None or not are_prompts:
        return
    if what := stand_ins(names):
        raise ValueError(
            f"the labels of {source} are {what}, not names, and would be scored as 'a photo of "
            f"a {names[0]}.': {some(names)}. Give the name of each class, one a line, in a "
            "file (--classes) or a list (class_names=)"
        )
    if joined := [name for name in names if _JOINED.match(name)]:
        warnings.warn(
            f"{source}: labels are scored as they stand, such as 'a photo of a {joined[0]}.': to "
            f"have other names, give for each class a line with its label, a tab and its name, in "
            f"a file (--classes) or a list (class_names=)",
            stacklevel=3,
        )


def hold_out(labels: Sequence[str] | np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows that stay, and those held out: the fifth, tenth, ... row of each class.

    Args:
        labels: one a row.
        what: the purpose of the rows held out, for the error.

    Raises:
        ValueError: a class has fewer than five rows; names it.
    """
    classes, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    # The rows ordered by class, and the place of each within its class.
    order = np.argsort(numbers, kind="stable")
    places = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.zeros(len(order), bool)
    held[order[places % FIFTH == FIFTH - 1]] = True
    is_small = counts < FIFTH
    few = [f"{classes[i]} ({counts[i]})" for i in np.flatnonzero(is_small)]
    if few:
        raise ValueError(
            f"one row in {FIFTH} is held out for {what}, but these classes have fewer rows: "
            f"{some(few)}"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)
