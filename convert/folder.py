"""Finds the weights of a folder that another library has written."""

import errno
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np

from clip_jax.convert.archive import shown
from clip_jax.convert.reader import read_checkpoint
from clip_jax.convert.sharded import HALF_INDEX, INDEX, is_index, read_index
from clip_jax.errors import CheckpointError
from clip_jax.messages import some

Family = Literal["huggingface", "open_clip"]

# The names of files of weights, in the order in which each library looks for them.
WEIGHTS: dict[Family, tuple[str, ...]] = {
    "huggingface": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "flax_model.msgpack",
        "flax_model.msgpack.index.json",
    ),
    "open_clip": (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
        "open_clip_pytorch_model.pth",
        "model.safetensors",
        "pytorch_model.bin",
        "pytorch_model.pth",
        "model.pth",
    ),
}
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".msgpack")
_RENAMED = (".safetensors", ".bin", ".pth", ".msgpack")
_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}(?:\.fp16)?\.(safetensors|bin|msgpack)$")
# What the names of a float16 variant have more, as diffusers writes them.
_HALF = re.compile(r"\.fp16(?=[.-])")


def weights_among(names: Collection[str], family: Family) -> str | None:
    """Returns the name of a folder's file of weights, or of their index; None if it has neither.

    Args:
        names: the names of the folder's files.
        family: the library that wrote the folder.
    """
    found = next((name for name in WEIGHTS[family] if name in names), None)
    return found or _half(names, family)


def lacking(names: Collection[str], family: Family) -> str:
    """Says of a folder without weights what was looked for, what is there, and what to do."""
    shard = next((name for name in sorted(names) if _SHARD.search(name)), None)
    if shard is not None:
        index = _whole(_SHARD.sub(r".\1", shard)) + (HALF_INDEX if _HALF.search(shard) else INDEX)
        return (
            f"has shards, such as {shown(shard)}, but not their index, expected {shown(index)}, "
            f"which says what is in which: download or copy it too"
        )
    others = sorted(name for name in names if name.endswith(_SUFFIXES))
    remedy = "download or copy the weights too"
    if others:
        remedy += f", or rename the ones that are meant ({some(others, 3)})"
        suffix = next((end for end in _RENAMED if others[0].endswith(end)), None)
        name = next((n for n in WEIGHTS[family] if suffix and n.endswith(suffix)), None)
        remedy += f" to {name}" if name else ""
    return (
        f"has no weights, expected one of {', '.join(WEIGHTS[family])}; it has "
        f"{some(sorted(names)) or 'no files'}: {remedy}"
    )


def weights_file(folder: str | os.PathLike[str], family: Family) -> Path:
    """Returns the path of a folder's weights, or of the index of their shards.

    Args:
        folder: the folder.
        family: the library that wrote it.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: it has no weights; says which names were looked for, and what is there.
    """
    folder = Path(folder)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder)) from None
    except OSError as error:
        raise CheckpointError(
            f"{folder}: can't be listed ({error.strerror or error}), expected a readable folder"
        ) from None
    if found := weights_among(names, family):
        return folder / found
    raise CheckpointError(f"{folder}: {lacking(names, family)}")


def shards_of(path: str | os.PathLike[str]) -> list[Path]:
    """Returns the files that hold the arrays: the shards of an index, else the path itself.

    Raises:
        FileNotFoundError: there is no such index.
        CheckpointError: it is no valid index.
    """
    path = Path(path)
    if not is_index(path.name):
        return [path]
    return [path.parent / shard for shard in dict.fromkeys(read_index(path).values())]


def read_folder(folder: str | os.PathLike[str], family: Family) -> dict[str, np.ndarray]:
    """Reads every array of a folder by its PyTorch name, from one file or from shards.

    Arrays are read-only views of memory-mapped files: what isn't used isn't read.

    Args:
        folder: the folder, such as a repository of the Hugging Face Hub.
        family: the library that wrote it: each has its own names for files.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: it has no weights, or they can't be read; lists all problems.
        OSError: there are too many open files.
        MemoryError: there is not enough memory.
    """
    return read_checkpoint(weights_file(folder, family))


def _half(names: Collection[str], family: Family) -> str | None:
    """Returns the float16 variant of the weights, as diffusers names it, if nothing else is there.

    Where there is another precision too, nobody has said which is meant.
    """
    weights = [name for name in names if name.endswith(_SUFFIXES) or is_index(name)]
    if any(_whole(name) == name for name in weights):
        return None
    halves = {_whole(name): name for name in weights}
    return next((halves[name] for name in WEIGHTS[family] if name in halves), None)


def _whole(name: str) -> str:
    """Returns a file's name without the part that says it is the float16 variant."""
    return _HALF.sub("", name)
