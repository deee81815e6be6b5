"""How a picture gets a model's size: what it is resized to, and which part of that is kept."""

import dataclasses

from clip_jax.image_size import ImageSize, sides_of
from clip_jax.pixel_config import Resize
from clip_jax.resample import shortest_to


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where a model's rectangle lies in the resized picture, in pixels.

    Attributes:
        width: of the whole picture, resized; 0 for one that is too long and thin to be fitted in.
        height: likewise.
        left: where in it the rectangle begins; below 0 where it has a margin.
        top: likewise.
    """

    width: int
    height: int
    left: int
    top: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole picture, resized."""
        return self.width, self.height


def geometry(width: int, height: int, image_size: ImageSize, resize: Resize) -> Geometry:
    """Returns how a picture of this width and height gets a model's size.

    Example:
        >>> geometry(640, 480, 224, "shortest")
        Geometry(width=298, height=224, left=37, top=0)
        >>> geometry(640, 480, 224, "longest")
        Geometry(width=224, height=168, left=0, top=-28)
    """
    n, m = sides_of(image_size)
    if resize == "squash":
        return Geometry(m, n, 0, 0)
    if resize == "longest":
        ratio = max(width / m, height / n)
        size = round(width / ratio), round(height / ratio)
        return Geometry(*size, -((m - size[0]) // 2), -((n - size[1]) // 2))
    size = shortest_to(n, width, height) if n == m else covering(width, height, image_size)
    # Python rounds halves to even, and so does the reference.
    return Geometry(*size, round((size[0] - m) / 2.0), round((size[1] - n) / 2.0))


def covering(width: int, height: int, image_size: ImageSize) -> tuple[int, int]:
    """Returns the least width and height, of a picture's own ratio, that cover a rectangle."""
    n, m = sides_of(image_size)
    ratio = min(width / m, height / n)
    return round(width / ratio), round(height / ratio)
