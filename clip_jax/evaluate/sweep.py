"""The paper's search for the strength of the regularisation (Radford et al. 2021, appendix A.3)."""

import dataclasses
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from clip_jax.evaluate.checks import check_features, check_labels
from clip_jax.evaluate.logistic import Problem, Solution
from clip_jax.evaluate.probe import LinearProbe, check_parameters

# Powers of ten to begin with; then the interval around the best is halved until it is small.
FIRST = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
SMALLEST = 1 / 8


@dataclasses.dataclass(frozen=True)
class Trial:
    """One strength.

    Attributes:
        C: inverse strength of the regularisation.
        accuracy: on the validation rows.
        num_iterations: of the fit.
        gradient_norm: where it ended.
    """

    C: float
    accuracy: float
    num_iterations: int
    gradient_norm: float


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a search has found.

    Attributes:
        trials: in the order of C.
        best: the probe of the highest accuracy, fitted; among equals the strongest regularised.
    """

    trials: tuple[Trial, ...]
    best: LinearProbe


def sweep(
    features: Float[np.ndarray, "n d"],
    labels: Any,
    validation_features: Float[np.ndarray, "v d"],
    validation_labels: Any,
    *,
    max_iter: int = 1000,
    tol: float = 1e-4,
    dtype: Literal["float32", "float64"] = "float32",
    mesh: Mesh | None = None,
) -> Sweep:
    """Finds C on validation rows: 1e-6, 1e-4, ..., 1e6, then closer to the best.

    The interval around the best is halved down to 8 steps a decade: 15 fits at most. Each begins
    where the nearest one before has ended, on rows that are taken to the device once. Fits that
    don't converge count as they are; `Trial.gradient_norm` tells.

    Args:
        features: to fit.
        labels: of these, as for `LinearProbe.fit`.
        validation_features: to choose by.
        validation_labels: of these: the same classes, each in both.
        max_iter: as for `LinearProbe`.
        tol: likewise.
        dtype: likewise.
        mesh: likewise.

    Raises:
        ValueError: as `LinearProbe.fit`; or a class is missing from one of the two.
    """
    check_parameters(1.0, max_iter, tol, dtype)
    features = check_features(features, dtype)
    classes, targets = check_labels(labels, len(features))
    check_same_classes(labels, validation_labels)
    problem = Problem(features, targets, len(classes), dtype=dtype, mesh=mesh)
    found: dict[float, tuple[float, LinearProbe, Solution]] = {}

    def attempt(power: float) -> None:
        nearest = min(found, key=lambda other: abs(other - power), default=None)
        start = None if nearest is None else found[nearest][2].start
        solution = problem.solve(10.0**power, max_iter=max_iter, tol=tol, start=start)
        probe = LinearProbe(10.0**power, max_iter, tol, dtype=dtype, mesh=mesh)
        probe.take(solution, classes)
        found[power] = probe.score(validation_features, validation_labels), probe, solution

    def peak() -> float:
        return max(found, key=lambda power: (found[power][0], -power))

    for power in FIRST:
        attempt(power)
    step = FIRST[1] - FIRST[0]
    while step > SMALLEST:
        step, middle = step / 2, peak()
        for power in (middle - step, middle + step):
            if FIRST[0] <= power <= FIRST[-1] and power not in found:
                attempt(power)
    trials = (
        Trial(probe.C, accuracy, solution.num_iterations, solution.gradient_norm)
        for _, (accuracy, probe, solution) in sorted(found.items())
    )
    return Sweep(tuple(trials), found[peak()][1])


def check_same_classes(training: Any, validation: Any) -> None:
    """Refuses two splits of which one lacks a class of the other.

    Raises:
        ValueError: names the classes.
    """
    here, there = (set(np.asarray(labels).tolist()) for labels in (training, validation))
    for missing, where in ((there - here, "training"), (here - there, "validation")):
        if missing:
            names = sorted(map(str, missing))
            shown = ", ".join(names[:10]) + (" and more" if len(names) > 10 else "")
            raise ValueError(
                f"no {where} row has these labels: {shown}. Every class needs rows in both splits."
            )
