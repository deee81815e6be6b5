"""Pairs from WebDataset shards: tar files whose members of one name belong together."""

import glob
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator
from typing import Any

from clip_jax.sources.records import Pair, as_captions, refuse

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "ppm")


class TarPairs:
    """The pairs of some shards, by an index of their members; nothing is unpacked.

    A pair is an image (`.jpg`, `.png`, ...) and, under the same name, a text (`.txt`, one caption)
    or a JSON document (`.json`, `caption` or `captions`). The key is that name.
    """

    def __init__(self, pattern: str | os.PathLike[str]):
        """Reads the headers and captions of all shards, but no picture.

        Args:
            pattern: a path with `*`, `?`, `[...]`, and braces: `pairs-{000..012}.tar`,
                `{train,more}-*.tar`.

        Raises:
            ValueError: lists all that is wrong: captions or images missing, keys twice.
            FileNotFoundError: nothing fits the pattern.
        """
        paths = expand(os.fspath(pattern))
        self._members: list[tuple[str, int, int, int, tuple[str, ...]]] = []
        self._files: list[int] = []
        problems, seen = [], set()
        for shard, path in enumerate(paths):
            self._files.append(os.open(path, os.O_RDONLY))
            for key, place, captions in _index(path, problems):
                if key in seen:
                    problems.append(f"{path}: the key {key!r} has been there before")
                    continue
                seen.add(key)
                self._members.append((key, shard, *place, captions))
        refuse(os.fspath(pattern), problems)
        if not self._members:
            raise ValueError(f"{os.fspath(pattern)}: no pairs in {len(paths)} shards")

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> Pair:
        key, shard, offset, size, captions = self._members[index]
        # At an offset, so that threads don't move each other's place.
        image = os.pread(self._files[shard], size, offset)
        if len(image) < size:
            raise OSError(f"{key}: the shard ends before the picture does")
        return Pair(key, image, captions)

    def __del__(self, close=os.close):  # bound here: at the end of the process `os` is empty
        for file in getattr(self, "_files", ()):
            close(file)


def expand(pattern: str) -> list[str]:
    """The files that a pattern stands for, each once, in the order of their names.

    Raises:
        FileNotFoundError: a part of the pattern fits no file.
    """
    found: list[str] = []
    for part in _braces(pattern):
        files = sorted(glob.glob(part)) if glob.has_magic(part) else [part]
        if not files or not os.path.isfile(files[0]):
            raise FileNotFoundError(2, "no such file", part)
        found += files
    return sorted(dict.fromkeys(found))


def _braces(pattern: str) -> Iterator[str]:
    """`a{1..3}`, `a{b,c}`, several of them too; the shell's rules, with numbers only."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    head, inside, tail = pattern[: match.start()], match[1], pattern[match.end() :]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = numbers.groups()
        width = len(first) if first.startswith("0") else 0
        choices = [f"{i:0{width}d}" for i in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",")
    yield from itertools.chain.from_iterable(_braces(head + c + tail) for c in choices)


def _index(path: str, problems: list[str]) -> Iterator[tuple[str, tuple[int, int], tuple]]:
    groups: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                group, suffix = groups.setdefault(key, {}), suffix.lower()
                if suffix in IMAGES:
                    group["image"] = member.offset_data, member.size
                elif suffix in ("txt", "json"):
                    file = tar.extractfile(member)
                    assert file is not None  # it is a file
                    group[suffix] = file.read()
    except tarfile.TarError as error:
        problems.append(f"{path}: the tar file is damaged: {error}")
        return
    for key, group in groups.items():
        try:
            if "image" not in group:
                raise ValueError("no image")
            yield key, group["image"], _captions(group)
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are such
            problems.append(f"{path}: {key}: {error}")


def _captions(group: dict[str, Any]) -> tuple[str, ...]:
    if "txt" in group:
        return as_captions(group["txt"].decode().strip())
    if "json" not in group:
        raise ValueError("no caption")
    document = json.loads(group["json"])
    if not isinstance(document, dict):
        raise ValueError("the JSON document is no object")
    return as_captions(document.get("captions", document.get("caption")))
