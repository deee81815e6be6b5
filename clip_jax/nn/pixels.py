"""CLIP's pixel statistics, and the normalisation of uint8 images on the device."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

# Statistics of CLIP's training images: red, green, blue, on the scale 0 to 1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_pixels(pixels: UInt8[Array, "b n n 3"]) -> Float[Array, "b n n 3"]:
    """Scales pixels to 0..1, subtracts the mean, and divides by the standard deviation."""
    x = pixels.astype(jnp.float32) / 255
    return (x - jnp.asarray(MEAN, jnp.float32)) / jnp.asarray(STD, jnp.float32)
