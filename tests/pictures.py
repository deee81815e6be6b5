"""Pictures as files: of one colour, of noise, of any mode, and ones that say they are huge."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 210)}


def saved(image: Image.Image, kind: str, **options) -> bytes:
    """The picture as a file of that kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(color=(200, 30, 40), size=(6, 5), kind="PNG") -> bytes:
    """A picture of one colour."""
    return saved(Image.new("RGB", size, color), kind)


BANDS = {"L": 1, "LA": 2, "La": 2, "P": 1, "PA": 2, "RGB": 3, "RGBA": 4, "RGBa": 4, "RGBX": 4}
BANDS |= {"CMYK": 4, "YCbCr": 3, "LAB": 3, "HSV": 3}
TRANSPARENT = {"P, one transparent": 5, "P, transparency table": bytes(range(256))}
MODES = ["1", *BANDS, *TRANSPARENT, "I", "I;16", "I;16B", "I;16L", "F"]


def random_image(mode: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Random pixels in any mode of Pillow; see MODES for palettes with transparency."""
    shape = size[::-1]
    if mode == "1":
        return Image.frombytes("L", size, rng.integers(0, 2, shape, np.uint8) * 255).convert("1")
    if mode == "I":
        return Image.frombytes(mode, size, rng.integers(-999, 70_000, shape, np.int32).tobytes())
    if mode == "F":
        return Image.frombytes(mode, size, rng.normal(128, 99, shape).astype("f4").tobytes())
    if mode.startswith("I;16"):
        return Image.frombytes(mode, size, rng.integers(0, 65_536, shape, np.uint16).tobytes())
    kind = mode.partition(",")[0]
    pixels = rng.integers(0, 256, (*shape, BANDS[kind]), np.uint8)
    image = Image.frombytes(kind, size, pixels.tobytes())
    if kind in ("P", "PA"):
        image.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
    if mode in TRANSPARENT:
        image.info["transparency"] = TRANSPARENT[mode]
    return image


def noise(seed: int, size=(40, 36), kind="PNG", **options) -> bytes:
    """A picture that is like no other."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return saved(Image.fromarray(pixels), kind, **options)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG: its length, its kind, its data and their checksum."""
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says it has that many pixels, and holds hardly any."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(bytes(100))) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body


def bmp(seed: int) -> bytes:
    """A picture whose file has the size of every other one."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return saved(Image.fromarray(pixels), "BMP")
