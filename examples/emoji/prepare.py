"""Fetches the drawings and names of emoji and writes them as image-text pairs.

    python examples/emoji/prepare.py DIR

Writes DIR/train.tar, DIR/more.tar, DIR/choose.tar and DIR/test.tar (WebDataset: a PNG and a JSON
with captions), and DIR/drawings.csv, a table of all of them. Needs npm, and
pip install 'clip-jax-flax[emoji]'.

train.tar is for the first training, more.tar for the second, which sees both. Every tenth concept
is drawn in choose.tar in one of the training styles, which that concept has in neither of them:
that is what to choose a recipe by. The drawings of test.tar are another artist's and for the last
measurement only.
"""

import argparse
import contextlib
import csv
import io
import json
import tarfile
from collections.abc import Collection, Mapping
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
from packages import ICONS, LINE_ICONS, MORE_ICONS, PACKAGES, VARIANTS, fetch
from tqdm import tqdm

FLUENT = ("flat", "modern", "high-contrast")
CHOOSE_STYLES = ("google", "twitter", *(f"fluent-{kind}" for kind in FLUENT))
TEST_STYLE = "openmoji"
SPLITS = ("train", "more", "choose", "test")


def main() -> None:
    """Fetches, renders and writes."""
    parser = argparse.ArgumentParser(description="Write emoji as image-text pairs.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where everything goes")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    packages = {
        name: fetch(package, folder) for name, package in (PACKAGES | ICONS | MORE_ICONS).items()
    }
    known = concepts(packages["names"])
    codes = codes_by_name(packages["names"], known)
    styles = drawings_by_style(packages, known, codes)
    more = more_by_style(packages, codes, styles)
    rows = [
        ("more" if name == "train" and style in more else name, style, concept, drawings[code])
        for i, concept in enumerate(known)
        for style, drawings in (styles | more).items()
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
    """The styles of the first training and of the test, and in each the drawings by code points."""
    google, google_2017, twitter, emojitwo, fxemoji = (
        iconify(packages[name], codes)
        for name in ("google-svg", "google-2017-svg", "twitter-svg", "emojitwo", "fxemoji")
    )
    flat, modern, high_contrast = (fluent(packages["fluent"], kind, known) for kind in FLUENT)
    lines = packages["google-lines"] / "files" / "noto-emoji-emoji-400-normal.woff2"
    return {
        "google": datasource(packages["google"], "google"),
        "google-2017": datasource(packages["google-2017"], "google"),
        "google-lines": glyphs(lines, known),
        "google-penned": penned(google),
        "google-2017-penned": penned(google_2017),
        "google-2017-white": penned(google_2017, fill="#fff"),
        "twitter": datasource(packages["twitter"], "twitter"),
        "twitter-penned": penned(twitter),
        "twitter-white": penned(twitter, fill="#fff"),
        "fluent-flat": flat,
        "fluent-modern": modern,
        "fluent-high-contrast": high_contrast,
        "fluent-3d": by_code(packages["fluent-3d"] / "assets", "*.webp"),
        "fluent-penned": penned(flat),
        "fluent-white": penned(flat, fill="#fff"),
        "emojitwo": emojitwo,
        "emojitwo-lines": iconify(packages["emojitwo-lines"], codes),
        "emojitwo-penned": penned(emojitwo),
        "fxemoji": fxemoji,
        "fxemoji-penned": penned(fxemoji),
        "streamline": iconify(packages["streamline"], codes),
        "streamline-2": iconify(packages["streamline"], codes, variant="2"),
        **icons(ICONS, packages, codes),
        TEST_STYLE: by_code(packages["openmoji"] / "color" / "svg", "*.svg"),
    }


def more_by_style(
    packages: Mapping[str, Path],
    codes: Mapping[str, str],
    styles: Mapping[str, Mapping[str, Drawing]],
) -> dict[str, Mapping[str, Drawing]]:
    """The styles that the second training sees besides, some of them made of the first's."""
    more = icons(MORE_ICONS, packages, codes)
    lines = ("google-lines", "emojitwo-lines", "fluent-high-contrast", *LINE_ICONS)
    vectors = {"google": "google-svg", "emojitwo": "emojitwo", "fxemoji": "fxemoji"}
    return {
        **{
            f"{style}-white": penned(iconify(packages[name], codes), fill="#fff")
            for style, name in vectors.items()
        },
        **more,
        **{f"{style}-tinted": tinted({**styles, **more}[style]) for style in lines},
    }


def icons(
    names: Collection[str], packages: Mapping[str, Path], codes: Mapping[str, str]
) -> dict[str, Mapping[str, Drawing]]:
    """The styles of icon packages."""
    return {
        f"{name}-{variant}": iconify(packages[name], codes, variant)
        for name in names
        for variant in VARIANTS.get(name, ("1",))
    }


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
