"""Files that would cost a decoder far more than their pictures, found before they are decoded.

Pillow itself refuses pictures of more than 179 million pixels.
"""

from PIL import Image

from clip_jax.jpeg2000 import check_blocks
from clip_jax.jpeg_scans import check_scans


def check_bomb(image: Image.Image) -> None:
    """Raises Pillow's DecompressionBombError for such a file, opened but not loaded."""
    check_scans(image)
    check_blocks(image)
