"""Pictures that would cost far more than their pixels, found before they are decoded or resized.

Pillow itself refuses pictures of more than 179 million pixels.
"""

from PIL import Image

from clip_jax.jpeg2000 import check_blocks
from clip_jax.jpeg_scans import check_scans

# The most pixels of a resized picture before it is cropped: only long, thin ones have more.
MOST_PIXELS = 1 << 26


def check_bomb(image: Image.Image) -> None:
    """Raises Pillow's DecompressionBombError for such a file, opened but not loaded."""
    check_scans(image)
    check_blocks(image)


class TooThin(ValueError):
    """Resizing a picture would make another one that is absurdly large."""

    def __init__(self, image: Image.Image):
        """Says the picture's size."""
        super().__init__(f"its size, {image.size}, is too long and thin for that")


def check_area(image: Image.Image, pixels: int) -> None:
    """Raises TooThin if resizing a picture makes another one of too many pixels."""
    if pixels > MOST_PIXELS:
        raise TooThin(image)
