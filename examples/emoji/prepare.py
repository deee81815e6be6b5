"""Fetches the drawings and names of emoji and writes them as image-text pairs.

    python examples/emoji/prepare.py DIR

Writes DIR/train.tar, DIR/choose.tar and DIR/test.tar (WebDataset: a PNG and a JSON with captions),
and DIR/drawings.csv, a table of all of them. Needs npm, and pip install 'clip-jax-flax[emoji]'.

Every tenth concept is drawn in choose.tar in one of the training styles, which that concept doesn't
have in train.tar: that is what to choose a recipe by. The drawings of test.tar are another artist's
and for the last measurement only.
"""

import argparse
import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image, ImageChops, ImageDraw, ImageFont
from tqdm import tqdm

PACKAGES = (
    "emoji-datasource-google@16.0.0",  # Noto Emoji: Apache-2.0
    "emoji-datasource-google@3.0.0",  # Noto Emoji as it was until 2017: Apache-2.0
    "@fontsource/noto-emoji@5.3.2",  # Noto Emoji as lines: OFL-1.1
    "emoji-datasource-twitter@16.0.0",  # Twemoji: CC-BY 4.0
    "fluentui-emoji@1.3.0",  # MIT
    "@lobehub/fluent-emoji-3d@1.1.0",  # MIT
    "@iconify-json/emojione@1.2.3",  # EmojiTwo, once EmojiOne 2: CC-BY 4.0
    "@iconify-json/emojione-monotone@1.2.1",  # the same as lines: CC-BY 4.0
    "@iconify-json/fxemoji@1.2.2",  # of Firefox OS: Apache-2.0
    "@iconify-json/streamline-emojis@1.2.4",  # CC-BY 4.0
    "openmoji@17.0.0",  # CC-BY-SA 4.0: measured with, never trained on
    "emojibase-data@17.0.0",  # names and keywords: MIT
)
FLUENT = ("flat", "modern", "high-contrast")
CHOOSE_STYLES = ("google", "twitter", *(f"fluent-{kind}" for kind in FLUENT))
STYLES = (
    *CHOOSE_STYLES,
    "fluent-3d",
    "google-2017",
    "google-lines",
    "emojitwo",
    "emojitwo-lines",
    "fxemoji",
    "streamline",
    "streamline-2",
)
TEST_STYLE = "openmoji"
COMPONENTS, FLAGS = 2, 9  # groups of Unicode's; components are skin tones and hair
SIZE = 96  # of what is rendered; the others are 64 pixels a side


Drawing = Path | Image.Image | str  # a string is an SVG document


@dataclasses.dataclass(frozen=True)
class Concept:
    """An emoji without a skin tone.

    Attributes:
        code: its code points in hexadecimal, without variation selectors.
        name: Unicode's short name.
        keywords: Unicode's, and more.
        is_base: whether it is neither joined of several emoji nor a flag: those are tested.
    """

    code: str
    name: str
    keywords: tuple[str, ...]
    is_base: bool

    @property
    def captions(self) -> list[str]:
        """What a drawing of it may be called: the name three times as often as a keyword."""
        keywords = [word for word in self.keywords if word != self.name]
        return [self.name] * (3 * len(keywords) or 1) + keywords


def main() -> None:
    """Fetches, renders and writes."""
    parser = argparse.ArgumentParser(description="Write emoji as image-text pairs.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where everything goes")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    google, google_2017, lines, twitter, fluent_svg, fluent_3d, *icons, test_svg, names = (
        fetch(package, folder) for package in PACKAGES
    )
    emojitwo, emojitwo_lines, fxemoji, streamline = icons

    known = concepts(names)
    codes = codes_by_name(names, known)
    sources: dict[str, Mapping[str, Drawing]] = {
        "google": datasource(google, "google"),
        "twitter": datasource(twitter, "twitter"),
        **{f"fluent-{kind}": fluent(fluent_svg, kind, known) for kind in FLUENT},
        "fluent-3d": by_code(fluent_3d / "assets", "*.webp"),
        "google-2017": datasource(google_2017, "google"),
        "google-lines": glyphs(lines / "files" / "noto-emoji-emoji-400-normal.woff2", known),
        "emojitwo": iconify(emojitwo, codes),
        "emojitwo-lines": iconify(emojitwo_lines, codes),
        "fxemoji": iconify(fxemoji, codes),
        "streamline": iconify(streamline, codes),
        "streamline-2": iconify(streamline, codes, variant="-2"),
        TEST_STYLE: by_code(test_svg / "color" / "svg", "*.svg"),
    }
    rows = [
        (name, style, concept, sources[style][concept.code])
        for i, concept in enumerate(known)
        for style in (*STYLES, TEST_STYLE)
        if concept.code in sources[style] and (name := split(i, style))
    ]
    with (
        open(folder / "drawings.csv", "w", newline="") as file,
        tarfile.open(folder / "train.tar", "w") as train,
        tarfile.open(folder / "choose.tar", "w") as choose,
        tarfile.open(folder / "test.tar", "w") as test,
    ):
        tars = {"train": train, "choose": choose, "test": test}
        table = csv.writer(file)
        table.writerow(["key", "split", "style", "code", "name", "is_base"])
        for name, style, concept, drawing in tqdm(rows, unit="drawing", mininterval=1):
            key = f"{style}/{concept.code}"
            table.writerow([key, name, style, concept.code, concept.name, int(concept.is_base)])
            captions = {"captions": concept.captions}
            add(tars[name], f"{key}.png", rendered(drawing))
            add(tars[name], f"{key}.json", json.dumps(captions, ensure_ascii=False).encode())
    for name in tars:
        of = [row for row in rows if row[0] == name]
        print(f"{name}.tar: {len(of):,} drawings of {len({row[2].code for row in of}):,} concepts")


def fetch(package: str, folder: Path) -> Path:
    """Unpacks a package of the npm registry, once, and says where."""
    stem = package.removeprefix("@").replace("/", "-").replace("@", "-")
    target = folder / "npm" / stem
    if not target.is_dir():
        aside = target.with_name(f"{stem}.part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        print(f"fetching {package} ...", flush=True)
        subprocess.run(
            ["npm", "pack", "--silent", package], cwd=aside, check=True, stdout=subprocess.DEVNULL
        )
        with tarfile.open(aside / f"{stem}.tgz") as tar:
            tar.extractall(aside, filter="data")
        aside.rename(target)
    return target / "package"


def concepts(package: Path) -> list[Concept]:
    """All emoji without skin tones, in Unicode's order."""
    document = json.loads((package / "en" / "data.json").read_text())
    entries = [e for e in document if e.get("group") not in (None, COMPONENTS)]
    return [
        Concept(
            code=plain(entry["hexcode"]),
            name=entry["label"],
            keywords=tuple(entry.get("tags", ())),
            is_base="200D" not in entry["hexcode"] and entry["group"] != FLAGS,
        )
        for entry in sorted(entries, key=lambda entry: entry["order"])
    ]


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


def codes_by_name(package: Path, known: list[Concept]) -> dict[str, str]:
    """The code points of whatever name or shortcode belongs to one concept alone."""
    found: dict[str, set[str]] = {}
    for path in sorted((package / "en" / "shortcodes").glob("*.json")):
        for code, names in json.loads(path.read_text()).items():
            for name in [names] if isinstance(names, str) else names:
                found.setdefault(squeezed(name), set()).add(plain(code))
    # The names come last, since they outweigh a shortcode of another concept.
    found.update({squeezed(concept.name): {concept.code} for concept in known})
    return {name: min(codes) for name, codes in found.items() if len(codes) == 1}


def squeezed(name: str) -> str:
    """Letters and digits alone, which is what names in different spellings agree on."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("&", "and"))


def iconify(package: Path, codes: Mapping[str, str], variant: str = "") -> dict[str, str]:
    """The drawings of an Iconify package, by code points; of several the one numbered so."""
    document = json.loads((package / "icons.json").read_text())
    found: dict[str, str] = {}
    for name, icon in document["icons"].items():
        stem = re.sub("-[12]$", "", name)
        code = codes.get(squeezed(stem))
        if code and name.removeprefix(stem).replace("-1", "") == variant:
            width, height = (icon.get(side, document.get(side, 16)) for side in ("width", "height"))
            found[code] = (
                f'<svg xmlns="http://www.w3.org/2000/svg" '
                f'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}">'
                f"{icon['body'].replace('currentColor', 'black')}</svg>"
            )
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


def split(index: int, style: str) -> str | None:
    """Where the drawing of a concept goes; None where it is left out.

    Of what one chooses by, no other drawing by the same artists is trained on.
    """
    if style == TEST_STYLE:
        return "test"
    chosen = CHOOSE_STYLES[index // 10 % len(CHOOSE_STYLES)]
    if index % 10 or artists(style) != artists(chosen):
        return "train"
    return "choose" if style == chosen else None


def artists(style: str) -> str:
    """Whose a style is."""
    return style.partition("-")[0]


def plain(code: str) -> str:
    """Code points without the variation selector, which some write and some don't."""
    return "-".join(point for point in code.upper().split("-") if point != "FE0F")


def rendered(drawing: Drawing) -> bytes:
    """A drawing as PNG."""
    if isinstance(drawing, Path) and drawing.suffix == ".svg":
        drawing = drawing.read_text()
    if isinstance(drawing, str):
        data: Any = resvg_py.svg_to_bytes(svg_string=drawing, width=SIZE, height=SIZE)
        drawing = Image.open(io.BytesIO(bytes(data)))
    elif isinstance(drawing, Path):
        drawing = Image.open(drawing)
    with drawing as image:
        image = image.convert("RGBA")
        image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, "PNG")
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file that is the same whenever it is written."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
