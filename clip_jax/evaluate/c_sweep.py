"""The paper's search for the strength of the regularisation (Radford et al. 2021, appendix A.3)."""

import dataclasses
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from clip_jax.evaluate.checks import check_features, check_labels, number_labels
from clip_jax.evaluate.logistic import Problem, Solution
from clip_jax.evaluate.probe import LinearProbe, check_parameters
from clip_jax.messages import some

# Powers of ten to begin with; then the interval around the best is halved until it is small.
FIRST = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
SMALLEST = 1 / 8


@dataclasses.dataclass(frozen=True)
class Trial:
    """One strength.

    Attributes:
        C: inverse strength of the regularisation.
        accuracy: on the validation rows.
        mean_per_class: likewise, the mean of the classes' accuracies.
        num_iterations: of the fit.
        gradient_norm: where it ended.
    """

    C: float
    accuracy: float
    mean_per_class: float
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
    labels = check_labels(labels, len(features))
    classes, targets = number_labels(labels)
    expected = check_labels(validation_labels, len(validation_features))
    check_known(labels, expected)
    check_known(expected, labels, "validation")
    numbers = np.unique(expected, return_inverse=True)[1]
    problem = Problem(features, targets, len(classes), dtype=dtype, mesh=mesh)
    found: dict[float, tuple[Trial, LinearProbe, Solution]] = {}

    def attempt(power: float) -> None:
        nearest = min(found, key=lambda other: abs(other - power), default=None)
        start = None if nearest is None else found[nearest][2].start
        solution = problem.solve(10.0**power, max_iter=max_iter, tol=tol, start=start)
        probe = LinearProbe(10.0**power, max_iter, tol, dtype=dtype, mesh=mesh)
        probe.take(solution, classes)
        is_right = probe.predict(validation_features) == expected
        per_class = float(np.mean(np.bincount(numbers, is_right) / np.bincount(numbers)))
        trial = Trial(
            probe.C,
            float(is_right.mean()),
            per_class,
            solution.num_iterations,
            solution.gradient_norm,
        )
        found[power] = trial, probe, solution

    def peak() -> float:
        return max(found, key=lambda power: (found[power][0].accuracy, -power))

    for power in FIRST:
        attempt(power)
    step = FIRST[1] - FIRST[0]
    while step > SMALLEST:
        step, middle = step / 2, peak()
        for power in (middle - step, middle + step):
            if FIRST[0] <= power <= FIRST[-1] and power not in found:
                attempt(power)
    trials = tuple(found[power][0] for power in sorted(found))
    return Sweep(trials, found[peak()][1])


def check_known(training: Any, other: Any, where: str = "training") -> None:
    """Refuses labels that no training row has.

    Raises:
        ValueError: names the classes.
    """
    if missing := set(np.asarray(other).tolist()) - set(np.asarray(training).tolist()):
        names = sorted(map(str, missing))
        raise ValueError(
            f"no {where} row has these labels: {some(names)}. "
            "Every class needs rows in both splits."
        )
