"""Expands paths with `*`, `?`, `[...]` and braces to files."""

import errno
import glob
import itertools
import os
import re
from collections.abc import Iterator

from clip_jax.storage import is_remote, storage

MOST = 10_000_000  # files that braces may name; more is a typing error


def expand(pattern: str) -> list[str]:
    """Returns the files that match a pattern, without duplicates, sorted by name.

    Raises:
        FileNotFoundError: an alternative of the pattern matches no file.
        ValueError: the pattern names more files than `MOST`.
    """
    found: list[str] = []
    for part in _braces(pattern):
        if not glob.has_magic(part) or os.path.isfile(part):
            is_there = is_remote(part) or os.path.isfile(part)  # remote: checked when read
            files = [part] if is_there else []
        else:
            files = sorted(storage(part).glob(part))
        if not files:
            raise FileNotFoundError(errno.ENOENT, "no such file", part)
        found += files
    return sorted(dict.fromkeys(found))


def _braces(pattern: str) -> Iterator[str]:
    """Expands braces by the shell's rules: `a{b,c}`, `a{1..3}` (numbers only), nested too."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    head, inside, tail = pattern[: match.start()], match[1], pattern[match.end() :]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        ends = numbers.groups()
        is_padded = any(len(end) > 1 and end.startswith("0") for end in ends)
        width = max(map(len, ends)) if is_padded else 0
        first, last = map(int, ends)
        step = 1 if first <= last else -1
        if abs(last - first) >= MOST:
            raise ValueError(f"{pattern} names {abs(last - first) + 1:,} files, more than {MOST:,}")
        choices = (f"{i:0{width}d}" for i in range(first, last + step, step))
    else:
        choices = inside.split(",")
    yield from itertools.chain.from_iterable(_braces(head + c + tail) for c in choices)
