"""`load`: returns a model and its preprocessing, given a name or a path."""

import os
from typing import get_args

import jax.numpy as jnp
from jax.typing import DTypeLike

from clip_jax.config import Activation, PixelConfig
from clip_jax.errors import CheckpointError
from clip_jax.nn import CLIP, from_parameters
from clip_jax.preprocess import Preprocess
from clip_jax.preprocess_huggingface import HuggingFacePreprocess
from clip_jax.weights.finding import Found, find
from clip_jax.weights.memory import on_device
from clip_jax.weights.reading import read_found
from clip_jax.weights.tokenizers import Preprocessing


def load(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    precision: str = "highest",
    download_root: str | os.PathLike[str] | None = None,
    activation: Activation | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    preprocessing: Preprocessing = "openai",
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
        name_or_path: one of `available_models()`; a native, Hugging Face or OpenCLIP folder; a
            `.pt` or `.safetensors` file with the official layout; a repository of the Hugging Face
            Hub, "owner/name"; or OpenCLIP's architecture and tag, such as "ViT-H-14/dfn5b". A
            native folder is memory-mapped: while a model of it is in use, replace it as a whole (as
            `clip_jax.save` does), don't write into its files.
        dtype: dtype in which the towers compute; parameters are float32 in any case.
        precision: precision of matrix products, for `jax.default_matmul_precision`. "highest"
            is true float32 everywhere.
        download_root: the folder for downloaded weights.
        activation: the activation of the transformers, for a `.pt` or `.safetensors` file, which
            doesn't contain it; "quick_gelu" by default.
        revision: the branch, tag or commit of a repository; "main" by default.
        subfolder: the folder in a repository or folder that holds the model.
        preprocessing: "openai" for pixels as the weights were trained with; "huggingface" for those
            of transformers' PIL image processor, for a folder of it.

    Returns:
        The model, and a callable from PIL image to float32 array.

    Raises:
        ValueError: there is no model of that name and nothing at that path, or no such activation.
        CheckpointError: the weights can't be read or don't fit a CLIP model; lists all problems.
        DownloadError: they can't be downloaded; the message says how to put them there by hand.
    """
    found = find(name_or_path, download_root=download_root, revision=revision, subfolder=subfolder)
    if activation is not None and (found.is_named or found.path.is_dir()):
        raise ValueError(
            f"activation is only for .pt and .safetensors files; {os.fspath(name_or_path)!r} "
            f"knows its own. Got {activation!r}."
        )
    check_preprocessing(preprocessing)
    try:
        family, config, params = read_found(found, activation)
    except CheckpointError as error:
        if found.advice is None:
            raise
        raise CheckpointError(f"{error}. Of {name_or_path}: {found.advice}") from None
    params = on_device(params, adopt=family == "native")
    model = from_parameters(config, params, dtype=dtype, precision=precision)
    size, pixels = config.vision.image_size, config.pixels
    return model, preprocess_of(name_or_path, found, family, size, pixels, preprocessing)


def check_preprocessing(preprocessing: str) -> None:
    """Raises ValueError if there is no such way to make pixels and ids."""
    if preprocessing not in get_args(Preprocessing):
        raise ValueError(f'preprocessing must be "openai" or "huggingface". Got {preprocessing!r}.')


def preprocess_of(
    name_or_path: str | os.PathLike[str],
    found: Found,
    family: str | None,
    image_size: int,
    pixels: PixelConfig,
    preprocessing: Preprocessing,
) -> Preprocess:
    """Returns the preprocessing of a model's images, by OpenAI's rules or by transformers'.

    Raises:
        ValueError: transformers' are asked for, and the model is none of its folders.
    """
    if preprocessing == "huggingface":
        if family != "huggingface":
            raise ValueError(
                f'preprocessing="huggingface" is for folders of Hugging Face\'s transformers, '
                f"which say it; {os.fspath(name_or_path)!r} is none."
            )
        return HuggingFacePreprocess.from_folder(found.path, image_size)
    return Preprocess(image_size, pixels)
