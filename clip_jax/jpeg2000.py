"""JPEG2000 files that say they have more blocks than anybody writes.

The decoder allocates 400 bytes for each block before it reads one: a file of five kilobytes that
says it has 100 million pixels, in blocks of 4 x 4, takes eight gigabytes.
"""

import re
import struct
from collections.abc import Iterator

from PIL import Image

# Encoders write blocks of 64 x 64 or 32 x 32: the largest picture has a third of this.
MOST_BLOCKS = 1 << 21
# Each quality layer has a packet for each precinct.
MOST_PACKETS = 1 << 24

# The beginning of a codestream, and how its components or one of them are coded: also in parts of
# it that Pillow skips, since which part counts is the decoder's choice.
_SIZE = re.compile(rb"\xff\x4f\xff\x51.{4}(.{16})", re.DOTALL)
_CODING = re.compile(
    rb"\xff(?:\x52(..)(.).(..).|\x53(..).(.))([\0-\x20])([\0-\x08]{2}).[\0\1]", re.DOTALL
)
_WHOLE = 15  # 2^15: the side of precincts by default


def check_blocks(image: Image.Image) -> None:
    """Raises DecompressionBombError for an opened JPEG2000 file of too many blocks."""
    file = getattr(image, "fp", None)
    if image.format != "JPEG2000" or file is None:
        return
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    for found in _SIZE.finditer(data):
        right, bottom, left, top = struct.unpack(">4I", found[1])
        if right - left > image.width or bottom - top > image.height:
            raise Image.DecompressionBombError(
                f"says that its size is {image.size}, and {(right - left, bottom - top)} elsewhere"
            )
    for layers, levels in _codings(data):
        blocks = precincts = 0
        for level, (block, precinct) in enumerate(levels):
            shift = len(levels) - 1 - level
            sides = [-(-side >> shift) for side in image.size]
            parts = _parts(sides, precinct)
            precincts += parts
            blocks += max(_parts(sides, block), 3 * parts if level else parts)
        channels = len(image.getbands())
        if channels * blocks > MOST_BLOCKS or channels * precincts * layers > MOST_PACKETS:
            raise Image.DecompressionBombError(
                f"has {channels * blocks:,} blocks and {channels * precincts * layers:,} packets, "
                f"expected at most {MOST_BLOCKS:,} and {MOST_PACKETS:,}: it would take too much "
                "memory"
            )


Exponents = tuple[int, int]  # of two: of a width and of a height


def _codings(data: bytes) -> Iterator[tuple[int, list[tuple[Exponents, Exponents]]]]:
    """Yields the number of layers, and the sizes of blocks and precincts at each resolution."""
    position = 0
    while found := _CODING.search(data, position):
        position = found.start() + 2
        length, style, head = (found[1], found[2], 12) if found[1] else (found[4], found[5], 9)
        count, custom = found[6][0] + 1, style[0] & 1
        if int.from_bytes(length) != head + count * custom:
            continue  # compressed data, by chance
        sizes = data[found.end() : found.end() + count] if custom else b"\xff" * count
        levels = []
        for level, size in enumerate(sizes):
            precinct = size & _WHOLE, size >> 4
            inner = [max(side - (level > 0), 0) for side in precinct]
            width, height = (min(n + 2, side) for n, side in zip(found[7], inner, strict=True))
            levels.append(((width, height), precinct))
        yield int.from_bytes(found[3] or b"\1"), levels


def _parts(sides: list[int], exponents: Exponents) -> int:
    across, down = (-(-side >> n) for side, n in zip(sides, exponents, strict=True))
    return across * down
