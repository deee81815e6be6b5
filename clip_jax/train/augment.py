"""Augmentation of pictures: the published random crop, and more if configured."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from clip_jax.channels import scaled
from clip_jax.preprocess import FITS, Fit

WHITE = (255, 255, 255)
LUMA = np.tile([0.299, 0.587, 0.114], (3, 1))  # ITU-R BT.601, as Pillow's "L"
THIRDS = np.moveaxis(np.mgrid[:4, :4], 0, -1) / 3  # (4, 4, 2): x, y
MAX_WARP = 0.15  # corners are a third of a side apart, and must not pass each other


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """The augmentation of pictures; by default CLIP's own, a random square crop.

    Attributes:
        fit: how a picture that isn't square becomes one: "crop", which is the default; "pad", all
            of it on the background; or "squash". If given, the finished model's configuration says
            so, and its pictures become squares in the same way in use.
        scale_16_bit: whether to divide grey pictures of 16 bits by 257; else values above 255 are
            white.
        crop: "random", a square anywhere in the picture, or "center".
        scale: the range of the picture's shorter side relative to the square's, drawn uniformly.
            A picture below 1 is placed somewhere on the background.
        stretch: the largest change of the aspect ratio: its factor is between 1 / (1 + stretch)
            and 1 + stretch.
        warp: the largest displacement of the corners of a 3 x 3 grid over the picture, as a
            fraction of its sides: as if another hand had drawn it.
        rotation: the largest angle in degrees, either way.
        flip: whether to mirror half of the pictures left to right.
        color: the largest change of brightness, contrast and saturation, as a fraction of 1.
        hue: the largest rotation of hues in degrees, either way.
        gray: the fraction of pictures converted to gray.
        outline: the fraction of pictures whose edges become black lines about two pixels wide, as
            if drawn with a pen.
        background: the colour behind transparency and around the picture: "white", or "random",
            which is a random colour for half of the pictures.
    """

    fit: Fit | None = None
    scale_16_bit: bool = False
    crop: str = "random"
    scale: tuple[float, float] = (1.0, 1.0)
    stretch: float = 0.0
    warp: float = 0.0
    rotation: float = 0.0
    flip: bool = False
    color: float = 0.0
    hue: float = 0.0
    gray: float = 0.0
    outline: float = 0.0
    background: str = "white"

    def __post_init__(self):
        """Checks the fields.

        Raises:
            ValueError: a name is not known, or a number is out of range.
        """
        if self.fit is not None and self.fit not in FITS:
            raise ValueError(f"fit must be {' or '.join(map(repr, FITS))}. Got {self.fit!r}.")
        for name, known in (("crop", ("random", "center")), ("background", ("white", "random"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be {' or '.join(map(repr, known))}. Got {getattr(self, name)!r}."
                )
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(
                f"scale must be two numbers above 0, the less first. Got {self.scale}."
            )
        for name in ("rotation", "hue"):
            if not 0 <= getattr(self, name) <= 180:
                raise ValueError(
                    f"{name} must be from 0 to 180 degrees. Got {getattr(self, name)}."
                )
        if not 0 <= self.color < 1:
            raise ValueError(f"color must be from 0 to 1, and not 1. Got {self.color}.")
        if not self.stretch >= 0:
            raise ValueError(f"stretch must be 0 or more. Got {self.stretch}.")
        if not 0 <= self.warp <= MAX_WARP:
            raise ValueError(f"warp must be from 0 to {MAX_WARP}. Got {self.warp}.")
        for name in ("gray", "outline"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1. Got {getattr(self, name)}.")


def augment(
    image: Image.Image, size: int, config: AugmentConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "n n 3"]:
    """Returns an augmented square of side `size` from a picture of any size and mode.

    Raises:
        ValueError: the picture has no pixels, or a mode that Pillow can't convert.
    """
    if 0 in image.size:
        raise ValueError(f"the image has no pixels: its size is {image.size}")
    if config.scale_16_bit:
        image = scaled(image)
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    image = image.convert("RGBA" if transparent else "RGB")
    ground = WHITE
    if config.background == "random" and rng.random() < 0.5:
        ground = tuple(int(value) for value in rng.integers(0, 256, 3))

    if config.outline and rng.random() < config.outline:
        image = _outlined(image)
    width, height = image.size
    if config.stretch:
        width = max(1, round(width * (1 + config.stretch) ** rng.uniform(-1, 1)))
    side = size
    if config.scale != (1.0, 1.0):
        side = max(1, round(size * rng.uniform(*config.scale)))
    resized = _resized(width, height, side, config.fit)
    image = image.resize(resized, Image.Resampling.BICUBIC)
    if config.flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if config.warp or config.rotation:
        fill = (*ground, 0) if transparent else ground
        image = _bent(image, config, fill, rng)

    square = Image.new("RGB", (size, size), ground)
    place = [_place(size - length, config.crop, rng) for length in image.size]
    square.paste(image, (place[0], place[1]), image if transparent else None)
    if config.color or config.hue or config.gray:
        square = _recolored(square, config, rng)
    return np.array(square)


def _resized(width: int, height: int, side: int, fit: Fit | None) -> tuple[int, int]:
    """Returns the size of a picture before it is cropped to a square, or put on one."""
    if fit == "squash":
        return side, side
    if fit == "pad":
        factor = side / max(width, height)
        return max(1, round(width * factor)), max(1, round(height * factor))
    factor = side / min(width, height)
    return max(side, int(width * factor)), max(side, int(height * factor))


def _outlined(image: Image.Image) -> Image.Image:
    """Draws edges in black, by how much a pixel's colour or transparency differs from the next."""
    # The colour of a transparent pixel is arbitrary: compared as seen on white.
    seen = Image.new("RGBA", image.size, WHITE)
    seen.alpha_composite(image.convert("RGBA"))
    alpha = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
    values = np.dstack([np.asarray(seen)[..., :3], np.asarray(alpha)]).astype(np.int16)
    across = np.abs(np.diff(values, axis=1)).max(axis=-1)
    down = np.abs(np.diff(values, axis=0)).max(axis=-1)
    change = np.zeros(values.shape[:2], np.int16)
    for part, step in (
        (change[:, 1:], across),
        (change[:, :-1], across),
        (change[1:], down),
        (change[:-1], down),
    ):
        np.maximum(part, step, out=part)
    # Small changes are shading, not edges.
    strength = np.clip((change - 24) * 6, 0, 255).astype(np.uint8)
    lines = image.copy()
    lines.paste((0, 0, 0, 255)[: len(image.getbands())], mask=Image.fromarray(strength))
    return lines


def _bent(
    image: Image.Image, config: AugmentConfig, fill: tuple[int, ...], rng: np.random.Generator
) -> Image.Image:
    """Rotates and warps the picture: each cell of a 3 x 3 grid comes from a quadrilateral."""
    angle = rng.uniform(-config.rotation, config.rotation)
    if not config.warp:
        return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=fill)
    sides = np.array(image.size)
    corners = THIRDS * sides
    places = np.rint(corners).astype(int)
    sources = corners + rng.uniform(-config.warp, config.warp, corners.shape) * sides
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    sources = (sources - sides / 2) @ np.array([[cos, sin], [-sin, cos]]) + sides / 2
    mesh = [
        (
            (*places[i, j].tolist(), *places[i + 1, j + 1].tolist()),
            # Upper left, lower left, lower right, upper right.
            tuple(sources[[i, i, i + 1, i + 1], [j, j + 1, j + 1, j]].ravel().tolist()),
        )
        for i in range(3)
        for j in range(3)
    ]
    return image.transform(
        image.size, Image.Transform.MESH, mesh, Image.Resampling.BICUBIC, fillcolor=fill
    )


def _recolored(image: Image.Image, config: AugmentConfig, rng: np.random.Generator) -> Image.Image:
    """Applies all changes of colour as one matrix."""
    matrix, offset = np.eye(3), 0.0
    if config.color:
        brightness, contrast, saturation = 1 + rng.uniform(-config.color, config.color, 3)
        middle = brightness * float(np.asarray(image.convert("L")).mean())
        matrix = (saturation * np.eye(3) + (1 - saturation) * LUMA) * brightness * contrast
        offset = (1 - contrast) * middle
    if config.hue:
        matrix = _turn(rng.uniform(-config.hue, config.hue)) @ matrix
    if config.gray and rng.random() < config.gray:
        matrix = LUMA @ matrix
    return image.convert("RGB", tuple(np.c_[matrix, np.full(3, offset)].ravel().tolist()))


def _turn(degrees: float) -> Float[np.ndarray, "3 3"]:
    """Returns the rotation of RGB about the gray axis, from red to green to blue."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return cos * np.eye(3) + (1 - cos) / 3 + sin * across


def _place(room: int, crop: str, rng: np.random.Generator) -> int:
    """Returns the offset of a side that is shorter than the square by `room`; longer if < 0."""
    if crop == "center":
        return round(room / 2)
    return int(rng.integers(min(room, 0), max(room, 0) + 1))
