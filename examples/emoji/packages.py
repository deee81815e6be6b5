"""Which npm packages have the drawings, icons and names, and how they are fetched."""

import shutil
import subprocess
import tarfile
from pathlib import Path

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
    "bi": "@iconify-json/bi@1.2.7",  # Bootstrap Icons: MIT
    "boxicons": "@iconify-json/boxicons@1.2.0",  # MIT
    "fa7": "@iconify-json/fa7-solid@1.2.5",  # Font Awesome: CC-BY 4.0
    "fontisto": "@iconify-json/fontisto@1.2.1",  # MIT
    "game-icons": "@iconify-json/game-icons@1.2.4",  # CC-BY 3.0
    "griddy": "@iconify-json/griddy-icons@1.2.0",  # MIT
    "healthicons": "@iconify-json/healthicons@1.2.13",  # MIT
    "hugeicons": "@iconify-json/hugeicons@1.2.35",  # MIT
    "icon-park": "@iconify-json/icon-park@1.2.4",  # Apache-2.0
    "icon-park-twotone": "@iconify-json/icon-park-twotone@1.2.4",  # Apache-2.0
    "iconoir": "@iconify-json/iconoir@1.2.11",  # MIT
    "ion": "@iconify-json/ion@1.2.7",  # IonIcons: MIT
    "la": "@iconify-json/la@1.2.1",  # Line Awesome: Apache-2.0
    "lineicons": "@iconify-json/lineicons@1.2.6",  # MIT
    "lucide": "@iconify-json/lucide@1.2.137",  # ISC
    "mdi": "@iconify-json/mdi@1.2.3",  # Apache-2.0
    "mingcute": "@iconify-json/mingcute@1.2.8",  # Apache-2.0
    "mynaui": "@iconify-json/mynaui@1.2.19",  # MIT
    "pepicons": "@iconify-json/pepicons-pop@1.2.4",  # CC-BY 4.0
    "ph": "@iconify-json/ph@1.2.2",  # Phosphor: MIT
    "picon": "@iconify-json/picon@1.2.0",  # OFL-1.1
    "pinhead": "@iconify-json/pinhead@1.2.28",  # CC0
    "ri": "@iconify-json/ri@1.2.10",  # Remix Icon: Apache-2.0
    "solar": "@iconify-json/solar@1.2.13",  # CC-BY 4.0
    "streamline-color": "@iconify-json/streamline-color@1.2.2",  # CC-BY 4.0
    "streamline-core": "@iconify-json/streamline@1.2.5",  # CC-BY 4.0
    "streamline-cyber": "@iconify-json/streamline-cyber-color@1.2.2",  # CC-BY 4.0
    "streamline-flex": "@iconify-json/streamline-flex-color@1.2.2",  # CC-BY 4.0
    "streamline-kameleon": "@iconify-json/streamline-kameleon-color@1.2.2",  # CC-BY 4.0
    "streamline-plump": "@iconify-json/streamline-plump-color@1.2.2",  # CC-BY 4.0
    "tabler": "@iconify-json/tabler@1.2.41",  # MIT
    "tdesign": "@iconify-json/tdesign@1.2.19",  # MIT
    "temaki": "@iconify-json/temaki@1.2.6",  # CC0
    "uil": "@iconify-json/uil@1.2.3",  # Unicons: Apache-2.0
    "vaadin": "@iconify-json/vaadin@1.2.1",  # Apache-2.0
    "whh": "@iconify-json/whh@1.2.0",  # WebHostingHub Glyphs: OFL-1.1
}
VARIANTS = {
    "bi": ("1", "fill"),
    "mdi": ("1", "outline"),
    "mingcute": ("line", "fill"),
    "ph": ("1", "fill"),
    "ri": ("line", "fill"),
    "solar": ("outline",),
}
# Icons drawn as lines, which have an inside.
LINE_ICONS = (
    *("bi-1", "boxicons-1", "griddy-1", "hugeicons-1", "iconoir-1", "la-1", "lucide-1"),
    *("mingcute-line", "mynaui-1", "ph-1", "ri-line", "solar-outline", "streamline-core-1"),
    *("tabler-1", "tdesign-1", "uil-1"),
)


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
