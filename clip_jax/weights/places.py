"""The places of a named model's weights on this machine."""

import os
from pathlib import Path

from clip_jax.catalog import CatalogEntry, lookup
from clip_jax.errors import DownloadError

Root = str | os.PathLike[str] | None

# The version of the native format, which is part of the names of converted folders.
VERSION = "1"


def cache_root(download_root: Root = None) -> Path:
    """Returns the folder of the cache.

    It is `download_root` if given, else `$CLIP_JAX_CACHE`, else `clip_jax` in the user's cache
    folder (`$XDG_CACHE_HOME`, usually `~/.cache`).

    Raises:
        DownloadError: none of these is given, and the user has no home folder.
    """
    given = download_root if download_root is not None else os.environ.get("CLIP_JAX_CACHE")
    folder = expanded(given or os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if folder is None:
        raise DownloadError(
            f"there is no place to keep weights: {given or 'this user'} has no home folder. Say "
            "which folder to take, with download_root= or the environment variable CLIP_JAX_CACHE"
        )
    return folder if given else folder / "clip_jax"


def expanded(path: str | os.PathLike[str]) -> Path | None:
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
    return converted_folder(entry, root).is_dir() or any(
        path.is_file() for path in official_places(entry, root)
    )


def converted_folder(entry: CatalogEntry, root: Path) -> Path:
    """Returns the native folder that an official file is converted to."""
    return root / f"{Path(entry.file).stem}-{entry.sha256[:12]}-v{VERSION}"


def official_places(entry: CatalogEntry, root: Path) -> tuple[Path, ...]:
    """Returns the paths of an official file: in our cache, and in the PyTorch reference's."""
    theirs = expanded("~/.cache/clip")
    return (root / entry.file, *([theirs / entry.file] if theirs else []))
