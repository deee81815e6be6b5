"""`config_of`: a model's configuration, without its weights."""

import json
import os
from pathlib import Path

from clip_jax.catalog import CATALOG, suggestion
from clip_jax.config import CLIPConfig
from clip_jax.convert.families import CONFIG, OPEN_CLIP_CONFIG, family_of
from clip_jax.convert.huggingface import folder_config
from clip_jax.convert.json_file import read_json
from clip_jax.convert.open_clip_config import from_document as of_open_clip
from clip_jax.errors import CheckpointError
from clip_jax.open_clip_architectures import architectures
from clip_jax.open_clip_catalog import lookup_tag
from clip_jax.weights.finding import check_no_name, without_scheme
from clip_jax.weights.hub import is_cached, is_repository_name, repository_folder
from clip_jax.weights.tokenizers import with_tokenizer_of


def config_of(name_or_path: str | os.PathLike[str]) -> CLIPConfig:
    """Returns the configuration of a model; nothing is downloaded, and no weights are read.

    Args:
        name_or_path: one of `available_models()`; OpenCLIP's name of an architecture, such as
            `ViT-H-14`, or of weights, such as `ViT-H-14/dfn5b`; a folder that `load` takes; or a
            repository of the Hugging Face Hub that is in its cache.

    Raises:
        ValueError: there is no such model, or it is a file, which says its configuration only
            together with its weights; the message suggests the nearest name.
        CheckpointError: a folder holds no configuration, or none that is supported.

    Example:
        >>> config_of("ViT-L/14").vision.image_size
        224
        >>> config_of("ViT-H-14").embed_dim
        1024
    """
    if isinstance(name_or_path, str) and name_or_path in CATALOG:
        return CATALOG[name_or_path].config
    name = without_scheme(os.fspath(name_or_path))
    if os.path.isdir(name):
        return _of_folder(Path(name))
    if os.path.exists(name):
        raise ValueError(
            f"{name} is a file, which says its configuration together with its weights: take "
            f"clip_jax.load({name!r})[0].config"
        )
    check_no_name(name_or_path)
    if name in architectures():
        return of_open_clip({"model_cfg": architectures()[name]})
    if "/" in name and (tag := lookup_tag(name)):
        return of_open_clip(tag.open_clip_config())
    is_repository = is_repository_name(name)
    if is_repository and is_cached(name):
        return _of_folder(repository_folder(name, offline=True))
    others = "; OpenCLIP's: `clip-jax models --all`"
    if is_repository:
        others += f". As a repository it isn't in the Hub's cache: clip_jax.load({name!r}) gets it"
    raise ValueError(f"unknown model {name!r}: {suggestion(name)}{others}")


def _of_folder(folder: Path) -> CLIPConfig:
    family = family_of(folder)
    if family == "huggingface":
        return with_tokenizer_of(folder, folder_config(folder))
    path = folder / (OPEN_CLIP_CONFIG if family == "open_clip" else CONFIG)
    try:
        document = read_json(path)
        return (
            of_open_clip(document)
            if family == "open_clip"
            else CLIPConfig.from_json(json.dumps(document))
        )
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a model: it has no {CONFIG}") from None
    except (CheckpointError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise CheckpointError(f"{path}: {reason}") from None
