"""Writes a model's folder in another library's form, whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clip_jax.convert.safetensors import NAMES, write_safetensors
from clip_jax.errors import CheckpointError
from clip_jax.messages import some
from clip_jax.replace import replacing

# What PyTorch's libraries expect in a file's metadata.
METADATA = {"format": "pt"}


def write_folder(
    folder: str | os.PathLike[str],
    files: Mapping[str, bytes],
    weights: str,
    arrays: Mapping[str, np.ndarray],
    *,
    replace: bool,
) -> None:
    """Writes files and weights to a folder, atomically.

    Args:
        folder: the folder, which is created with its parents.
        files: the content of each small file, by name.
        weights: the name of the safetensors file.
        arrays: its arrays by name.
        replace: whether to replace a folder that holds nothing but such files.

    Raises:
        CheckpointError: an array has a dtype that safetensors lacks.
        FileExistsError: the folder exists, and is not empty or not to be replaced.
        OSError: it can't be written; nothing is left behind.
    """
    bad = [name for name, a in arrays.items() if a.dtype.newbyteorder("=") not in NAMES]
    if bad:
        raise CheckpointError(f"safetensors has no dtype for {some(bad)}: cast these arrays")
    target = Path(os.path.realpath(folder))  # a link stays a link
    _check_replaceable(target, {*files, weights}, replace)
    with replacing(target, replace=replace) as new:
        for name, content in files.items():
            with open(new / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        write_safetensors(new / weights, arrays, None, METADATA)
        _check_replaceable(target, {*files, weights}, replace)  # it may have changed meanwhile


def _check_replaceable(folder: Path, names: set[str], replace: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not os.listdir(folder)):
        return
    if not folder.is_dir() or set(os.listdir(folder)) - names:
        raise FileExistsError(
            f"{folder} exists and holds something else than this kind of model: choose another "
            f"name, or remove it first"
        )
    if not replace:
        raise FileExistsError(f"{folder} exists already: choose another name, or remove it first")
