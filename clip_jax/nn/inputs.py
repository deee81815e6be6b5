"""What a model takes, and the errors for what it doesn't."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from clip_jax.config import TextConfig


def check_images(images: ArrayLike, image_size: int) -> None:
    """Raises unless `images` are (b, n, n, 3), uint8 or float.

    Raises:
        ValueError: if the shape or the dtype is another; knows PyTorch's order of axes.
    """
    shape, dtype, n = np.shape(images), jnp.result_type(images), image_size
    if len(shape) != 4 or shape[1:] != (n, n, 3):
        hint = ""
        if len(shape) == 4 and shape[1] == 3:
            hint = " That is NCHW, PyTorch's order: give images.transpose(0, 2, 3, 1)."
        elif len(shape) == 3:
            hint = " One image needs a batch axis too: give images[None]."
        raise ValueError(f"images must have shape (batch, {n}, {n}, 3). Got {shape}.{hint}")
    if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"images must be uint8 pixels or normalised floats. Got {dtype}.")


def check_tokens(tokens: ArrayLike, config: TextConfig) -> None:
    """Raises unless `tokens` are (b, l) ids of the vocabulary, l at most the context length.

    Raises:
        ValueError: if the shape, the dtype or (where it can be seen) an id is out of range.
    """
    shape, dtype = np.shape(tokens), jnp.result_type(tokens)
    if len(shape) != 2 or not 1 <= shape[1] <= config.context_length:
        raise ValueError(
            f"tokens must have shape (batch, length) with length 1 to {config.context_length}. "
            f"Got {shape}."
        )
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"tokens must be integers. Got {dtype}.")
    # On the host a look is cheap; on a device an id out of range would be clamped in silence.
    if isinstance(tokens, np.ndarray) and tokens.size:
        low, high = tokens.min(), tokens.max()
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"token ids must lie in 0..{config.vocab_size - 1}. Got {low}..{high}."
            )
