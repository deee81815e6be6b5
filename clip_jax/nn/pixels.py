"""The normalisation of uint8 images on the device."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from clip_jax.config_fields import Color
from clip_jax.pixel_config import MEAN, STD


def normalize_pixels(
    pixels: UInt8[Array, "b n m 3"], mean: Color = MEAN, std: Color = STD
) -> Float[Array, "b n m 3"]:
    """Scales pixels to 0..1, subtracts the mean, and divides by the standard deviation."""
    x = pixels.astype(jnp.float32) / 255
    return (x - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
