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
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image
from tqdm import tqdm

PACKAGES = {
    "emoji-datasource-google": "16.0.0",  # Noto Emoji: Apache-2.0
    "emoji-datasource-twitter": "16.0.0",  # Twemoji: CC-BY 4.0
    "fluentui-emoji": "1.3.0",  # MIT
    "openmoji": "17.0.0",  # CC-BY-SA 4.0: measured with, never trained on
    "emojibase-data": "17.0.0",  # names and keywords: MIT
}
FLUENT = ("flat", "modern", "high-contrast")
STYLES = ("google", "twitter", *(f"fluent-{kind}" for kind in FLUENT))
TEST_STYLE = "openmoji"
COMPONENTS, FLAGS = 2, 9  # groups of Unicode's; components are skin tones and hair
SIZE = 96  # of what is rendered; the others are 64 pixels a side


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
    packages = {name: fetch(name, version, folder) for name, version in PACKAGES.items()}

    known = concepts(packages["emojibase-data"])
    sources = {
        **{style: datasource(packages[f"emoji-datasource-{style}"], style) for style in STYLES[:2]},
        **{f"fluent-{kind}": fluent(packages["fluentui-emoji"], kind, known) for kind in FLUENT},
        TEST_STYLE: openmoji(packages["openmoji"]),
    }
    rows = [
        (split(i, style), style, concept, sources[style][concept.code])
        for i, concept in enumerate(known)
        for style in (*STYLES, TEST_STYLE)
        if concept.code in sources[style]
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
        for name, style, concept, path in tqdm(rows, unit="drawing", mininterval=1):
            key = f"{style}/{concept.code}"
            table.writerow([key, name, style, concept.code, concept.name, int(concept.is_base)])
            captions = {"captions": concept.captions}
            add(tars[name], f"{key}.png", drawing(path))
            add(tars[name], f"{key}.json", json.dumps(captions, ensure_ascii=False).encode())
    for name in tars:
        of = [row for row in rows if row[0] == name]
        print(f"{name}.tar: {len(of):,} drawings of {len({row[2].code for row in of}):,} concepts")


def fetch(name: str, version: str, folder: Path) -> Path:
    """Unpacks a package of the npm registry, once, and says where."""
    target = folder / "npm" / f"{name}-{version}"
    if not target.is_dir():
        aside = target.with_suffix(".part")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        print(f"fetching {name} {version} ...", flush=True)
        subprocess.run(
            ["npm", "pack", "--silent", f"{name}@{version}"],
            cwd=aside,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with tarfile.open(aside / f"{name}-{version}.tgz") as tar:
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
    by_code: dict[str, Path] = {}
    for concept in known:
        slug = re.sub(r"[^a-z0-9]+", "-", concept.name.lower().replace("’", "")).strip("-")
        for stem in (slug, f"{slug}-default"):
            if stem in found:
                by_code[concept.code] = found[stem]
    return by_code


def openmoji(package: Path) -> dict[str, Path]:
    """The drawings to test with, by their code points."""
    return {plain(path.stem): path for path in sorted((package / "color" / "svg").glob("*.svg"))}


def split(index: int, style: str) -> str:
    """Where the drawing of a concept goes."""
    if style == TEST_STYLE:
        return "test"
    is_chosen = index % 10 == 0 and STYLES[index // 10 % len(STYLES)] == style
    return "choose" if is_chosen else "train"


def plain(code: str) -> str:
    """Code points without the variation selector, which some write and some don't."""
    return "-".join(point for point in code.upper().split("-") if point != "FE0F")


def drawing(path: Path) -> bytes:
    """A file as PNG."""
    if path.suffix == ".svg":
        data: Any = resvg_py.svg_to_bytes(svg_path=str(path), width=SIZE, height=SIZE)
    else:
        data = path.read_bytes()
    with Image.open(io.BytesIO(bytes(data))) as image:
        file = io.BytesIO()
        image.convert("RGBA").save(file, "PNG")
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file that is the same whenever it is written."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
