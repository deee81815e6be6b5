"""Makes a page of the site of each table in benchmarks/results; nothing is copied by hand."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


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
    lines = folded(path.read_text().splitlines())
    return "\n".join(lines) + f"\n\nThis page is `benchmarks/results/{path.name}`.\n"


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
