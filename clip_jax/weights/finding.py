"""Finds what a name or a path given to `load` stands for, and fetches it where necessary."""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.catalog import CATALOG, nearest, suggestion
from clip_jax.convert.families import OPEN_CLIP_CONFIG
from clip_jax.convert.npz import is_npz
from clip_jax.errors import DownloadError
from clip_jax.messages import some
from clip_jax.open_clip_catalog import PretrainedTag, lookup_tag
from clip_jax.storage import is_remote
from clip_jax.weights.cache import native_folder
from clip_jax.weights.hub import is_cached, is_repository_name, remedy, repository_folder

_SCHEMES = ("hf-hub", "local-dir")  # what OpenCLIP's names of models may begin with


@dataclasses.dataclass(frozen=True)
class Found:
    """Where a model is.

    Attributes:
        path: its folder or file.
        document: OpenCLIP's configuration of it, if it is known by name and the folder has none.
        advice: what to do if it can't be read; None for paths that the user has given.
        is_named: whether a name was given, whose weights say all that is needed.
        address: where a file is that is read from where it lies, such as gs://.
    """

    path: Path
    document: Mapping[str, Any] | None = None
    advice: str | None = None
    is_named: bool = False
    address: str | None = None


def find(
    name_or_path: str | os.PathLike[str],
    *,
    download_root: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
) -> Found:
    """Returns the place of a model, after a download if it isn't on this machine.

    A file or folder that exists wins over a repository of the same name.

    Args:
        name_or_path: as for `load`.
        download_root: as for `load`; for official names.
        revision: of a repository: a branch, tag or commit.
        subfolder: the folder in a repository, or in the folder given.

    Raises:
        ValueError: there is no model of that name and nothing at that path, or `revision` or
            `subfolder` is given for what has none.
        DownloadError: it can't be downloaded; the message says how to put it there by hand.
    """
    name = without_scheme(os.fspath(name_or_path))
    of_repository = {"revision": revision, "subfolder": subfolder}
    if isinstance(name_or_path, str) and name in CATALOG:
        _check_absent(name, **of_repository)
        advice = (
            "install clip-jax-flax again"
            if CATALOG[name].is_bundled
            else "it is a converted copy: remove {path}, and load {name} again"
        )
        path = native_folder(name, download_root)
        return Found(path, advice=advice.format(path=path, name=name), is_named=True)
    if is_remote(name) and is_npz(name):
        _check_absent(name, **of_repository)
        return Found(Path(name), address=name)
    if os.path.exists(name):  # Path.exists() raises for a text too long to be a path
        if is_repository_name(name) and is_cached(name):
            warnings.warn(
                f"{name} is a folder here and a repository in the Hub's cache: the folder is taken",
                stacklevel=3,
            )
        _check_absent(name, revision=revision)
        path = Path(name, subfolder or "")
        if not path.exists():
            raise ValueError(no_subfolder(name, subfolder or ""))
        return Found(path)
    if isinstance(name_or_path, str) and (tag := _tag(name)):
        _check_absent(name, **of_repository)
        return _of_tag(tag)
    if isinstance(name_or_path, str) and (own := _spelled(name)) is not None:
        raise ValueError(f"{name!r} is no model's name: did you mean {own!r}?")
    if isinstance(name_or_path, str) and is_repository_name(name):
        try:
            path = repository_folder(name, revision=revision, subfolder=subfolder)
        except DownloadError as error:
            if near := nearest(name):
                raise DownloadError(
                    f"{name}: did you mean {near!r}? As a repository, {error}"
                ) from None
            raise
        return Found(path, advice=remedy(name), is_named=True)
    check_no_name(name_or_path)
    raise ValueError(
        f"{name!r} is neither the name of a model nor a file or folder that exists: "
        f"{suggestion(name)}; the Hugging Face Hub's repositories by owner/name, OpenCLIP's "
        f"weights by architecture/tag (`clip-jax models --all`)"
    )


def check_no_name(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for the path of nothing, if it is spelled as the name of a model."""
    if not isinstance(path, str) and os.fspath(path) in CATALOG:
        raise ValueError(
            f"there is no file or folder {os.fspath(path)!r}: the model of this name is given as "
            "a string, not as a path."
        )


def without_scheme(name: str) -> str:
    """Drops OpenCLIP's `hf-hub:` or `local-dir:` from a name, unless a file is called so.

    Raises:
        ValueError: there is no such local folder.
    """
    scheme, _, rest = name.partition(":")
    if not rest or scheme not in _SCHEMES or os.path.exists(name):
        return name
    if scheme == "local-dir" and not os.path.exists(rest):
        raise ValueError(f"{name}: there is no folder {rest}, check the path.")
    return rest


def no_subfolder(name: str, subfolder: str) -> str:
    """Says that a folder hasn't one of this name, and which it has."""
    folders = []
    with contextlib.suppress(OSError):
        folders = sorted(entry.name for entry in os.scandir(name) if entry.is_dir())
    there = f"expected one of {some(folders)}" if folders else "nor any other: leave subfolder= out"
    return f"{name} has no folder {subfolder!r}, {there}."


def _spelled(name: str) -> str | None:
    """Returns the official name that this one is, but for the case of its letters."""
    return next((known for known in CATALOG if known.casefold() == name.casefold()), None)


def _tag(name: str) -> PretrainedTag | None:
    return lookup_tag(name) if "/" in name else None


def _of_tag(tag: PretrainedTag) -> Found:
    if tag.repository is None:
        raise DownloadError(
            f"{tag.name} is in no repository of the Hugging Face Hub: download {tag.url} and "
            f"convert it with `clip-jax convert FILE FOLDER --model {tag.name}`"
        )
    try:
        path = repository_folder(tag.repository)
    except DownloadError:  # some have no configuration, which is known
        path = repository_folder(tag.repository, what="weights")
    known = (path / OPEN_CLIP_CONFIG).exists()
    document = None if known else tag.open_clip_config()
    return Found(path, document, remedy(tag.repository), is_named=True)


def _check_absent(name: str, **options: str | None) -> None:
    for option, value in options.items():
        if value is not None:
            raise ValueError(
                f"{option} is for repositories of the Hugging Face Hub, owner/name. Got {value!r} "
                f"for {name!r}."
            )
