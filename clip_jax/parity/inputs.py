"""Synthetic pictures and captions on which the two sides are compared."""

import numpy as np
from PIL import Image

CAPTIONS = (
    "a diagram",
    "a photo of a cat.",
    "it's  a DOG's\n life &amp;amp; more",
    "!",  # id 0, which is also the padding
    "wow!!! two dogs! !",
    "naïve café ½ ²",
    "寿司の写真 🍣 на столе",
    "",
    "a very long caption " * 40,  # cut at the context length
)


def pictures() -> list[Image.Image]:
    """Returns synthetic pictures of several modes, sizes and aspects, the same on any machine."""
    rng = np.random.default_rng(0)

    def picture(width: int, height: int, channels: int) -> np.ndarray:
        # Slow waves, as in photographs, and noise, which tests the resizing.
        y, x = np.mgrid[0:height, 0:width, 0:1][:2] / 40
        phase = np.arange(channels)
        waves = np.sin(x * (1 + phase / 3) + phase) + np.cos(y * (1 + phase / 2) - phase)
        noisy = 127 + 55 * waves + rng.normal(0, 15, (height, width, channels))
        return np.clip(noisy, 0, 255).astype(np.uint8)

    return [
        Image.fromarray(picture(640, 427, 3)),
        Image.fromarray(picture(97, 211, 1)[..., 0]),
        Image.fromarray(picture(333, 500, 4)),
        Image.fromarray(picture(480, 360, 3)).quantize(64),
        Image.fromarray(picture(300, 300, 3)).convert("CMYK"),
        Image.fromarray(picture(31, 150, 3)),
    ]
