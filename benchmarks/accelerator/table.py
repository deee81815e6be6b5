"""The table at the end of a run: Markdown, as benchmarks/results/ has it."""

from typing import Any

from benchmarks import report
from benchmarks.accelerator import defaults, machine
from benchmarks.accelerator.rows import Row, Rows, figure, name, ratio

NAME = "table.md"
_NOTES = """\
"On the device": inputs lie there and results stay there; "host to host": from arrays on the host
to arrays on the host. Ratios are speeds, medians of rounds in which the two took turns. Weights
are random, of trained scale; ours and PyTorch's are the same. Shares are of a bfloat16 product of
8192 cubed, measured beside each row; benchmarks/accelerator/flops.py has the formula for FLOPs."""
_TINY = """\
**Tiny models: none of these figures says anything, but that the program runs.**"""


def write(rows: Rows, found: dict[str, Any], *, tiny: bool = False) -> None:
    """Prints the table of a run so far, and writes it beside the rows.

    Args:
        rows: of the run.
        found: the machine, as `machine.look` gives it.
        tiny: whether the models were.
    """
    report.write(rows.path.parent / NAME, text(rows.read(), found, tiny=tiny))


def text(rows: list[Row], found: dict[str, Any], *, tiny: bool = False) -> str:
    """The table as Markdown."""
    parts = ["# Accelerator", report.header(machine.card(found)), _TINY if tiny else _NOTES]
    parts += ["## Figures to reach", defaults.figures_to_reach(rows)]
    parts += ["## What the rows argue for", defaults.lines(rows)]
    for section in dict.fromkeys(row["section"] for row in rows):
        parts += [f"## {section}", _section([row for row in rows if row["section"] == section])]
    return "\n\n".join(parts)


def _section(rows: list[Row]) -> str:
    order = list(dict.fromkeys(name(row) for row in rows))
    rows = sorted(rows, key=lambda row: order.index(name(row)))
    cells, before = [], None
    for row in rows:
        what = name(row) if name(row) != before else ""
        before = name(row)
        note = row.get("note", "") if row["status"] == "ok" else ""
        if row.get("share"):
            note = ", ".join(filter(None, [f"{row['share']:.0%} of the peak", note]))
        cells.append((what, row["contender"], figure(row), ratio(row), note))
    return report.table(cells, ("what", "contender", "measured", "against", "notes"))
