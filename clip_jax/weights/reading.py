"""Reads a model of any kind that is known, from a folder or a file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.config import Activation, CLIPConfig, NumHeads
from clip_jax.convert.agreement import check_agreement
from clip_jax.convert.big_vision import from_big_vision
from clip_jax.convert.checks import named
from clip_jax.convert.families import Family, family_of
from clip_jax.convert.folder import read_folder
from clip_jax.convert.huggingface import from_huggingface
from clip_jax.convert.npz import is_npz
from clip_jax.convert.open_clip import OpenCLIPs, from_arrays, from_open_clip
from clip_jax.errors import CheckpointError
from clip_jax.weights.bare_file import read_bare_file
from clip_jax.weights.finding import Found
from clip_jax.weights.native_format import read_native
from clip_jax.weights.tokenizers import with_tokenizer_of


def read_found(
    found: Found,
    activation: Activation | OpenCLIPs | None = None,
    num_heads: NumHeads | None = None,
) -> tuple[Family | None, CLIPConfig, dict[str, Any]]:
    """Reads what `find` has found; as `read_model`."""
    if found.document is None:
        path = found.address or found.path
        return read_model(path, activation=activation, num_heads=num_heads)
    try:
        arrays = read_folder(found.path, "open_clip")
        own = "open_clip" if activation == "open_clip" else None
        return "open_clip", *from_arrays(arrays, found.document, own)
    except CheckpointError as error:
        raise named(found.path, error) from None


def read_model(
    path: str | os.PathLike[str],
    *,
    model: str | Mapping[str, Any] | None = None,
    activation: Activation | OpenCLIPs | None = None,
    num_heads: NumHeads | None = None,
) -> tuple[Family | None, CLIPConfig, dict[str, Any]]:
    """Reads a model's configuration and parameter tree.

    Args:
        path: a native, OpenCLIP or Hugging Face folder, a file of weights with OpenAI's layout, or
            an `.npz` file of big_vision's, also by its address.
        model: for a file of OpenCLIP's: which model it holds, as for `from_open_clip`.
        activation: for a file: the activation that it was trained with, unless it is one of
            OpenAI's own files or a configuration lies beside it. "open_clip" for a folder of
            OpenCLIP's, as for `from_open_clip`.
        num_heads: likewise the attention heads: the vision tower's, if the text tower's are 64
            wide, or those of the vision and the text tower.

    Returns:
        Whose folder it is, None for a file; the configuration; and the tree.

    Raises:
        CheckpointError: it can't be read, isn't supported or doesn't fit; lists all problems.
        ValueError: `model`, `activation` or `num_heads` is unknown, or not for this path.
    """
    if is_npz(path):
        if model is not None or activation is not None:
            raise ValueError(f"{path} knows its own model and activation.")
        return "big_vision", *from_big_vision(path)
    path = Path(path)
    if path.is_dir():
        told = None if activation == "open_clip" else activation
        options = {"model": model, "activation": told, "num_heads": num_heads}
        if given := [name for name, value in options.items() if value is not None]:
            raise ValueError(
                f"{given[0]} is only for files of weights; the folder {path} knows its own."
            )
        family = family_of(path)
        if activation is not None and family != "open_clip":
            raise ValueError(f'activation="open_clip" is for folders of OpenCLIP, {path} is none.')
        if family == "open_clip":
            config, params = from_open_clip(path, activation=activation)
        else:
            config, params = (read_native if family == "native" else from_huggingface)(path)
        if family == "open_clip":
            check_agreement(path, config)
        if family == "huggingface":
            config = with_tokenizer_of(path, config)
        return family, config, params
    if model is not None:
        if num_heads is not None:
            raise ValueError(f"num_heads is for a file without model; {model!r} says its own.")
        return None, *from_open_clip(path, model=model, activation=activation)
    if activation == "open_clip":
        raise ValueError(f'activation="open_clip" is for folders of OpenCLIP, {path} is a file.')
    return None, *read_bare_file(path, activation, num_heads)
