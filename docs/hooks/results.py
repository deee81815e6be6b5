"""Makes a page of the site of each table in benchmarks/results; nothing is copied by hand.

What is left out is what a table says about our own targets: the section "Figures to reach" and the
columns that say what was aimed at. Every figure of it stands in the tables that follow.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TARGETS = {"asked for", "reach", "reached"}


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each Markdown file of results, and the pictures beside them."""
    for path in sorted(RESULTS.glob("*.md")):
        files.append(File.generated(config, f"benchmarks/{path.name}", content=page(path)))
    for path in sorted(RESULTS.glob("*.png")):
        files.append(
            File.generated(config, f"benchmarks/{path.name}", abs_src_path=str(path.resolve()))
        )
    return files


def page(path: Path) -> str:
    """The page of one file of results."""
    text = re.sub(r"^## Figures to reach\n.*?(?=^## )", "", path.read_text(), flags=re.M | re.S)
    text = text.replace("Asked for: ", "Tolerances: ")
    lines: list[str] = []
    table: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append(line)
            continue
        lines += without_targets(table)
        table = []
        lines.append(line)
    return "\n".join(folded(lines)) + f"\nThis page is `benchmarks/results/{path.name}`.\n"


def without_targets(table: list[str]) -> list[str]:
    """A table's lines without the columns that say what was aimed at."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table]
    kept = [i for i, name in enumerate(rows[0]) if name not in TARGETS] if rows else []
    return ["| " + " | ".join(row[i] for i in kept) + " |" for row in rows]


def folded(lines: list[str]) -> list[str]:
    """The page with the list that it begins with, of hardware and versions, to be opened."""
    begin = next((i for i, line in enumerate(lines) if line.startswith("- Date: ")), None)
    if begin is None:
        return lines
    end = begin
    while end < len(lines) and (not lines[end] or lines[end].startswith("- ")):
        end += 1
    inside = [f"    {line}" if line else "" for line in lines[begin:end]]
    return [*lines[:begin], '??? info "Hardware, versions, commands"', "", *inside, *lines[end:]]
