"""Finds the folder that `from_pretrained` reads."""

import os
from pathlib import Path

from clip_jax.convert.families import CONFIG, SIGLIP, family_of
from clip_jax.convert.huggingface import read_config
from clip_jax.errors import CheckpointError
from clip_jax.messages import some
from clip_jax.weights.finding import find
from clip_jax.weights.hub import is_repository_name, repository_folder

# The arguments of `from_pretrained` that say where.
PLACES = ("subfolder", "revision", "cache_dir", "local_files_only")


def find_folder(
    name_or_path: str | os.PathLike[str],
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Returns a folder of Hugging Face's transformers, after a download if it is a repository's.

    Args:
        name_or_path: a folder, which wins, or a repository of the Hub, "owner/name".
        subfolder: the folder in it, such as "text_encoder".
        revision: the branch, tag or commit of a repository.
        cache_dir: the folder of the Hub's cache.
        local_files_only: whether to take what is in the cache and ask nobody.

    Raises:
        ValueError: there is no such folder, and it is no repository's name.
        CheckpointError: it is no folder of transformers, or holds another kind of model.
        DownloadError: it can't be downloaded; the message says what to do.
    """
    name, inner = os.fspath(name_or_path), subfolder or None
    if not os.path.exists(name) and is_repository_name(name):
        folder = repository_folder(
            name,
            revision=revision,
            subfolder=inner,
            cache_dir=cache_dir,
            offline=local_files_only,
        )
    else:
        folder = find(name_or_path, subfolder=inner).path  # a folder here has no revisions
    family = family_of(folder) if folder.is_dir() else None
    if family != "huggingface":
        remedy = f"make one with `clip-jax convert {folder} FOLDER --to huggingface`"
        if family == "native" and not (folder / CONFIG).exists():
            remedy = f"it has {some(sorted(os.listdir(folder))) or 'no files'}, so check the path"
        raise CheckpointError(
            f"{folder} is no folder of Hugging Face's transformers (config.json with a model_type, "
            f"and weights), which these classes read: {remedy}"
        )
    if (kind := read_config(folder)["model_type"]).startswith(SIGLIP):
        raise CheckpointError(
            f"{folder} holds a model of the type {kind}, which Flax's CLIP classes never read, "
            f"expected a CLIP model or tower: take clip_jax.load for it"
        )
    return folder
