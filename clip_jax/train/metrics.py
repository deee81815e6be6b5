"""The metrics of a run: a file of JSON lines, and a plot at the end."""

import json
from pathlib import Path
from typing import Any

import jax

from clip_jax.storage import storage

FILE, PLOT = "metrics.jsonl", "training.png"
# Up to so many lines, the plot has a point for each: of one alone there is nothing else to see.
FEW = 40


class Metrics:
    """The file of a run's metrics, which a resumed run appends to.

    Only the first of several processes writes.
    """

    def __init__(self, folder: Path, step: int):
        """Opens the file.

        Args:
            folder: the folder of the run.
            step: the step that the run resumes from. Records of later steps, from a run that was
                killed before its next checkpoint, are dropped.
        """
        self._path = folder / FILE
        self.records: list[dict[str, Any]] = []
        if jax.process_index() != 0:
            return
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            self.records = [r for r in map(_parsed, lines) if r and r["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in self.records)
        storage(self._path).write(str(self._path), text.encode())

    def add(self, record: dict[str, Any]) -> None:
        """Appends a line to the file at once."""
        if jax.process_index() != 0:
            return
        self.records.append(record)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def plot(self) -> None:
        """Plots loss, accuracy and learning rate over the steps, if matplotlib is installed."""
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError:
            return
        steps = [record["step"] for record in self.records]
        figure = Figure(figsize=(8, 7), layout="constrained")
        panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))
        for panel, name, label in zip(
            panels,
            ("loss", "accuracy", "learning_rate"),
            ("loss, nats", "own text nearest\nin the batch", "learning rate"),
            strict=True,
        ):
            values = [record[name] for record in self.records]
            panel.plot(steps, values, color="#d1495b", marker="o" if len(steps) <= FEW else "")
            panel.set_ylabel(label)
            panel.grid(alpha=0.3)
        panels[0].set_ylim(bottom=0)
        panels[1].set_ylim(0, 1)
        panels[-1].set_xlabel("step")
        figure.savefig(self._path.with_name(PLOT), dpi=110)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # a partial line of a run killed while writing
        return None
    is_one = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if is_one else None
