"""Pictures that lose something to become pixels, and rows of whose captions some are left out.

The reference clips values above 255, so that most of a 16-bit picture is white; and it drops the
alpha channel, so that the colours beneath show, whatever they are. It doesn't rotate pictures. Of
several frames or pages it takes the first.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageColor

from clip_jax.bands import bands, in_bands

# Pillow's modes of grey with more than 8 bits; "I" holds the values of 16 bits.
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
MOST_OF_16_BITS = 65535

CLIPPED, FRAMES, REAL = "clipped", "frames", "real"
ROTATED, SEVERAL, UNCOVERED = "rotated", "several captions", "uncovered"
_SENTENCES = {
    CLIPPED: "more than 8 bits a channel, of which values above 255 are white, as in the "
    "reference: {scaling} keeps their range",
    FRAMES: "several frames or pages, of which only the first is taken: to have the others, write "
    "each into a file of its own",
    REAL: "real numbers as values, which have no known range and are taken for 0 to 255, as in the "
    "reference: scale them to 8 bits in files of your own",
    ROTATED: "EXIF data of another orientation, which isn't followed, as in the reference: "
    "clip-jax embed --exif-transpose (exif_transpose) does",
    SEVERAL: "several captions, of which only the first is embedded: to have the others, give each "
    "a row of its own",
    UNCOVERED: "transparent parts, where the colour beneath them shows, as in the reference: "
    "--background white (background) covers it",
}
_NOUNS = {SEVERAL: "row"}
# The order of bytes of EXIF data, by how they begin; and how many entries are looked at.
_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_MOST_ENTRIES = 500
# Formats whose further frames are other pictures. Those of phones' JPEG and HEIF files are the same
# photograph again, in another size or range; those of ICO files are other sizes.
_FRAMED = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")
# Where an image, also one that is rotated or copied, keeps that its file has several frames.
_MARK = "clip_jax_frames"
# How many pictures a sentence names.
NAMED = 3


def color_of(name: str) -> tuple[int, ...]:
    """Returns a colour by its name or as #rrggbb.

    Raises:
        ValueError: there is no such colour, or it is transparent itself.
    """
    try:
        color = ImageColor.getrgb(name)
    except (ValueError, AttributeError):
        color = ()
    if len(color) != 3:
        raise ValueError(f"background must be a colour, such as white or #7f7f7f. Got {name!r}")
    return color


def is_rotated(image: Image.Image) -> bool:
    """Whether a picture's EXIF data say that it is to be shown in another orientation."""
    # Pillow's own reader warns of damaged EXIF data, and turns TIFF as it opens them.
    found = image.info.get("exif")
    if not isinstance(found, bytes):
        return False
    data = found.removeprefix(b"Exif\0\0")
    order = _ORDERS.get(data[:4])
    if order is None:
        return False
    begin = int.from_bytes(data[4:8], order) + 2
    for entry in range(begin, min(begin + 12 * _MOST_ENTRIES, len(data)), 12):
        if int.from_bytes(data[entry : entry + 2], order) == ExifTags.Base.Orientation:
            return int.from_bytes(data[entry + 8 : entry + 10], order) in range(2, 9)
    return False


def mark_frames(image: Image.Image) -> None:
    """Notes whether a file has several frames, between its opening and its loading.

    Later, Pillow would have to decode a GIF's first frame again.
    """
    if image.format not in _FRAMED:
        return
    try:
        image.info[_MARK] = getattr(image, "is_animated", False)
    except Exception:  # damage behind the first frame, which is all that is taken
        image.info[_MARK] = True


def scaled(image: Image.Image) -> Image.Image:
    """Returns a grey picture of 16 bits in 8; any other as it is.

    Values from 0 to 65535 become 0 to 255. Pictures of real numbers have no known range.
    """
    if not is_clipped(image):
        return image
    return in_bands(image, "L", _scaled)


def _scaled(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float32).clip(0, MOST_OF_16_BITS)
    return Image.fromarray(np.rint(values * np.float32(255 / MOST_OF_16_BITS)).astype(np.uint8))


def covered(image: Image.Image, background: str) -> Image.Image:
    """Returns a picture in RGB on a background; one without transparency as it is."""
    if not _has_transparency(image):
        return image
    color = (*color_of(background), 255)

    def on_ground(part: Image.Image) -> Image.Image:
        ground = Image.new("RGBA", part.size, color)
        return Image.alpha_composite(ground, _with_alpha(part)).convert("RGB")

    return in_bands(image, "RGB", on_ground)


def is_clipped(image: Image.Image) -> bool:
    """Whether a picture has more than 8 bits a channel, of whole numbers, which can be scaled."""
    return image.mode in DEEP


def is_real(image: Image.Image) -> bool:
    """Whether a picture's values are real numbers."""
    return image.mode == "F"


def has_frames(image: Image.Image) -> bool:
    """Whether the file of a picture that `clip_jax.open_image` has read has several frames."""
    return bool(image.info.get(_MARK))


def is_uncovered(image: Image.Image) -> bool:
    """Whether a picture has pixels that aren't opaque."""
    if not _has_transparency(image):
        return False
    for box, _ in bands(image.size):
        lowest, _ = _with_alpha(image.crop(box)).getchannel("A").getextrema()
        if isinstance(lowest, int | float) and lowest < 255:
            return True
    return False


def _has_transparency(image: Image.Image) -> bool:
    return image.mode in ("La", "RGBa") or image.has_transparency_data


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    return image if image.mode == "RGBA" else image.convert("RGBA")


def losses_of(image: Image.Image, *, scales: bool, covers: bool) -> tuple[str, ...]:
    """Returns what of a picture doesn't reach the pixels.

    Args:
        image: the picture.
        scales: whether 16 bits are scaled to 8.
        covers: whether transparent parts are put on a colour.
    """
    is_lost = {
        CLIPPED: not scales and is_clipped(image),
        FRAMES: has_frames(image),
        REAL: is_real(image),
        ROTATED: is_rotated(image),
        UNCOVERED: not covers and is_uncovered(image),
    }
    return tuple(kind for kind, lost in is_lost.items() if lost)


class Losses:
    """Counts pictures that lose something on their way to pixels; threads may add to it."""

    def __init__(self):
        """Starts with none."""
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def add(self, kinds: Sequence[str], name: str) -> None:
        """Counts a picture, once for each thing that it loses."""
        if not kinds:
            return
        with self._lock:
            for kind in kinds:
                self._counts[kind] = self._counts.get(kind, 0) + 1
                names = self._names.setdefault(kind, [])
                if len(names) < NAMED:
                    names.append(name)

    def taken(self) -> dict[str, tuple[int, list[str]]]:
        """Returns the number of pictures and some names by kind of loss, and forgets them."""
        with self._lock:
            found = {kind: (count, self._names[kind]) for kind, count in self._counts.items()}
            self._counts, self._names = {}, {}
        return found

    def include(self, found: Mapping[str, tuple[int, list[str]]]) -> None:
        """Adds what `taken` has returned in another process."""
        with self._lock:
            for kind, (count, names) in found.items():
                self._counts[kind] = self._counts.get(kind, 0) + count
                there = self._names.setdefault(kind, [])
                there += names[: NAMED - len(there)]

    def sentences(self, scaling: str = "--scale-16-bit (scale_16_bit)") -> list[str]:
        """Returns a sentence for each kind of loss, with the number of pictures and some names.

        Args:
            scaling: what scales 16 bits to 8 where these pictures are read.
        """
        with self._lock:
            return [
                f"{count:,} {_NOUNS.get(kind, 'picture')}{' has' if count == 1 else 's have'} "
                f"{_SENTENCES[kind].format(scaling=scaling)} "
                f"({', '.join(self._names[kind])}{', ...' if count > NAMED else ''})"
                for kind, count in sorted(self._counts.items())
            ]
