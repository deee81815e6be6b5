"""Makes the pictures of the page walk.md by running the page's own code.

    python -m docs.walk [FOLDER]

FOLDER is where the pictures go; docs/pictures, which the page shows, unless it is given.
"""

import contextlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "walk.md"
PICTURES = DOCS / "pictures"


def blocks(page: Path = PAGE) -> list[tuple[str, str | None]]:
    """The Python code of a page, each with the output that the page says it has."""
    fence = re.compile(r"^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```\n)?", re.M | re.S)
    return [(found[1], found[2]) for found in fence.finditer(page.read_text(encoding="utf-8"))]


def make(target: Path) -> None:
    """Runs the page in a folder of its own, and puts the pictures that it draws into `target`."""
    import matplotlib

    matplotlib.use("Agg")
    target = target.resolve()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.symlink(DOCS.parent / "examples", "examples")
        namespace: dict[str, object] = {}
        for code, _ in blocks():
            exec(compile(code, str(PAGE), "exec"), namespace)
        for picture in Path().glob("*.webp"):
            shutil.copy(picture, target)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES)
