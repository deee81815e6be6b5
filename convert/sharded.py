"""Reads a checkpoint that is split into shards, which an index names."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.convert.archive import MAX_INDEX_BYTES, shown
from clip_jax.convert.checks import MAX_TOLD, check_count
from clip_jax.convert.flax_msgpack import pytorch_name
from clip_jax.convert.json_file import read_json
from clip_jax.convert.wrappers import without_prefix
from clip_jax.errors import CheckpointError
from clip_jax.messages import counted, some

# What an index's name ends with; diffusers puts the variant before the end.
INDEX, HALF_INDEX = ".index.json", ".index.fp16.json"
_INDEX = re.compile(r"\.index(\.\w+)?\.json$")
# A map of a file keeps a descriptor; 10 GB come in two to ten shards.
MAX_SHARDS = 500


def is_index(name: str) -> bool:
    """Whether a file's name is that of an index of shards."""
    return _INDEX.search(name) is not None


def read_index(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads which shard holds which array.

    Args:
        path: the index, such as `model.safetensors.index.json`.

    Returns:
        The name of the shard, a file in the folder of the index, by the name of the array.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no index, or names something else than files beside it; lists all
            problems.
    """
    index = read_json(path, MAX_INDEX_BYTES)
    places: Any = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(
            f"{path}: has no weight_map, expected an object of array names and their files: it is "
            f"no index of shards, get it from its source again"
        )
    try:
        check_count(len(places))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    shards = dict.fromkeys(map(str, places.values()))
    problems = [_fault(shard) for shard in shards if not _is_beside(shard)]
    problems += [
        f"{shown(name)} is in no file, but in a {type(shard).__name__}"
        for name, shard in places.items()
        if not isinstance(shard, str)
    ]
    if len(shards) > MAX_SHARDS:
        problems.append(f"there are {counted(len(shards), 'shard')}, expected at most {MAX_SHARDS}")
    if problems:
        raise CheckpointError(
            f"{path}: {some(problems, MAX_TOLD, '; ')}; expected names of files in the same "
            f"folder: the index was tampered with or damaged, get it from its source again"
        )
    return places


def read_sharded(
    path: str | os.PathLike[str],
    read: Callable[[Path], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Reads all arrays of the shards that an index names.

    Args:
        path: the index.
        read: reads one shard, to views of its mapped file.

    Returns:
        Arrays by PyTorch's names, in the order of the index.

    Raises:
        FileNotFoundError: there is no index.
        CheckpointError: shards are missing or can't be read; arrays are missing (-), in a shard
            that the index doesn't say (+), in another one or in two (!); lists all problems.
    """
    path = Path(path)
    places = read_index(path)
    problems: list[str] = []
    found: dict[str, dict[str, np.ndarray]] = {}
    for shard in dict.fromkeys(places.values()):
        try:
            found[shard] = read(path.parent / shard)
        except FileNotFoundError:
            problems.append(f"- {shown(shard)}: the file is missing")
        except CheckpointError as error:
            problems.append(f"! {error}")
    # A Flax index has Flax's names.
    expected = {
        pytorch_name(tuple(name.split("/"))) if shard.endswith(".msgpack") else name: shard
        for name, shard in places.items()
    }
    if len(expected) != len(places):
        problems.append("! two names of the index mean the same array")
    try:
        expected = without_prefix(expected)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    problems += _misplaced(expected, found)
    if problems:
        lines = some(problems, MAX_TOLD, "\n")
        raise CheckpointError(
            f"{path}: the shards don't fit their index; download or copy them all again:\n{lines}"
        )
    return {name: found[shard][name] for name, shard in expected.items()}


def _misplaced(expected: dict[str, str], found: dict[str, dict[str, np.ndarray]]) -> Iterable[str]:
    holders: dict[str, list[str]] = defaultdict(list)
    for shard, arrays in found.items():
        for name in arrays:
            holders[name].append(shard)
    for name, shards in holders.items():
        told = " and ".join(map(shown, shards))
        if name not in expected:
            yield f"+ {shown(name)}: in {told}, but not in the index"
        elif len(shards) > 1:
            yield f"! {shown(name)}: in {told}, expected once"
        elif shards != [expected[name]] and expected[name] in found:
            yield f"! {shown(name)}: in {told}, expected in {shown(expected[name])}"
    for name, shard in expected.items():
        if shard in found and name not in holders:
            yield f"- {shown(name)}: missing from {shown(shard)}"


def _is_beside(shard: str) -> bool:
    is_plain = shard not in ("", ".", "..") and shard.isprintable() and len(shard) <= 255
    return is_plain and not any(mark in shard for mark in "/\\:\0")


def _fault(shard: str) -> str:
    return f"{shown(repr(shard))} is not the name of a file in this folder"
