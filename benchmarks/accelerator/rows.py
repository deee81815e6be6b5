"""Rows of a run: appended to DIR/rows.jsonl and printed the moment they are known."""

import json
import os
from pathlib import Path
from typing import Any

NAME = "rows.jsonl"
# What became of a row. Only the first has a value.
OK, ERROR, NO_MEMORY, NOT_HERE, NOT_REACHED = (
    "ok",
    "error",
    "out of memory",
    "not here",
    "not reached",
)

Row = dict[str, Any]


class Rows:
    """The rows of a run on disk, written by any of its processes, one at a time."""

    def __init__(self, folder: str | os.PathLike[str]):
        """Looks at nothing yet.

        Args:
            folder: of the run; it is there.
        """
        self.path = Path(folder, NAME)

    def add(self, row: Row) -> None:
        """Writes a row so that nothing short of a broken disk can lose it, and prints it."""
        line = json.dumps(row) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if self._is_torn():  # by a process that was killed in the middle of a line
                line = "\n" + line
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        print(shown(row), flush=True)

    def read(self) -> list[Row]:
        """All rows so far, without a line that a killed process left unfinished."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        rows = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def _is_torn(self) -> bool:
        with open(self.path, "rb") as file:
            if not file.seek(0, os.SEEK_END):
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"


def name(row: Row) -> str:
    """What a row is of, in words."""
    size = f", {row['size_name']} {row['size']:,}" if row.get("size") is not None else ""
    return f"{row['what']}{size}"


def figure(row: Row) -> str:
    """A row's value with its unit, or what became of it."""
    if row["status"] != OK:
        note = f": {row['note']}" if row.get("note") else ""
        return f"{row['status']}{note}"
    value = row["value"]
    if value and abs(value) < 1e-2:
        number = f"{value:.1e}"
    else:
        number = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{number} {row['unit']}"


def ratio(row: Row) -> str:
    """How a row stands to what it was measured beside; empty for those measured alone."""
    if not row.get("ratio"):
        return ""
    number = f"{row['ratio']:.2f}" if row["ratio"] >= 0.1 else f"{row['ratio']:.1e}"
    return f"{number} x {row['beside']}"


def shown(row: Row) -> str:
    """One line for people."""
    cells = [row["section"], name(row), row["contender"], figure(row), ratio(row)]
    if row["status"] == OK:
        cells.append(row.get("note", ""))
    return " | ".join(cell for cell in cells if cell)
