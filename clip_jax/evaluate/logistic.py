"""Logistic regression on the device, by Optax's L-BFGS: the objective of scikit-learn, full batch.

Two things make it quick. The classes are few and the rows many, so the rows come last in every
array. And the coordinates are those in which the Hessian is about the identity, which L-BFGS takes
for its first guess: it is known for features of this covariance, and probabilities that don't
depend on them. That saves most iterations; the covariance is decomposed once for any number of
strengths.
"""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

# Pairs of steps and changes of the gradient that L-BFGS remembers.
MEMORY = 10
# What is added to the variances in the covariance that the first guess goes by, in features a row.
# The fewer rows, the less their covariance says of directions in which they vary little, and a leap
# along these fits the rows at once with coefficients that are far from the minimum.
SHRINKAGE = 30
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

        Raises:
            ModuleNotFoundError: Optax is not installed.
        """
        _optax()  # before the rows are taken anywhere
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
    x = (features - mean[None]).T
    covariance = (x * weights[None]) @ x.T
    shrinkage = SHRINKAGE * len(x) / (weights > 0).sum()
    spectrum, basis = jnp.linalg.eigh(covariance + shrinkage * jnp.diag(jnp.diag(covariance)))
    # What rounding leaves of directions in which nothing varies.
    floor = 10 * jnp.finfo(x.dtype).eps * spectrum[-1]
    return Rows(x, mean, targets, weights, basis, jnp.maximum(spectrum, floor))


class _State(NamedTuple):
    """Between two iterations.

    Attributes:
        point: where the iteration is, in the coordinates of `_coordinates`.
        search: what Optax keeps.
        norm: the largest entry of the gradient, as it is for the features as they were given.
        best: the point of the smallest norm so far. Where only rounding is left to see, the
            iteration may leap anywhere.
        lowest: that norm.
        since: iterations since that.
        iteration: how many are done.
    """

    point: Float[Array, "c p"]
    search: Any
    norm: Float[Array, ""]
    best: Float[Array, "c p"]
    lowest: Float[Array, ""]
    since: Int[Array, ""]
    iteration: Int[Array, ""]


class _End(NamedTuple):
    """The best parameters, the gradient's largest entry there, and how many iterations it took."""

    best: Float[Array, "c p"]
    lowest: Float[Array, ""]
    iteration: Int[Array, ""]


@jax.jit
def _minimize(
    rows: Rows, start: Float[Array, "c p"], strength: Array, tol: Array, max_iter: int
) -> _End:
    """Optax's L-BFGS, until the gradient is small or only rounding is left to see."""
    scale = _scale(rows, strength, len(start))

    def parameters_of(point: Float[Array, "c p"]) -> Float[Array, "c p"]:
        scaled = point * scale
        return jnp.concatenate([scaled[:, :-1] @ rows.basis.T, scaled[:, -1:]], axis=1)

    def objective(point: Float[Array, "c p"]) -> Float[Array, ""]:
        return _objective(rows, strength, parameters_of(point))

    def norm_of(gradient: Float[Array, "c p"]) -> Float[Array, ""]:
        gradient = gradient / scale
        coefficients, intercepts = gradient[:, :-1] @ rows.basis.T, gradient[:, -1:]
        given = jnp.abs(coefficients + intercepts * rows.mean[None]).max()
        return jnp.maximum(given, jnp.abs(intercepts).max())

    optax = _optax()
    solver = optax.lbfgs(memory_size=MEMORY)
    value_and_gradient = optax.value_and_grad_from_state(objective)

    def iterate(state: _State) -> _State:
        value, gradient = value_and_gradient(state.point, state=state.search)
        step, search = solver.update(
            gradient, state.search, state.point, value=value, grad=gradient, value_fn=objective
        )
        point = state.point + step
        norm = norm_of(optax.tree.get(search, "grad"))
        is_better = norm < state.lowest
        return _State(
            point,
            search,
            norm,
            jnp.where(is_better, point, state.best),
            jnp.minimum(norm, state.lowest),
            jnp.where(is_better, 0, state.since + 1),
            state.iteration + 1,
        )

    def goes_on(state: _State) -> Array:
        return (state.norm > tol) & (state.iteration < max_iter) & (state.since < PATIENCE)

    point = jnp.concatenate([start[:, :-1] @ rows.basis, start[:, -1:]], axis=1) / scale
    norm = norm_of(jax.grad(objective)(point))
    zero = jnp.zeros((), jnp.int32)
    first = _State(point, solver.init(point), norm, point, norm, zero, zero)
    end = jax.lax.while_loop(goes_on, iterate, first)
    return _End(parameters_of(end.best), end.lowest, end.iteration)


def _scale(rows: Rows, strength: Array, num_rows: int) -> Float[Array, "c p"]:
    """Makes the Hessian about the identity where probabilities don't depend on the features."""
    classes = jnp.arange(max(num_rows, 2))[-num_rows:, None]
    is_own = rows.targets[None] == classes
    share = jnp.where(is_own, rows.weights[None], 0).sum(axis=1, keepdims=True)
    variance = jnp.maximum(share * (1 - share), 1e-3)
    curvature = jnp.concatenate([variance * rows.spectrum[None] + strength, variance], axis=1)
    return 1 / jnp.sqrt(curvature)


def _objective(rows: Rows, strength: Array, parameters: Float[Array, "c p"]) -> Float[Array, ""]:
    logits = parameters[:, :-1] @ rows.x + parameters[:, -1:]
    if len(logits) == 1:  # one row stands for two classes, the first's are 0
        logits = jnp.pad(logits, ((1, 0), (0, 0)))
    own = jnp.arange(len(logits))[:, None] == rows.targets[None]
    losses = jax.nn.logsumexp(logits, axis=0) - jnp.where(own, logits, 0).sum(axis=0)
    return (rows.weights * losses).sum() + strength / 2 * (parameters[:, :-1] ** 2).sum()


def _optax() -> Any:
    try:
        import optax
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the linear probe is fitted by Optax: pip install 'clip-jax-flax[evaluate]'",
            name=error.name,
        ) from None
    return optax
