"""`load`: returns a model and its preprocessing, given a name or a path."""

import os
from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from clip_jax.catalog import CATALOG, suggestion
from clip_jax.config import Activation
from clip_jax.errors import CheckpointError
from clip_jax.nn import CLIP, from_parameters
from clip_jax.preprocess import Preprocess
from clip_jax.weights.cache import native_folder
from clip_jax.weights.memory import on_device
from clip_jax.weights.reading import read_model


def load(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    precision: str = "highest",
    download_root: str | os.PathLike[str] | None = None,
    activation: Activation | None = None,
) -> tuple[CLIP, Preprocess]:
    """Loads a model with its weights, and the preprocessing that its images need.

    The weights of a named model are downloaded once, to `download_root`, else `$CLIP_JAX_CACHE`,
    else `~/.cache/clip_jax`; a file that the PyTorch package keeps in `~/.cache/clip` is used as it
    is. They are also converted once; later loads memory-map the result.

    A folder is recognised by its files: `config.json` in clip_jax's own form, or with a
    `model_type` (Hugging Face's transformers), or `open_clip_config.json` (OpenCLIP).

    The width of attention heads can't be inferred from a `.pt` or `.safetensors` file: it is
    assumed to be 64, as in all of OpenAI's models. For another one, give the folder that says it,
    or name the model to `clip_jax.convert.from_open_clip` or `clip-jax convert --model`.

    Args:
        name_or_path: one of `available_models()`, a native, Hugging Face or OpenCLIP folder, or a
            `.pt` or `.safetensors` file with the official layout. A native folder is memory-mapped:
            while a model of it is in use, replace it as a whole (as `clip_jax.save` does), don't
            write into its files.
        dtype: dtype in which the towers compute; parameters are float32 in any case.
        precision: precision of matrix products, for `jax.default_matmul_precision`. "highest"
            is true float32 everywhere.
        download_root: the folder for downloaded weights.
        activation: the activation of the transformers, for a `.pt` or `.safetensors` file, which
            doesn't contain it; "quick_gelu" by default.

    Returns:
        The model, and a callable from PIL image to float32 array.

    Raises:
        ValueError: there is no model of that name and nothing at that path, or no such activation.
        CheckpointError: the weights can't be read or don't fit a CLIP model; lists all problems.
        DownloadError: they can't be downloaded; the message says how to put them there by hand.
    """
    is_name = isinstance(name_or_path, str) and name_or_path in CATALOG
    path = native_folder(str(name_or_path), download_root) if is_name else Path(name_or_path)
    if not os.path.exists(path):  # Path.exists() raises for a text too long to be a path
        raise ValueError(
            f"{os.fspath(name_or_path)!r} is neither the name of a model nor a file or folder that "
            f"exists: {suggestion(str(name_or_path))}"
        )
    if activation is not None and (is_name or path.is_dir()):
        raise ValueError(
            f"activation is only for .pt and .safetensors files; {os.fspath(name_or_path)!r} "
            f"knows its own. Got {activation!r}."
        )
    try:
        family, config, params = read_model(path, activation=activation)
    except CheckpointError as error:
        if not is_name:
            raise
        remedy = (
            "install clip-jax-flax again"
            if CATALOG[str(name_or_path)].is_bundled
            else (f"it is a converted copy: remove {path}, and load {name_or_path} again")
        )
        raise CheckpointError(f"{error}. Of {name_or_path}: {remedy}") from None
    params = on_device(params, adopt=family == "native")
    model = from_parameters(config, params, dtype=dtype, precision=precision)
    return model, Preprocess(config.vision.image_size)
