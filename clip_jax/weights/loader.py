"""`load`: returns a model and its preprocessing, given a name or a path."""

import os
from typing import get_args

import jax.numpy as jnp
from jax.typing import DTypeLike

from clip_jax.config import Activation, NumHeads, PixelConfig
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
    num_heads: NumHeads | None = None,
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

    Activation and attention heads can't be inferred from a `.pt` or `.safetensors` file. OpenAI's
    own files are known by their checksums; of any other file, `open_clip_config.json` or
    `config.json` beside it says them, or `activation` and `num_heads` do. Images are then
    preprocessed as OpenAI's, unless such a configuration says otherwise.

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
            doesn't contain it.
        num_heads: the attention heads, for such a file: those of the vision tower, if the text
            tower's are 64 wide, as in every published model; or of the vision and the text tower.
        revision: the branch, tag or commit of a repository; "main" by default.
        subfolder: the folder in a repository or folder that holds the model.
        preprocessing: "openai" for pixels as the weights were trained with; "huggingface" for those
            of transformers' PIL image processor, for a folder of it.

    Returns:
        The model, and a callable from PIL image to float32 array.

    Raises:
        ValueError: there is no model of that name and nothing at that path, no such activation, or
            it or `num_heads` is given for a model that says its own.
        CheckpointError: the weights can't be read or don't fit a CLIP model; lists all problems.
        DownloadError: they can't be downloaded; the message says how to put them there by hand.
    """
    found = find(name_or_path, download_root=download_root, revision=revision, subfolder=subfolder)
    check_for_files(name_or_path, found, activation=activation, num_heads=num_heads)
    check_preprocessing(preprocessing)
    try:
        family, config, params = read_found(found, activation, num_heads)
    except CheckpointError as error:
        if found.advice is None:
            raise
        raise CheckpointError(f"{error}. Of {name_or_path}: {found.advice}") from None
    params = on_device(params, adopt=family == "native")
    model = from_parameters(config, params, dtype=dtype, precision=precision)
    size, pixels = config.vision.image_size, config.pixels
    return model, preprocess_of(name_or_path, found, family, size, pixels, preprocessing)


def check_for_files(name_or_path: str | os.PathLike[str], found: Found, **options: object) -> None:
    """Raises ValueError if what only a bare file needs is given for a model that says its own."""
    for option, value in options.items():
        if value is not None and (found.is_named or found.path.is_dir()):
            raise ValueError(
                f"{option} is only for .pt and .safetensors files; {os.fspath(name_or_path)!r} "
                f"knows its own. Got {value!r}."
            )


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
