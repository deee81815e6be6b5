"""Contenders taking turns in one process, on the same inputs."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

ROUNDS = 5
# Seconds of a turn, about; without any, a turn is one call.
TURN = 0.3
# What makes `take_turns` short where nobody will look at the figures.
TINY = {"rounds": 1, "turn": 0.0}


@dataclasses.dataclass
class Contender:
    """Something that embeds rows, again and again.

    Attributes:
        name: of its row.
        run: embeds its rows that many times, and waits for the last one.
        rows: of a call.
        features: some of what it gives; None where there is nothing to compare.
        compile_seconds: how long it took to be made, where something is compiled.
    """

    name: str
    run: Callable[[int], Any]
    rows: int
    features: np.ndarray | None = None
    compile_seconds: float | None = None


def take_turns(
    contenders: Sequence[Contender], *, rounds: int = ROUNDS, turn: float = TURN
) -> list[list[float]]:
    """Seconds of a call of each, round by round; warmed up, and each first as often as last."""
    calls = []
    for contender in contenders:
        contender.run(1)
        if not turn:
            calls.append(1)
            continue
        begin = time.perf_counter()
        contender.run(1)
        calls.append(max(1, min(200, round(turn / (time.perf_counter() - begin)))))
    taken: list[list[float]] = [[] for _ in contenders]
    for number in range(rounds):
        order = range(len(contenders))
        for i in reversed(order) if number % 2 else order:
            begin = time.perf_counter()
            contenders[i].run(calls[i])
            taken[i].append((time.perf_counter() - begin) / calls[i])
    return taken


def alone(contender: Contender, unit: str, **options: Any) -> dict[str, Any]:
    """The row of a contender that others are measured beside."""
    (taken,) = take_turns([contender], **options)
    return _row(contender, taken, unit)


def beside(base: Contender, contender: Contender, unit: str, **options: Any) -> dict[str, Any]:
    """The row of a contender measured beside another: the ratio is that of their speeds."""
    theirs, taken = take_turns([base, contender], **options)
    ratios = [
        (contender.rows / own) / (base.rows / other)
        for own, other in zip(taken, theirs, strict=True)
    ]
    row = _row(contender, taken, unit)
    row |= {
        "ratio": statistics.median(ratios),
        "beside": base.name,
        "beside_value": base.rows / statistics.median(theirs),
    }
    if base.features is not None and contender.features is not None:
        count = min(len(base.features), len(contender.features))
        row["difference"] = relative_error(contender.features[:count], base.features[:count])
        row["note"] = ", ".join(filter(None, [row["note"], f"differs {row['difference']:.0e}"]))
    return row


def relative_error(given: Any, expected: Any) -> float:
    """L2 of the difference over L2 of what is expected, in float64; NaN stays NaN."""
    given, expected = np.asarray(given, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(given - expected) / np.linalg.norm(expected))


def _row(contender: Contender, taken: list[float], unit: str) -> dict[str, Any]:
    rates = [contender.rows / seconds for seconds in taken]
    row: dict[str, Any] = {
        "value": contender.rows / statistics.median(taken),
        "unit": unit,
        "lowest": min(rates),
        "highest": max(rates),
        "note": "",
    }
    if contender.compile_seconds is not None:
        row["compile_seconds"] = round(contender.compile_seconds, 2)
        row["note"] = f"compiled in {contender.compile_seconds:.1f} s"
    return row
