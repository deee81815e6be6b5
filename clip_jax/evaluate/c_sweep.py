"""The paper's search for the strength of the regularisation (Radford et al. 2021, appendix A.3)."""

import dataclasses
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from clip_jax.evaluate.checks import check_features, check_labels, number_labels
from clip_jax.evaluate.linear_probe import LinearProbe, check_parameters
from clip_jax.evaluate.logistic import Problem, Solution
from clip_jax.messages import some

# The powers of ten that are tried first, and the smallest step between two powers.
FIRST = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
SMALLEST = 1 / 8


@dataclasses.dataclass(frozen=True)
class Trial:
    """The result of one C.

    Attributes:
        C: inverse strength of the regularisation.
        accuracy: the share of validation rows whose label is predicted.
        mean_per_class: the mean of the classes' accuracies on the validation rows.
        num_iterations: of the fit.
        gradient_norm: the largest entry of the gradient at the end of the fit.
    """

    C: float
    accuracy: float
    mean_per_class: float
    num_iterations: int
    gradient_norm: float


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The result of a search for C.

    Attributes:
        trials: one for each C that was tried, in ascending order of C.
        best: the fitted probe with the highest accuracy; of several, the one with the smallest C.
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
    """Searches for the C with the highest accuracy on validation rows.

    Tries 1e-6, 1e-4, ..., 1e6, then halves the step around the best C until it is an eighth of a
    decade: at most 15 fits. The rows are put on the device once, and each fit starts from the
    solution for the nearest C. A fit that doesn't converge is used as it is;
    `Trial.gradient_norm` shows it.

    Example:
        >>> import numpy as np
        >>> features, labels = np.arange(8.0)[:, None], np.repeat(["a", "b"], 4)
        >>> found = sweep(features[::2], labels[::2], features[1::2], labels[1::2])
        >>> found.best.predict([[0.0], [7.0]]).tolist()
        ['a', 'b']

    Args:
        features: (n, d) rows to fit to.
        labels: (n,) their labels, as for `LinearProbe.fit`.
        validation_features: (v, d) rows to compare the fits on.
        validation_labels: (v,) their labels. Every class must be in both sets of labels.
        max_iter: as for `LinearProbe`.
        tol: as for `LinearProbe`.
        dtype: as for `LinearProbe`.
        mesh: as for `LinearProbe`.

    Raises:
        ValueError: as `LinearProbe.fit`; or a class is in only one set of labels.
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
        probe.set_solution(solution, classes)
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
    """Checks that each of the other labels is one of the training labels.

    Raises:
        ValueError: some are not; names them.
    """
    if missing := set(np.asarray(other).tolist()) - set(np.asarray(training).tolist()):
        names = sorted(map(str, missing))
        raise ValueError(
            f"no {where} row has these labels: {some(names)}. "
            "Every class needs rows in both splits."
        )
