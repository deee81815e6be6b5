"""The size of a model's images: one number for a square, or a height and a width."""

from typing import Any

# What an image size may be: the side of a square, or (height, width).
ImageSize = int | tuple[int, int]

MOST_PIXELS_A_SIDE = 1 << 16


def as_image_size(size: Any) -> ImageSize:
    """Returns an image size in its one form: equal sides are one number.

    Args:
        size: a whole number; or a height and a width, as a tuple or a list.

    Raises:
        ValueError: it is something else, or out of range.

    Example:
        >>> as_image_size((224, 224)), as_image_size([224, 336])
        (224, (224, 336))
    """
    both = size if isinstance(size, tuple | list) else (size, size)
    if len(both) != 2 or not all(type(n) is int and 0 < n < MOST_PIXELS_A_SIDE for n in both):
        raise ValueError(
            f"image_size must be a positive integer or two, (height, width), below "
            f"{MOST_PIXELS_A_SIDE:,}. Got {size!r}."
        )
    height, width = both
    return height if height == width else (height, width)


def sides_of(size: ImageSize) -> tuple[int, int]:
    """Returns the height and the width of an image size."""
    return size if isinstance(size, tuple) else (size, size)


def shown_size(size: ImageSize) -> str:
    """Formats an image size for people.

    Example:
        >>> shown_size(224), shown_size((224, 336))
        ('224 x 224', '224 x 336')
    """
    return " x ".join(map(str, sides_of(size)))
