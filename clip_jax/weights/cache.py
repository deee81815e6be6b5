"""The cache of named models' weights, which are downloaded once and converted once."""

import importlib.resources
import os
import warnings
from pathlib import Path

import numpy as np

from clip_jax.catalog import CatalogEntry, lookup
from clip_jax.convert.pytorch import from_pytorch
from clip_jax.convert.reader import read_checkpoint
from clip_jax.errors import DownloadError
from clip_jax.weights.download import fetch, has_checksum, locked
from clip_jax.weights.native_format import VERSION, save_parameters

Root = str | os.PathLike[str] | None


def cache_root(download_root: Root = None) -> Path:
    """Returns the folder of the cache.

    It is `download_root` if given, else `$CLIP_JAX_CACHE`, else `clip_jax` in the user's cache
    folder (`$XDG_CACHE_HOME`, usually `~/.cache`).

    Raises:
        DownloadError: none of these is given, and the user has no home folder.
    """
    given = download_root if download_root is not None else os.environ.get("CLIP_JAX_CACHE")
    folder = _expanded(given or os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if folder is None:
        raise DownloadError(
            f"there is no place to keep weights: {given or 'this user'} has no home folder. Say "
            "which folder to take, with download_root= or the environment variable CLIP_JAX_CACHE"
        )
    return folder if given else folder / "clip_jax"


def _expanded(path: str | os.PathLike[str]) -> Path | None:
    """Expands `~` in a path; returns None if the user has no home folder.

    Under systemd and in some containers HOME is not set and the user id is unknown to the system.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return None


def cached(name: str, download_root: Root = None) -> bool:
    """Whether `load(name)` finds the weights on this machine; checks names, not contents.

    Raises:
        ValueError: there is no model of this name.
    """
    entry = lookup(name)
    if entry.is_bundled:
        return True
    try:
        root = cache_root(download_root)
    except DownloadError:  # no place at all
        return False
    return _native(entry, root).is_dir() or any(path.is_file() for path in _places(entry, root))


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
    for path in _places(entry, root):
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
    folder = _native(entry, root)
    if folder.is_dir():
        return folder
    source = official_file(name, download_root, progress)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(folder):
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


def _native(entry: CatalogEntry, root: Path) -> Path:
    return root / f"{Path(entry.file).stem}-{entry.sha256[:12]}-v{VERSION}"


def _places(entry: CatalogEntry, root: Path) -> tuple[Path, ...]:
    # The second is where the PyTorch reference keeps the same files.
    theirs = _expanded("~/.cache/clip")
    return (root / entry.file, *([theirs / entry.file] if theirs else []))
