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
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from drawings import Drawing, by_code, datasource, fluent, glyphs, iconify, penned, rendered
from names import Concept, codes_by_name, concepts
from tqdm import tqdm

PACKAGES = {
    "google": "emoji-datasource-google@16.0.0",  # Noto Emoji: Apache-2.0
    "google-svg": "@iconify-json/noto@1.2.9",  # the same
    "google-2017": "emoji-datasource-google@3.0.0",  # as it was until 2017: Apache-2.0
    "google-2017-svg": "@iconify-json/noto-v1@1.2.5",  # the same
    "google-lines": "@fontsource/noto-emoji@5.3.2",  # Noto Emoji as lines: OFL-1.1
    "twitter": "emoji-datasource-twitter@16.0.0",  # Twemoji: CC-BY 4.0
    "twitter-svg": "@iconify-json/twemoji@1.2.5",  # the same
    "fluent": "fluentui-emoji@1.3.0",  # MIT
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",  # MIT
    "emojitwo": "@iconify-json/emojione@1.2.3",  # EmojiTwo, once EmojiOne 2: CC-BY 4.0
    "emojitwo-lines": "@iconify-json/emojione-monotone@1.2.1",  # the same as lines: CC-BY 4.0
    "fxemoji": "@iconify-json/fxemoji@1.2.2",  # of Firefox OS: Apache-2.0
    "streamline": "@iconify-json/streamline-emojis@1.2.4",  # CC-BY 4.0
    "openmoji": "openmoji@17.0.0",  # CC-BY-SA 4.0: measured with, never trained on
    "names": "emojibase-data@17.0.0",  # names and keywords: MIT
}
# Icons of what there are emoji of, too. A style is a package and a variant in it.
ICONS = {
    "fa7": "@iconify-json/fa7-solid@1.2.5",  # Font Awesome: CC-BY 4.0
    "game-icons": "@iconify-json/game-icons@1.2.4",  # CC-BY 3.0
    "hugeicons": "@iconify-json/hugeicons@1.2.35",  # MIT
    "icon-park": "@iconify-json/icon-park@1.2.4",  # Apache-2.0
    "lucide": "@iconify-json/lucide@1.2.137",  # ISC
    "mdi": "@iconify-json/mdi@1.2.3",  # Apache-2.0
    "mingcute": "@iconify-json/mingcute@1.2.8",  # Apache-2.0
    "ph": "@iconify-json/ph@1.2.2",  # Phosphor: MIT
    "tabler": "@iconify-json/tabler@1.2.41",  # MIT
    "streamline-color": "@iconify-json/streamline-color@1.2.2",  # CC-BY 4.0
    "streamline-cyber": "@iconify-json/streamline-cyber-color@1.2.2",  # CC-BY 4.0
    "streamline-plump": "@iconify-json/streamline-plump-color@1.2.2",  # CC-BY 4.0
}
VARIANTS = {"mdi": ("1", "outline"), "mingcute": ("line", "fill"), "ph": ("1", "fill")}
FLUENT = ("flat", "modern", "high-contrast")
CHOOSE_STYLES = ("google", "twitter", *(f"fluent-{kind}" for kind in FLUENT))
TEST_STYLE = "openmoji"


def main() -> None:
    """Fetches, renders and writes."""
    parser = argparse.ArgumentParser(description="Write emoji as image-text pairs.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where everything goes")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    packages = {name: fetch(package, folder) for name, package in (PACKAGES | ICONS).items()}
    known = concepts(packages["names"])
    styles = drawings_by_style(packages, known)
    rows = [
        (name, style, concept, drawings[concept.code])
        for i, concept in enumerate(known)
        for style, drawings in styles.items()
        if concept.code in drawings and (name := split(i, style))
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


def drawings_by_style(
    packages: Mapping[str, Path], known: list[Concept]
) -> dict[str, Mapping[str, Drawing]]:
    """All styles, and in each the drawings by their code points."""
    codes = codes_by_name(packages["names"], known)
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
        **{
            f"{name}-{variant}": iconify(packages[name], codes, variant)
            for name in ICONS
            for variant in VARIANTS.get(name, ("1",))
        },
        TEST_STYLE: by_code(packages["openmoji"] / "color" / "svg", "*.svg"),
    }


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
