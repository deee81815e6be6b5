"""Logistic regression by L-BFGS on the device: the objective of scikit-learn, full batch.

Three things make it quick. The logits are linear in the coefficients, so a step along a line costs
no product with the features: each iteration reads them twice, however often the line is tried. The
classes are few and the rows many, so the rows come last in every array. And the first guess of the
inverse Hessian, where L-BFGS commonly takes a multiple of the identity, is that of features whose
covariance is known and probabilities that don't depend on them, which saves most iterations; it is
decomposed once for any number of strengths.
"""

import contextlib
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

# Pairs of steps and changes of the gradient that L-BFGS remembers.
MEMORY = 10
# A step along the line is good where the slope has fallen to this share of the first.
LEVEL = 0.1
MAX_TRIALS = 10
# What is added to the variances in the covariance that the first guess goes by, in features a row.
# The fewer rows, the less their covariance says of directions in which they vary little, and a leap
# along these fits the rows at once with coefficients that are far from the minimum.
SHRINKAGE = 30
# Iterations between two computations of the logits from scratch, which sums of steps drift from.
REFRESH = 20
# Iterations without a smaller gradient after which rounding is what is left to see.
PATIENCE = 100


class Rows(NamedTuple):
    """Features on the device, with what is known of them before the first iteration.

    Attributes:
        x: the features less their means.
        mean: of the features.
        targets: numbers of the classes.
        weights: one by the number of rows; 0 for filling.
        basis: eigenvectors of the shrunk covariance, one a column.
        spectrum: its eigenvalues.
    """

    x: Float[Array, "d n"]
    mean: Float[Array, " d"]
    targets: Int[Array, " n"]
    weights: Float[Array, " n"]
    basis: Float[Array, "d d"]
    spectrum: Float[Array, " d"]


@dataclasses.dataclass(frozen=True)
class Solution:
    """Where the iteration ended.

    Attributes:
        coefficients: a row for each class; one row, that of the second, where there are two.
        intercepts: likewise; those of three classes and more have the sum 0.
        num_iterations: how many it took.
        gradient_norm: the largest entry of the gradient there, without its sign; NaN where the
            numbers have left what the dtype can hold.
        start: what `solve` takes to begin there.
    """

    coefficients: Float[np.ndarray, "c d"]
    intercepts: Float[np.ndarray, " c"]
    num_iterations: int
    gradient_norm: float
    start: np.ndarray


class Problem:
    """Rows and classes, for which `solve` finds the coefficients at any strength."""

    def __init__(
        self,
        features: Float[np.ndarray, "n d"],
        targets: Int[np.ndarray, " n"],
        num_classes: int,
        *,
        dtype: str,
        mesh: Mesh | None = None,
    ):
        """Takes the rows to the devices.

        Args:
            features: finite.
            targets: from 0 to before `num_classes`.
            num_classes: at least 2.
            dtype: in which to compute, "float32" or "float64", whatever JAX's global setting is.
            mesh: over all of whose axes the rows are split; without it they are on one device.
        """
        self._dtype, self._mesh = dtype, _automatic(mesh)
        self._num_rows = len(features)
        self._shape = (1 if num_classes == 2 else num_classes, features.shape[1] + 1)
        size = mesh.size if mesh else 1
        filling = -self._num_rows % size
        weights = np.full(self._num_rows, 1 / self._num_rows)
        with self._context():
            self._rows = _prepare(
                self._put(np.pad(np.asarray(features, dtype), ((0, filling), (0, 0)))),
                self._put(np.pad(np.asarray(targets, np.int32), (0, filling))),
                self._put(np.pad(weights.astype(dtype), (0, filling))),
            )

    def solve(
        self, C: float, *, max_iter: int, tol: float, start: np.ndarray | None = None
    ) -> Solution:
        """Minimises mean cross entropy + ||W||^2 / (2 C N).

        Args:
            C: inverse strength of the regularisation.
            max_iter: iterations at most.
            tol: how small the largest entry of the gradient has to be.
            start: of an earlier solution, instead of zeros.
        """
        with self._context():
            if start is None:
                start = np.zeros(self._shape)
            numbers = (1 / (C * self._num_rows), tol)
            with np.errstate(over="ignore"):  # infinite, which the gradient shows
                strength, tolerance = (jnp.asarray(number, self._dtype) for number in numbers)
            end = _minimize(
                self._rows, jnp.asarray(start, self._dtype), strength, tolerance, max_iter
            )
            # Leaving the context, float64 arrays are to be seen by NumPy only.
            parameters, mean = (np.array(a, np.float64) for a in (end.best, self._rows.mean))
            iterations, norm = int(end.iteration), float(end.lowest)
        if len(parameters) > 1:
            # What all classes have in common changes no probability and is 0 at the minimum, where
            # weak regularisation doesn't bring it once rounding has moved it.
            parameters -= parameters.mean(axis=0)
        coefficients = parameters[:, :-1]
        intercepts = parameters[:, -1] - coefficients @ mean
        return Solution(
            coefficients.astype(self._dtype),
            intercepts.astype(self._dtype),
            iterations,
            norm,
            parameters,
        )

    @contextlib.contextmanager
    def _context(self) -> Any:
        with (
            jax.enable_x64(self._dtype == "float64"),
            jax.default_matmul_precision("highest"),
            jax.set_mesh(self._mesh),
        ):
            yield

    def _put(self, rows: np.ndarray) -> Array:
        if self._mesh.empty:
            return jax.device_put(rows)
        return jax.device_put(rows, NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names)))


def _automatic(mesh: Mesh | None) -> Mesh:
    """The devices in axes that need no annotations; a mesh that the caller has set is not ours."""
    if mesh is None:
        return Mesh(np.empty((), object), ())
    axis_types = (AxisType.Auto,) * mesh.devices.ndim
    return Mesh(mesh.devices, mesh.axis_names, axis_types=axis_types)


@jax.jit
def _prepare(features: Float[Array, "n d"], targets: Array, weights: Array) -> Rows:
    mean = weights @ features
    # Filling is 0 now and minus the mean after: its weight keeps it out of everything.
    x = (features - mean).T
    covariance = (x * weights) @ x.T
    shrinkage = SHRINKAGE * len(x) / (weights > 0).sum()
    spectrum, basis = jnp.linalg.eigh(covariance + shrinkage * jnp.diag(jnp.diag(covariance)))
    # What rounding leaves of directions in which nothing varies.
    floor = 10 * jnp.finfo(x.dtype).eps * spectrum[-1]
    return Rows(x, mean, targets, weights, basis, jnp.maximum(spectrum, floor))


class _State(NamedTuple):
    """Between two iterations.

    Attributes:
        parameters: coefficients, and in the last column the intercepts of the centred features.
        gradient: there.
        logits: there.
        variance: of each class's probability, the mean over the rows.
        norm: the largest entry of the gradient, as it is for the features as they were given.
        best: the parameters of the smallest norm so far. Where only rounding is left to see, the
            iteration may leap anywhere.
        lowest: that norm.
        since: iterations since that.
        steps: the last changes of the parameters, the newest first.
        changes: those of the gradient.
        inverses: one by the product of the two; 0 for those that don't count.
        iteration: how many are done.
    """

    parameters: Float[Array, "c p"]
    gradient: Float[Array, "c p"]
    logits: Float[Array, "c n"]
    variance: Float[Array, "c 1"]
    norm: Float[Array, ""]
    best: Float[Array, "c p"]
    lowest: Float[Array, ""]
    since: Int[Array, ""]
    steps: Float[Array, "m c p"]
    changes: Float[Array, "m c p"]
    inverses: Float[Array, " m"]
    iteration: Int[Array, ""]


@jax.jit
def _minimize(
    rows: Rows, start: Float[Array, "c p"], strength: Array, tol: Array, max_iter: int
) -> _State:
    """L-BFGS (Nocedal and Wright 2006, section 7.2) with a line search by Newton's method."""
    evaluate = functools.partial(_gradient, rows, strength)

    def iterate(state: _State) -> _State:
        direction = _direction(rows, strength, state)
        slopes = _times(rows.x, direction)
        length = _line_search(rows, strength, state, direction, slopes)
        is_down = (state.gradient * direction).sum() < 0
        length = jnp.where(is_down, length, 0)
        parameters = state.parameters + length * direction
        logits = jax.lax.cond(
            (state.iteration + 1) % REFRESH == 0,
            lambda: _times(rows.x, parameters),
            lambda: state.logits + length * slopes,
        )
        gradient, variance, norm = evaluate(parameters, logits)
        is_better = norm < state.lowest
        step, change = parameters - state.parameters, gradient - state.gradient
        product = (step * change).sum()
        inverse = jnp.where(product > 0, 1 / jnp.where(product > 0, product, 1), 0)
        return _State(
            parameters,
            gradient,
            logits,
            variance,
            norm,
            jnp.where(is_better, parameters, state.best),
            jnp.minimum(norm, state.lowest),
            jnp.where(is_better, 0, state.since + 1),
            _pushed(state.steps, step),
            _pushed(state.changes, change),
            # A memory that leads uphill holds rounding errors: it is forgotten.
            jnp.where(is_down, _pushed(state.inverses, inverse), 0),
            state.iteration + 1,
        )

    def goes_on(state: _State) -> Array:
        return (state.norm > tol) & (state.iteration < max_iter) & (state.since < PATIENCE)

    logits = _times(rows.x, start)
    gradient, variance, norm = evaluate(start, logits)
    memory = jnp.zeros((MEMORY, *start.shape), start.dtype)
    nothing = jnp.zeros(MEMORY, start.dtype)
    zero = jnp.zeros((), jnp.int32)
    first = _State(
        start, gradient, logits, variance, norm, start, norm, zero, memory, memory, nothing, zero
    )
    return jax.lax.while_loop(goes_on, iterate, first)


def _times(x: Float[Array, "d n"], parameters: Float[Array, "c p"]) -> Float[Array, "c n"]:
    return parameters[:, :-1] @ x + parameters[:, -1:]


def _with_first(logits: Float[Array, "c n"]) -> Float[Array, "k n"]:
    """Where one row stands for two classes, the first's are 0."""
    return jnp.pad(logits, ((1, 0), (0, 0))) if len(logits) == 1 else logits


def _gradient(
    rows: Rows, strength: Array, parameters: Float[Array, "c p"], logits: Float[Array, "c n"]
) -> tuple[Float[Array, "c p"], Float[Array, "c 1"], Float[Array, ""]]:
    """The gradient, the variances, and the largest entry for features that are not centred."""
    probabilities = jax.nn.softmax(_with_first(logits), axis=0)
    residual = _residual(rows, probabilities)[-len(logits) :]
    probabilities = probabilities[-len(logits) :]
    variance = (rows.weights * probabilities * (1 - probabilities)).sum(axis=1, keepdims=True)
    coefficients = residual @ rows.x.T + strength * parameters[:, :-1]
    intercepts = residual.sum(axis=1, keepdims=True)
    given = jnp.abs(coefficients + intercepts * rows.mean).max()
    norm = jnp.maximum(given, jnp.abs(intercepts).max())
    return jnp.concatenate([coefficients, intercepts], axis=1), variance, norm


def _residual(rows: Rows, probabilities: Float[Array, "k n"]) -> Float[Array, "k n"]:
    own = jnp.arange(len(probabilities))[:, None] == rows.targets
    return rows.weights * (probabilities - own)


def _direction(rows: Rows, strength: Array, state: _State) -> Float[Array, "c p"]:
    """Minus the gradient times L-BFGS's guess of the inverse Hessian: the two-loop recursion."""
    pairs = state.steps, state.changes, state.inverses

    def newest_first(rest: Array, pair: Any) -> tuple[Array, Array]:
        step, change, inverse = pair
        share = inverse * (step * rest).sum()
        return rest - share * change, share

    def oldest_first(rest: Array, pair: Any) -> tuple[Array, None]:
        step, change, inverse, share = pair
        return rest + (share - inverse * (change * rest).sum()) * step, None

    rest, shares = jax.lax.scan(newest_first, state.gradient, pairs)
    rest = _first_guess(rows, strength, state.variance, rest)
    rest, _ = jax.lax.scan(oldest_first, rest, (*pairs, shares), reverse=True)
    return -rest


def _first_guess(
    rows: Rows, strength: Array, variance: Float[Array, "c 1"], x: Float[Array, "c p"]
) -> Float[Array, "c p"]:
    """Times the inverse of a Hessian whose classes and features don't depend on each other."""
    variance = jnp.maximum(variance, 1e-3)  # of classes that are told apart for certain
    inside = (x[:, :-1] @ rows.basis) / (variance * rows.spectrum + strength)
    guess = jnp.concatenate([inside @ rows.basis.T, x[:, -1:] / variance], axis=1)
    # What all classes have in common changes no probability, and stays 0.
    return guess if len(guess) == 1 else guess - guess.mean(axis=0)


def _line_search(
    rows: Rows,
    strength: Array,
    state: _State,
    direction: Float[Array, "c p"],
    slopes: Float[Array, "c n"],
) -> Float[Array, ""]:
    """How far to go: where the slope along the line has almost vanished.

    The objective is convex, so the slope grows along the line and Newton's method with a bracket
    finds its zero. Slopes are compared, not values: near the minimum those differ by less than
    float32 can tell.
    """
    ahead = _with_first(slopes)
    along = state.parameters[:, :-1], direction[:, :-1]
    inner, square = ((a * along[1]).sum() * strength for a in along)

    def slope_and_curvature(length: Array) -> tuple[Array, Array]:
        p = jax.nn.softmax(_with_first(state.logits) + length * ahead, axis=0)
        mean = (p * ahead).sum(axis=0)
        slope = (_residual(rows, p) * ahead).sum() + inner + length * square
        return slope, (rows.weights * (p * (ahead - mean) ** 2).sum(axis=0)).sum() + square

    first = (state.gradient * direction).sum()

    def tried(search: tuple) -> tuple:
        length, low, high, _, trial = search
        slope, curvature = slope_and_curvature(length)
        low, high = jnp.where(slope < 0, length, low), jnp.where(slope < 0, high, length)
        newton = length - slope / jnp.maximum(curvature, jnp.finfo(slope.dtype).tiny)
        is_open = jnp.isinf(high)
        is_inside = (newton > low) & (newton < jnp.where(is_open, 10 * low, high))
        otherwise = jnp.where(is_open, 4 * low, (low + high) / 2)
        following = jnp.where(is_inside, newton, otherwise)
        is_level = jnp.abs(slope) <= LEVEL * jnp.abs(first)
        return jnp.where(is_level, length, following), low, high, is_level, trial + 1

    one = jnp.ones_like(inner)
    search = (one, 0 * one, jnp.inf * one, jnp.asarray(False), 0)
    return jax.lax.while_loop(lambda s: ~s[3] & (s[4] < MAX_TRIALS), tried, search)[0]


def _pushed(memory: Float[Array, "m ..."], newest: Array) -> Float[Array, "m ..."]:
    return jnp.concatenate([newest[None], memory[:-1]])
