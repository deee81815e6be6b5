"""Checks a model's inputs."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Integer, Shaped

from clip_jax.arrays import check_axes, for_layers
from clip_jax.config import CLIP_VOCAB_SIZE, TextConfig
from clip_jax.image_size import ImageSize, sides_of
from clip_jax.messages import some

# No model's normalised pixels come near: white is at 2.8 with CLIP's constants, at 1 with SigLIP's.
NORMALISED = 20
# So many values of a batch are looked at, however large it is.
_SAMPLE = 4096
# What to do about a model with ids behind CLIP's end token of which nothing says what they are.
SAY_THE_END = (
    f'say in the configuration, config.text, pooling="eos" and eos_id={CLIP_VOCAB_SIZE - 1} if '
    f"they were added to CLIP's vocabulary, as by textual inversion, or eos_id=2 to pool at the "
    f"first largest id (dataclasses.replace, then clip_jax.from_parameters)."
)


def as_images(
    images: ArrayLike | Sequence[Any], image_size: ImageSize
) -> Shaped[np.ndarray | Array, "b n m 3"]:
    """Returns images as one array, uint8 or float.

    Args:
        images: an array, or a list of the arrays of single images.
        image_size: the n of (b, n, n, 3), or the height and the width.

    Raises:
        ValueError: the shape or the dtype is wrong; has a hint for PyTorch's order of axes, and for
            images of another size.
    """
    n, m = sides_of(image_size)
    given = images
    images = as_array(images, "images")
    if images.shape == (0,):  # an empty list
        images = np.zeros((0, n, m, 3), np.uint8)
    shape, dtype = images.shape, images.dtype
    if len(shape) != 4 or shape[1:] != (n, m, 3):
        hint = ""
        if len(shape) == 4 and shape[1] == 3:
            hint = " That is NCHW, PyTorch's order: give images.transpose(0, 2, 3, 1)."
        elif _is_picture(given):
            hint = " Make arrays of pictures with the model's preprocess: preprocess([picture])."
        elif len(shape) == 3 and shape[2] == 3:
            hint = " One image needs a batch axis too: give images[None]."
        elif len(shape) == 4 and shape[3] == 3:
            hint = (
                " Make them of the model's size with its preprocess; or load a Vision Transformer "
                "for the other size, clip_jax.load(..., image_size=)."
            )
        raise ValueError(f"images must have shape (batch, {n}, {m}, 3). Got {shape}.{hint}")
    if dtype != jnp.uint8 and not is_float(dtype):
        raise ValueError(f"images must be uint8 pixels or normalised floats. Got {dtype}.")
    if isinstance(images, np.ndarray) and dtype != jnp.uint8:
        _warn_of_pixels(images)
    return for_layers(images)


def _warn_of_pixels(images: np.ndarray) -> None:
    """Warns of floats that are pixels, by some of them; only on the host, as for ids."""
    stride = images.size // _SAMPLE // 3 * 3 + 1  # no multiple of 3: all channels have their turn
    largest = float(np.max(images.flat[::stride], initial=0))
    if NORMALISED < largest < float("inf"):
        warnings.warn(
            f"images are floats up to {largest:.4g}, but normalised ones are below {NORMALISED}: "
            f"give pixels as uint8, or take the floats of the model's preprocess",
            stacklevel=4,
        )


def as_tokens(
    tokens: ArrayLike | Sequence[Any], config: TextConfig
) -> Integer[np.ndarray | Array, "b l"]:
    """Returns token ids as one array, of at most the context length.

    Raises:
        ValueError: the shape or dtype is wrong, or (checked on NumPy arrays) an id is out of range.
    """
    tokens = as_array(tokens, "tokens")
    shape, dtype = tokens.shape, tokens.dtype
    if dtype.kind in "USOT":  # NumPy's kinds of strings and of objects
        raise ValueError(
            f"tokens must be ids, not texts: give clip_jax.tokenize(texts). Got {dtype}."
        )
    if len(shape) != 2 or not 1 <= shape[1] <= config.context_length:
        raise ValueError(
            f"tokens must have shape (batch, length) with length 1 to {config.context_length}. "
            f"Got {shape}."
        )
    if shape[1] < config.context_length and not config.can_be_cut:
        raise ValueError(
            f"tokens must have shape (batch, {config.context_length}), padding included: this "
            f"model's texts depend on it. Got {shape}."
        )
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"tokens must be integers. Got {dtype}.")
    # Checked only on the host, where it is cheap; JAX silently clamps ids that are out of range.
    if isinstance(tokens, np.ndarray) and tokens.size:
        low, high = tokens.min(), tokens.max()
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"token ids must lie in 0..{config.vocab_size - 1}. Got {low}..{high}."
            )
    if config.has_ids_unsaid:
        _check_no_added(tokens)
    return for_layers(tokens)


def as_embeddings(
    embeddings: ArrayLike, tokens: ArrayLike | Sequence[Any] | None, config: TextConfig
) -> tuple[Shaped[np.ndarray | Array, "b l w"], Integer[np.ndarray | Array, "b l"]]:
    """Returns vectors in place of ids, and the ids that say where each text ends, as arrays.

    Args:
        embeddings: (b, l, w) floats, w the text tower's width.
        tokens: (b, l) ids that say where each text ends.
        config: the text tower's.

    Raises:
        ValueError: a shape or a dtype is wrong, or the end isn't told.
    """
    embeddings = as_array(embeddings, "embeddings")
    shape, width = embeddings.shape, config.width
    if len(shape) != 3 or shape[2] != width or not 1 <= shape[1] <= config.context_length:
        raise ValueError(
            f"embeddings must have shape (batch, length, {width}) with length 1 to "
            f"{config.context_length}. Got {shape}."
        )
    if not is_float(embeddings.dtype):
        raise ValueError(f"embeddings must be floats. Got {embeddings.dtype}.")
    if tokens is None:
        if config.pooling in ("argmax", "eos"):
            raise ValueError(
                "embeddings need the ids of the same texts too, (batch, length), which say where "
                "each text ends: give both, encode_text(tokens, embeddings=...), with any ids at "
                "the places of the vectors that have none."
            )
        tokens = np.zeros(shape[:2], np.int32)
    tokens = as_tokens(tokens, config)
    if tokens.shape != shape[:2]:
        raise ValueError(
            f"tokens and embeddings must have the same rows and length. Got {tokens.shape} and "
            f"{shape[:2]}."
        )
    return embeddings, tokens


def check_ends(num_ids: int, config: TextConfig) -> None:
    """Checks that a program, which can't look at the ids, can tell where a text ends.

    Args:
        num_ids: how many ids the model's tokenizer has.
        config: the text tower's.

    Raises:
        ValueError: texts may have added tokens, and nothing says that these aren't the end.
    """
    if config.has_ids_unsaid and num_ids > CLIP_VOCAB_SIZE:
        raise ValueError(
            f"the model's tokenizer has tokens that were added to CLIP's, and nothing says "
            f"whether a text ends there: {SAY_THE_END}"
        )


def _check_no_added(tokens: np.ndarray | Array) -> None:
    """Raises ValueError if the position of a text's end depends on what isn't said."""
    end = CLIP_VOCAB_SIZE - 1
    if isinstance(tokens, Tracer):
        raise ValueError(
            f"this model has ids above {end}, CLIP's end token, and inside of a traced function "
            f"the ids can't be seen: {SAY_THE_END}"
        )
    ids = np.asarray(tokens)
    rows = np.flatnonzero((ids > end).any(axis=1) & (ids == end).any(axis=1)).tolist()
    if rows:
        raise ValueError(
            f"rows {some(rows)} of tokens have ids above {end}, CLIP's end token, and nothing says "
            f"whether a text ends there: {SAY_THE_END}"
        )


def as_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> dict[str, Array]:
    """Returns an attention mask as the keyword that the layers take; none for None.

    Raises:
        ValueError: it has another shape than the tokens.
    """
    if mask is None:
        return {}
    mask = as_array(mask, "attention_mask")
    if mask.shape != shape:
        raise ValueError(f"attention_mask must have the tokens' shape, {shape}. Got {mask.shape}.")
    return {"visible": jnp.asarray(mask).astype(bool)}


def as_array(values: ArrayLike | Sequence[Any], name: str) -> np.ndarray | Array:
    """Returns values as an array in the machine's byte order, which JAX needs.

    Raises:
        ValueError: they are a list of several shapes, or an array that no program takes here.
    """
    if isinstance(values, Array):
        check_axes(values, name)
        return values
    try:
        array = np.asarray(values)
    except ValueError:  # NumPy's message doesn't name the argument
        raise ValueError(f"{name} must have one shape. Got a list of several.") from None
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _is_picture(value: Any) -> bool:
    """Whether a value is a picture of Pillow's or its path, or a list that begins with one."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(first, (str, os.PathLike)) or hasattr(first, "getbands")  # without Pillow


def is_float(dtype: np.dtype) -> bool:
    """Whether it is a dtype of floats that JAX has."""
    # Not NumPy's long double, which JAX doesn't support.
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= 8
