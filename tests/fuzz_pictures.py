"""Pictures for `tests/fuzz_readers.py`: valid ones, and what was changed in them."""

import functools
import io
import random
import struct
import zlib

from PIL import Image

from tests.fuzz_inputs import Case, Random, flip, picture
from tests.pictures import png_chunk

SAVED = (
    ("png", "PNG", ("L", "RGB", "RGBA", "P", "1", "I;16", "LA")),
    ("jpg", "JPEG", ("L", "RGB", "CMYK")),
    ("gif", "GIF", ("L", "P", "RGB")),
    ("bmp", "BMP", ("L", "RGB", "P", "1")),
    ("webp", "WEBP", ("RGB", "RGBA")),
    ("tif", "TIFF", ("L", "RGB", "I;16", "F", "CMYK", "1", "RGBA")),
    ("ppm", "PPM", ("L", "RGB", "1")),
    ("jpg", "JPEG2000", ("L", "RGB", "RGBA")),
    ("png", "AVIF", ("RGB", "RGBA")),
    ("bmp", "ICO", ("RGBA",)),
)
MAGIC = (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n", b"8BPS\0\1", b"SIMPLE  =  T")
MAGIC += (
    b"\xd7\xcd\xc6\x9a",
    b"GIF89a",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"II*\0",
    b"MM\0*",
)
MAGIC += (
    b"RIFF\0\0\0\0WEBP",
    b"BM",
    b"P6\n",
    b"P7\n",
    b"\0\0\1\0",
    b"\0\0\0\x1cftypavif",
    b"II+\0\x08",
)
NUMBER = (0, 1, 2, 7, 255, 256, 4096, 65_535, 65_536, 178_000_000, 2**31 - 1, 2**31, 2**32 - 1)


def images(rng: Random) -> Case:
    """A folder of three pictures of which the second is changed."""
    suffix, kind, modes = rng.choice(SAVED)
    size = rng.choice(((9, 7), (1, 90), (64, 1), (33, 65), (200, 130), (1, 1)))
    mode, seed = rng.choice(modes), rng.randrange(8)
    data = _saved(seed, kind, size, mode)
    match rng.randrange(12):
        case 0 | 1 | 2 | 3 | 4:
            data, _ = flip(data, rng)
        case 5 | 6 | 7 | 8:  # a number in the first bytes, where sizes are
            changed = bytearray(data)
            for _ in range(rng.choice((1, 1, 2, 3))):
                place = rng.randrange(min(len(data), rng.choice((32, 64, 400, len(data)))))
                format = rng.choice((">I", "<I", ">H", "<H"))
                value = rng.choice(NUMBER) % (1 << 8 * struct.calcsize(format))
                changed[place : place + struct.calcsize(format)] = struct.pack(format, value)
            data = _with_checksums(bytes(changed)) if kind == "PNG" else bytes(changed)
        case 9 | 10:
            data = rng.choice(MAGIC) + data[rng.randrange(len(data)) :]
        case _:
            data = _shaped(rng)
            suffix = "png"
    name = f"b.{suffix}"
    files = {"a.png": picture(1), name: data, "c.jpg": picture(2, "JPEG")}
    return Case(files, name, ["a.png", "c.jpg"])


@functools.cache
def _saved(seed: int, kind: str, size: tuple[int, int], mode: str) -> bytes:
    rng, file = random.Random(seed), io.BytesIO()
    image = Image.new(mode, size)
    if mode in ("L", "RGB", "RGBA", "CMYK", "LA"):
        image.frombytes(rng.randbytes(size[0] * size[1] * len(image.getbands())))
    options = {"JPEG": {"progressive": bool(seed % 2)}, "TIFF": {"compression": None}}
    if kind == "TIFF" and mode != "I;16":
        kinds = (None, "tiff_lzw", "packbits", "tiff_adobe_deflate")
        options["TIFF"] = {"compression": kinds[seed % 4]}
    image.save(file, kind, **options.get(kind, {}))
    return file.getvalue()


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums, as far as its lengths lead."""
    out, place = bytearray(data), 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(data):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(out)


def _shaped(rng: Random) -> bytes:
    """A PNG of any size and few bytes."""
    width, height = rng.choice(
        ((65_535, 1), (1, 65_535), (1_000_000, 1), (3, 700_000), (3000, 3000), (2, 30_000_000))
    )
    depth, color, channels = rng.choice(
        ((8, 0, 1), (8, 2, 3), (8, 3, 1), (1, 0, 1), (16, 0, 2), (8, 6, 4))
    )
    line = 1 + (width * channels if depth > 1 else (width + 7) // 8)
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(bytes(line)) for _ in range(min(height, 30_000)))
    data += packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"PLTE", bytes(768)), (b"IDAT", data), (b"IEND", b"")]
    if color in (0, 4):
        del chunks[1]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
