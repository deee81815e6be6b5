"""Drawings of emoji as npm packages have them, by code points, and what is made of them."""

import io
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import resvg_py
from names import Concept, plain, squeezed
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFont, ImageOps

SIZE = 96  # of what is rendered; the others are 64 pixels a side

# At the end of an icon's name: which of several drawings of one thing it is.
VARIANTS = ("1", "01", "2", "line", "fill", "outline")
SHAPES = "path,circle,ellipse,rect,polygon,polyline,line"

Drawing = Path | Image.Image | str  # a string is an SVG document


def datasource(package: Path, style: str) -> dict[str, Path]:
    """The drawings of an emoji-datasource package, by their code points."""
    entries = json.loads((package / "emoji.json").read_text())
    return {
        plain(entry["unified"]): package / "img" / style / "64" / entry["image"]
        for entry in entries
        if entry[f"has_img_{style}"]
    }


def fluent(package: Path, kind: str, known: list[Concept]) -> dict[str, Path]:
    """Microsoft's drawings, which have names for file names: Unicode's, or nearly."""
    found = {path.stem: path for path in sorted((package / "icons" / kind).glob("*.svg"))}
    drawings: dict[str, Path] = {}
    for concept in known:
        slug = re.sub(r"[^a-z0-9]+", "-", concept.name.lower().replace("’", "")).strip("-")
        for stem in (slug, f"{slug}-default"):
            if stem in found:
                drawings[concept.code] = found[stem]
    return drawings


def iconify(package: Path, codes: Mapping[str, str], variant: str = "1") -> dict[str, str]:
    """The drawings of an Iconify package whose names are known; of several the variant asked for.

    The first variant is what has no mark of another one at the end of its name.
    """
    document = json.loads((package / "icons.json").read_text())
    found: dict[str, str] = {}
    for name, icon in document["icons"].items():
        stem, _, mark = name.rpartition("-")
        if mark not in VARIANTS:
            stem, mark = name, "1"
        code = codes.get(squeezed(stem))
        if code and mark.lstrip("0") == variant:
            width, height = (icon.get(side, document.get(side, 16)) for side in ("width", "height"))
            found[code] = (
                f'<svg xmlns="http://www.w3.org/2000/svg" '
                f'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}">'
                f"{icon['body'].replace('currentColor', 'black')}</svg>"
            )
    return found


def penned(drawings: Mapping[str, Path | str], fill: str | None = None) -> dict[str, str]:
    """Vector drawings with a black line around each shape, as with a thinner or a thicker pen.

    Args:
        drawings: SVG documents or their files.
        fill: a colour for all shapes instead of their own.

    Raises:
        ValueError: a document has no viewBox, by which the lines are measured.
    """
    return {
        code: _penned(
            drawing.read_text() if isinstance(drawing, Path) else drawing,
            width=(0.02, 0.03, 0.04)[zlib.crc32(code.encode()) % 3],
            fill=fill,
        )
        for code, drawing in drawings.items()
    }


def _penned(document: str, width: float, fill: str | None) -> str:
    """One drawing, with lines of a width by the drawing's."""
    root = re.search(r'<svg[^>]*viewBox="([^"]+)"[^>]*>', document)
    if root is None:
        raise ValueError(f"an SVG document must have a viewBox. Got {document[:80]!r}")
    line = width * float(root[1].split()[2])
    style = f"stroke:#000;stroke-width:{line:g};stroke-linejoin:round;stroke-linecap:round"
    if fill:
        style += f";fill:{fill}"
    sheet = f"<style>{SHAPES}{{{style}}}</style>"
    return document[: root.end()] + sheet + document[root.end() :]


def tinted(drawings: Mapping[str, Path | str | Image.Image]) -> dict[str, Image.Image]:
    """Drawings of black lines, with what they enclose in one colour, another for each drawing.

    Args:
        drawings: vectors, of which only the lines count; or what `line_drawing` gives.
    """
    found = {}
    for code, drawing in drawings.items():
        if not isinstance(drawing, Image.Image):
            drawing = line_drawing(ImageOps.expand(opened(drawing).getchannel("A"), border=1))
        fill = ImageColor.getrgb(f"hsv({zlib.crc32(code.encode()) % 360},70%,100%)")
        colors = ImageOps.colorize(drawing.convert("L"), "black", fill)
        colors.putalpha(drawing.getchannel("A"))
        found[code] = colors
    return found


def by_code(folder: Path, pattern: str) -> dict[str, Path]:
    """The drawings of a folder whose files are named by their code points."""
    return {plain(path.stem): path for path in sorted(folder.glob(pattern))}


def glyphs(path: Path, known: list[Concept]) -> dict[str, Image.Image]:
    """The drawings of a font of black lines, of emoji of one code point: white within the lines."""
    font = ImageFont.truetype(path, SIZE, layout_engine=ImageFont.Layout.BASIC)
    missing = written("\U0010ffff", font).tobytes()
    found = {}
    for concept in known:
        if "-" in concept.code:
            continue
        letter = chr(int(concept.code, 16))
        ink = written(letter, font)
        if ink.tobytes() != missing:
            found[concept.code] = line_drawing(ink)
    return found


def written(letter: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """A glyph in the middle of a square, 255 where there is ink."""
    side = SIZE * 3 // 2
    ink = Image.new("L", (side, side), 0)
    ImageDraw.Draw(ink).text((side // 2, side // 2), letter, 255, font, anchor="mm")
    return ink


def line_drawing(ink: Image.Image) -> Image.Image:
    """A glyph in black, with what it encloses in white, and transparent around it."""
    # The font's fill of a corner reaches all that no line keeps it from.
    around = ink.point([255 if value > 96 else 0 for value in range(256)])
    ImageDraw.floodfill(around, (0, 0), 128)
    inside = around.point([0 if value == 128 else 255 for value in range(256)])
    drawing = Image.merge("RGBA", [ImageChops.invert(ink)] * 3 + [ImageChops.lighter(ink, inside)])
    box = drawing.getbbox()
    assert box is not None
    width, height = box[2] - box[0], box[3] - box[1]
    side = max(width, height)
    square = Image.new("RGBA", (side, side))
    square.paste(drawing.crop(box), ((side - width) // 2, (side - height) // 2))
    return square.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def opened(drawing: Drawing) -> Image.Image:
    """A drawing as RGBA, its longer side 96 pixels at most; vectors have just these."""
    if isinstance(drawing, Path) and drawing.suffix == ".svg":
        drawing = drawing.read_text()
    if isinstance(drawing, str):
        data: Any = resvg_py.svg_to_bytes(svg_string=drawing, width=SIZE, height=SIZE)
        drawing = Image.open(io.BytesIO(bytes(data)))
    elif isinstance(drawing, Path):
        drawing = Image.open(drawing)
    image = drawing.convert("RGBA")
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    return image


def rendered(drawing: Drawing) -> bytes:
    """A drawing as PNG."""
    file = io.BytesIO()
    opened(drawing).save(file, "PNG")
    return file.getvalue()
