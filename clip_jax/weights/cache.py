"""The cache of named models' weights, which are downloaded once and converted once."""

import importlib.resources
import warnings
from pathlib import Path

import numpy as np

from clip_jax.catalog import lookup
from clip_jax.convert.pytorch import from_pytorch
from clip_jax.convert.reader import read_checkpoint
from clip_jax.weights.download import fetch, has_checksum, made_once
from clip_jax.weights.native_format import save_parameters
from clip_jax.weights.places import Root, cache_root, converted_folder, official_places


def official_file(name: str, download_root: Root = None, progress: bool = True) -> Path:
    """Returns the official file of a model; downloads it unless it is here with its checksum.

    Raises:
        ValueError: there is no model of this name, or it is not an official one.
        DownloadError: it can't be downloaded.
    """
    entry = lookup(name)
    if entry.is_bundled:
        raise ValueError(f"{name!r} is no official model: it comes as a native folder")
    root = cache_root(download_root)
    for path in official_places(entry, root):
        if has_checksum(path, entry.sha256):
            return path
    path = root / entry.file
    fetch(entry.url, entry.sha256, path, progress)
    return path


def native_folder(name: str, download_root: Root = None, progress: bool = True) -> Path:
    """Returns the native folder of a model: bundled, or converted once from its official file.

    The converted arrays are float32. The official file's checksum is verified only before the
    conversion.

    Returns:
        The folder; or, if it can't be written, the official file.

    Raises:
        ValueError: there is no model of this name.
        DownloadError: it can't be downloaded.
        CheckpointError: the official file can't be read.
    """
    entry = lookup(name)
    if entry.is_bundled:
        return Path(str(importlib.resources.files("clip_jax.data"))) / entry.file
    root = cache_root(download_root)
    folder = converted_folder(entry, root)
    if folder.is_dir():
        return folder
    source = official_file(name, download_root, progress)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with made_once(folder):
            if not folder.is_dir():  # another process may have written it meanwhile
                config, params = from_pytorch(read_checkpoint(source))
                save_parameters(config, params, folder, dtype=np.float32)
    except OSError as error:
        warnings.warn(
            f"the converted weights can't be kept, so every load converts them again: {error}",
            stacklevel=3,
        )
        return source
    return folder
