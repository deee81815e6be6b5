"""`load_text_model` and `load_vision_model`: one tower of a model, without reading the other."""

import dataclasses
import os
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from clip_jax.config import Activation, CLIPConfig, NumHeads, ViTConfig
from clip_jax.convert.families import family_of
from clip_jax.convert.huggingface_towers import read_text_tower, read_vision_tower
from clip_jax.convert.npz import is_npz
from clip_jax.convert.single_file import read_single_file
from clip_jax.errors import CheckpointError
from clip_jax.image_size import ImageSize
from clip_jax.model_tokenizer import Tokenizer
from clip_jax.nn import set_parameters
from clip_jax.preprocess import Preprocess
from clip_jax.sentence_piece import AnyTokenizer
from clip_jax.towers import TextModel, VisionModel
from clip_jax.weights.finding import Found, find
from clip_jax.weights.loader import (
    Resizing,
    check_for_files,
    check_preprocessing,
    preprocess_of,
)
from clip_jax.weights.memory import on_device
from clip_jax.weights.positions import PositionResize
from clip_jax.weights.reading import read_found
from clip_jax.weights.tokenizers import Preprocessing, load_tokenizer, tokenizer_of


def load_text_model(
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
) -> tuple[TextModel, AnyTokenizer]:
    """Loads the text tower of a model, and its tokenizer.

    Args:
        name_or_path: what `clip_jax.load` takes; a folder or repository of a text tower alone, such
            as those of diffusion pipelines; or a single file of Stable Diffusion 1, 2 or XL.
        dtype: dtype in which the tower computes; parameters are float32 in any case.
        precision: precision of matrix products, as for `load`.
        download_root: as for `load`.
        activation: of a bare file, as for `load`, or of a text tower in a single file of Stable
            Diffusion; known for those of Stable Diffusion 1, 2 and XL.
        num_heads: the attention heads of such a file, likewise.
        revision: of a repository, as for `load`.
        subfolder: of a repository or folder, such as "text_encoder"; or the same name of a text
            tower in a single file that has two. Diffusion pipelines have the
            tokenizer elsewhere: take `load_tokenizer(..., subfolder="tokenizer")` for its padding.
        preprocessing: how texts are cleaned, as for `load_tokenizer`.

    Raises:
        ValueError: there is no model of that name and nothing at that path, or `activation` or
            `num_heads` is given for what says its own.
        CheckpointError: it can't be read, holds another kind of encoder, or doesn't fit.
        DownloadError: it can't be downloaded; the message says how to put it there by hand.
    """
    check_preprocessing(preprocessing)
    told = {"activation": activation, "num_heads": _text_heads(num_heads)}
    is_file = os.path.isfile(name_or_path) and not is_npz(name_or_path)
    if is_file and (single := read_single_file(name_or_path, subfolder, **told)):
        config, embed_dim, pad_id, tree = single
        model = TextModel(config, embed_dim, dtype=dtype, precision=precision)
        set_parameters(model, on_device(tree, adopt=False))
        return model, Tokenizer(config.context_length, preprocessing, pad_id=pad_id)
    found = find(name_or_path, download_root=download_root, revision=revision, subfolder=subfolder)
    check_for_files(name_or_path, found, activation=activation, num_heads=num_heads)
    if _is_huggingface(found):
        config, embed_dim, tree = read_text_tower(found.path)
        family = "huggingface"
    else:
        family, whole, params = _whole(found, activation, num_heads)
        config = dataclasses.replace(whole.text, activation=whole.text_activation)
        embed_dim = whole.embed_dim
        others = ("visual", "logit_scale", "logit_bias")
        tree = {name: part for name, part in params.items() if name not in others}
    model = TextModel(config, embed_dim, dtype=dtype, precision=precision)
    set_parameters(model, on_device(tree, adopt=family == "native"))
    source = found.path if found.path.is_dir() and not found.document else name_or_path
    if family == "big_vision":
        return model, tokenizer_of(config, preprocessing)
    if not found.path.is_dir():  # a file of OpenAI's layout, which says nothing of its tokenizer
        return model, Tokenizer(config.context_length, preprocessing)
    return model, load_tokenizer(source, preprocessing=preprocessing)


def load_vision_model(
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
    image_size: ImageSize | None = None,
    position_resize: PositionResize | None = None,
    drop_remainder: bool = False,
) -> tuple[VisionModel, Preprocess]:
    """Loads the Vision Transformer of a model, and the preprocessing of its images.

    Args:
        name_or_path: what `clip_jax.load` takes, or a folder or repository of a vision tower alone.
        dtype: dtype in which the tower computes; parameters are float32 in any case.
        precision: precision of matrix products, as for `load`.
        download_root: as for `load`.
        activation: of a bare file, as for `load`.
        num_heads: of a bare file, as for `load`.
        revision: of a repository, as for `load`.
        subfolder: of a repository or folder, such as "image_encoder".
        preprocessing: whose pixels, as for `load`.
        image_size: another size of its images, as for `load`.
        position_resize: how its positions are resized, as for `load`.
        drop_remainder: whether that size may be no multiple of the patches', as for `load`.

    Raises:
        ValueError: there is no model of that name and nothing at that path, its vision tower is
            a ResNet or can't take images of that size, or `preprocessing` is none that it has.
        CheckpointError: it can't be read, holds another kind of encoder, or doesn't fit.
        DownloadError: it can't be downloaded; the message says how to put it there by hand.
    """
    check_preprocessing(preprocessing)
    resizing = Resizing(image_size, position_resize, drop_remainder)
    found = find(name_or_path, download_root=download_root, revision=revision, subfolder=subfolder)
    check_for_files(name_or_path, found, activation=activation, num_heads=num_heads)
    if _is_huggingface(found):
        config, embed_dim, pixels, tree = read_vision_tower(found.path)
        family = "huggingface"
    else:
        family, whole, params = _whole(found, activation, num_heads)
        if not isinstance(whole.vision, ViTConfig):
            raise ValueError(
                f"{os.fspath(name_or_path)!r} has a ResNet, which has no such hidden states: "
                f"take clip_jax.load and encode_image."
            )
        config = dataclasses.replace(whole.vision, activation=whole.vision_activation)
        embed_dim, pixels, tree = whole.embed_dim, whole.pixels, {"visual": params["visual"]}
    vision = resizing.apply(name_or_path, family, config, tree)
    assert isinstance(vision, ViTConfig)
    preprocess = preprocess_of(name_or_path, found, family, config, vision, pixels, preprocessing)
    model = VisionModel(vision, embed_dim, pixels=pixels, dtype=dtype, precision=precision)
    set_parameters(model, on_device(tree, adopt=family == "native"))
    return model, preprocess


def _text_heads(num_heads: NumHeads | None) -> int | None:
    """Returns the heads of a text tower: of two numbers the second is its own."""
    return num_heads[1] if isinstance(num_heads, tuple) else num_heads


def _is_huggingface(found: Found) -> bool:
    return found.path.is_dir() and not found.document and family_of(found.path) == "huggingface"


def _whole(
    found: Found, activation: Activation | None, num_heads: NumHeads | None
) -> tuple[str | None, CLIPConfig, dict[str, Any]]:
    """Reads a model whose arrays are all views, so that those of the other tower cost nothing."""
    try:
        return read_found(found, activation, num_heads)
    except CheckpointError as error:
        advice = f". {found.advice}" if found.advice else ""
        raise CheckpointError(f"{error}{advice}") from None
