"""Pictures that would cost far more than their pixels, found before they are decoded or resized.

Pillow itself refuses pictures of more than 179 million pixels.
"""

from PIL import Image

from clip_jax.jpeg2000 import check_blocks
from clip_jax.jpeg_scans import check_scans

# The most pixels of a resized picture before it is cropped: only long, thin ones have more.
MOST_PIXELS = 1 << 26
# Formats in which a picture of one colour takes some bytes whatever its size; and above so many
# pixels, how many there may be to a byte of the file, several times as many as of an empty page.
_BOUNDLESS, _FEW_PIXELS, _MOST_TO_A_BYTE = ("WEBP", "AVIF"), 1 << 25, 4000


def check_bomb(image: Image.Image) -> None:
    """Raises Pillow's DecompressionBombError for such a file, opened but not loaded."""
    check_scans(image)
    check_blocks(image)
    _check_bytes(image)


def _check_bytes(image: Image.Image) -> None:
    """Raises DecompressionBombError for a large picture in a file of almost no bytes."""
    pixels, file = image.width * image.height, getattr(image, "fp", None)
    if image.format not in _BOUNDLESS or pixels <= _FEW_PIXELS or file is None:
        return
    begin = file.tell()
    size = file.seek(0, 2)
    file.seek(begin)
    if pixels > _MOST_TO_A_BYTE * size:
        raise Image.DecompressionBombError(
            f"has {pixels:,} pixels in {size:,} bytes, expected a picture of more than one colour"
        )


class TooThin(ValueError):
    """Resizing a picture would make another one that is absurdly large."""

    def __init__(self, image: Image.Image):
        """Says the picture's size."""
        super().__init__(f"its size, {image.size}, is too long and thin for that")


def check_area(image: Image.Image, pixels: int) -> None:
    """Raises TooThin if resizing a picture makes another one of too many pixels."""
    if pixels > MOST_PIXELS:
        raise TooThin(image)
