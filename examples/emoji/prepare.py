"""Fetches the drawings and names of emoji and writes them as image-text pairs.

    python examples/emoji/prepare.py DIR

Writes DIR/train.tar, DIR/choose.tar and DIR/test.tar (WebDataset: a PNG and a JSON with captions),
and DIR/drawings.csv, a table of all of them. Needs npm, and pip install 'clip-jax-flax[emoji]'.

Every tenth concept is drawn in choose.tar in one of the training styles, and in train.tar in none
by the same artists: that is what to choose a recipe by. The drawings of test.tar are another
artist's and for the last measurement only.
"""

import argparse
import contextlib
import csv
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from drawings import (
    Drawing,
    by_code,
    datasource,
    fluent,
    glyphs,
    iconify,
    penned,
    rendered,
    tinted,
)
from names import Concept, codes_by_name, concepts
from packages import ICONS, LINE_ICONS, PACKAGES, VARIANTS, fetch
from tqdm import tqdm

FLUENT = ("flat", "modern", "high-contrast")
CHOOSE_STYLES = ("google", "twitter", *(f"fluent-{kind}" for kind in FLUENT))
TEST_STYLE = "openmoji"
SPLITS = ("train", "choose", "test")


def main() -> None:
    """Fetches, renders and writes."""
    parser = argparse.ArgumentParser(description="Write emoji as image-text pairs.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where everything goes")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    packages = {name: fetch(package, folder) for name, package in (PACKAGES | ICONS).items()}
    known = concepts(packages["names"])
    styles = drawings_by_style(packages, known, codes_by_name(packages["names"], known))
    rows = [
        (name, style, concept, drawings[code])
        for i, concept in enumerate(known)
        for style, drawings in styles.items()
        if (code := concept.code) in drawings and (name := split(i, style))
    ]
    with contextlib.ExitStack() as stack:
        tars = {
            name: stack.enter_context(tarfile.open(folder / f"{name}.tar", "w")) for name in SPLITS
        }
        file = stack.enter_context(open(folder / "drawings.csv", "w", newline=""))
        table = csv.writer(file)
        table.writerow(["key", "split", "style", "code", "name", "is_base"])
        for name, style, concept, drawing in tqdm(rows, unit="drawing", mininterval=1):
            key = f"{style}/{concept.code}"
            table.writerow([key, name, style, concept.code, concept.name, int(concept.is_base)])
            captions = {"captions": concept.captions}
            add(tars[name], f"{key}.png", rendered(drawing))
            add(tars[name], f"{key}.json", json.dumps(captions, ensure_ascii=False).encode())
    for name in SPLITS:
        of = [row for row in rows if row[0] == name]
        print(f"{name}.tar: {len(of):,} drawings of {len({row[2].code for row in of}):,} concepts")


def drawings_by_style(
    packages: Mapping[str, Path], known: list[Concept], codes: Mapping[str, str]
) -> dict[str, Mapping[str, Drawing]]:
    """The styles, and in each the drawings by code points."""
    google, google_2017, twitter, emojitwo, fxemoji = (
        iconify(packages[name], codes)
        for name in ("google-svg", "google-2017-svg", "twitter-svg", "emojitwo", "fxemoji")
    )
    flat, modern, high_contrast = (fluent(packages["fluent"], kind, known) for kind in FLUENT)
    lines = packages["google-lines"] / "files" / "noto-emoji-emoji-400-normal.woff2"
    styles = {
        "google": datasource(packages["google"], "google"),
        "google-2017": datasource(packages["google-2017"], "google"),
        "google-lines": glyphs(lines, known),
        "twitter": datasource(packages["twitter"], "twitter"),
        "fluent-flat": flat,
        "fluent-modern": modern,
        "fluent-high-contrast": high_contrast,
        "fluent-3d": by_code(packages["fluent-3d"] / "assets", "*.webp"),
        "emojitwo": emojitwo,
        "emojitwo-lines": iconify(packages["emojitwo-lines"], codes),
        "fxemoji": fxemoji,
        "streamline": iconify(packages["streamline"], codes),
        "streamline-2": iconify(packages["streamline"], codes, variant="2"),
        TEST_STYLE: by_code(packages["openmoji"] / "color" / "svg", "*.svg"),
    }
    for name in ICONS:
        for variant in VARIANTS.get(name, ("1",)):
            styles[f"{name}-{variant}"] = iconify(packages[name], codes, variant)
    vectors = {
        "google": google,
        "google-2017": google_2017,
        "twitter": twitter,
        "fluent": flat,
        "emojitwo": emojitwo,
        "fxemoji": fxemoji,
    }
    for name, drawings in vectors.items():
        styles[f"{name}-penned"] = penned(drawings)
        styles[f"{name}-white"] = penned(drawings, fill="#fff")
    for name in ("google-lines", "emojitwo-lines", "fluent-high-contrast", *LINE_ICONS):
        styles[f"{name}-tinted"] = tinted(styles[name])
    return styles


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


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file that is the same whenever it is written."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
