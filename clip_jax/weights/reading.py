"""Reads a model of any kind that is known, from a folder or a file."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.config import Activation, CLIPConfig, ViTConfig
from clip_jax.convert.agreement import check_agreement
from clip_jax.convert.checks import named
from clip_jax.convert.families import OPEN_CLIP_WEIGHTS, Family, family_of
from clip_jax.convert.folder import read_folder
from clip_jax.convert.huggingface import from_huggingface
from clip_jax.convert.open_clip import from_arrays, from_open_clip
from clip_jax.convert.pytorch import from_pytorch
from clip_jax.convert.reader import is_training_checkpoint, read_checkpoint
from clip_jax.errors import CheckpointError
from clip_jax.weights.finding import Found
from clip_jax.weights.native_format import WEIGHTS, read_native
from clip_jax.weights.tokenizers import with_tokenizer_of

# Widths of OpenCLIP's Vision Transformers whose heads are not 64 wide: there are 16 of them.
_WIDE = (1280, 1408, 1664, 1792)


def read_found(
    found: Found, activation: Activation | None = None
) -> tuple[Family | None, CLIPConfig, dict[str, Any]]:
    """Reads what `find` has found; as `read_model`."""
    if found.document is None:
        return read_model(found.path, activation=activation)
    try:
        arrays = read_folder(found.path, "open_clip")
        return "open_clip", *from_arrays(arrays, found.document)
    except CheckpointError as error:
        raise named(found.path, error) from None


def read_model(
    path: str | os.PathLike[str],
    *,
    model: str | Mapping[str, Any] | None = None,
    activation: Activation | None = None,
) -> tuple[Family | None, CLIPConfig, dict[str, Any]]:
    """Reads a model's configuration and parameter tree.

    Args:
        path: a native, OpenCLIP or Hugging Face folder, or a file of weights with OpenAI's layout.
        model: for a file of OpenCLIP's: which model it holds, as for `from_open_clip`.
        activation: for a file: the activation that it was trained with; "quick_gelu" by default,
            unless `model` is given.

    Warns of a file that looks like OpenCLIP's, whose activation or heads are then only assumed.

    Returns:
        Whose folder it is, None for a file; the configuration; and the tree.

    Raises:
        CheckpointError: it can't be read, isn't supported or doesn't fit; lists all problems.
        ValueError: `model` or `activation` is unknown, or not for this path.
    """
    path = Path(path)
    if path.is_dir():
        if model is not None or activation is not None:
            raise ValueError(
                f"{'activation' if model is None else 'model'} is only for files of weights; the "
                f"folder {path} knows its own."
            )
        family = family_of(path)
        read = {
            "native": read_native,
            "open_clip": from_open_clip,
            "huggingface": from_huggingface,
        }[family]
        config, params = read(path)
        if family == "open_clip":
            check_agreement(path, config)
        if family == "huggingface":
            config = with_tokenizer_of(path, config)
        return family, config, params
    if model is not None:
        return None, *from_open_clip(path, model=model, activation=activation)
    arrays = read_checkpoint(path)
    if any("/" in name for name in arrays):
        raise CheckpointError(
            f"{path} has clip_jax's own names for its arrays: give the folder that holds it, "
            f"together with its config.json, instead of {WEIGHTS} alone"
        )
    try:
        config, params = from_pytorch(arrays, activation or "quick_gelu")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    _warn_of_assumptions(path, config, activation)
    return None, config, params


def _warn_of_assumptions(path: Path, config: CLIPConfig, activation: Activation | None) -> None:
    """Warns if a file looks like OpenCLIP's, of which OpenAI's numbers needn't be true."""
    is_wide = isinstance(config.vision, ViTConfig) and config.vision.width in _WIDE
    is_theirs = OPEN_CLIP_WEIGHTS.match(path.name) is not None
    if not is_wide and (activation or not (is_theirs or is_training_checkpoint(path))):
        return
    gelu = "" if activation else "the activation quick_gelu and "
    other = "another activation with activation=, and " if not activation else ""
    warnings.warn(
        f"{path} doesn't say all of its model; {gelu}attention heads of 64 are assumed, as in "
        f"OpenAI's models. If it is OpenCLIP's, say {other}another width of heads by its "
        f"architecture: `clip-jax convert FILE DST --model NAME --activation A`, then load DST",
        stacklevel=4,
    )
