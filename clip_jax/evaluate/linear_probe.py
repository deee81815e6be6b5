"""The linear probe: multinomial logistic regression on the device, as a scikit-learn estimator."""

import math
import numbers
import warnings
from typing import Any, Literal, Self

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from clip_jax.evaluate.checks import check_features, check_kind, check_labels, number_labels
from clip_jax.evaluate.logistic import Problem, Solution


class ConvergenceWarning(UserWarning):
    """A fit that has used up its iterations before it reached the tolerance."""


class LinearProbe:
    """Logistic regression on embeddings (Radford et al. 2021, appendix A.3), full batch by L-BFGS.

    Minimises scikit-learn's objective, mean cross entropy + ||W||^2 / (2 C N), in which the
    intercepts are not regularised. It follows scikit-learn's conventions: two classes have one row
    of coefficients, and the estimator works with `clone`, grid search and pipelines. scikit-learn
    itself is not needed.

    Example:
        >>> probe = LinearProbe(C=0.316).fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> probe.predict([[0.5], [2.5]]).tolist()
        ['a', 'b']

    Attributes:
        coef_: (k, d) coefficients; (1, d) for two classes.
        intercept_: (k,) intercepts, whose sum is 0; (1,) for two classes.
        classes_: (k,) the labels, sorted.
        n_iter_: (1,) the number of iterations of the fit.
        n_features_in_: d, the number of features.
    """

    _estimator_type = "classifier"

    def __init__(
        self,
        C: float = 1.0,
        max_iter: int = 1000,
        tol: float = 1e-4,
        *,
        dtype: Literal["float32", "float64"] = "float32",
        mesh: Mesh | None = None,
    ):
        """Stores the parameters; `fit` checks them.

        Args:
            C: inverse strength of the L2 regularisation, above 0.
            max_iter: the most iterations that a fit may take.
            tol: the fit ends when no entry of the gradient is larger.
            dtype: of the computation; JAX's global setting for float64 is not changed.
            mesh: the devices over which the rows are split, along all its axes; None for one
                device.
        """
        self.C, self.max_iter, self.tol = C, max_iter, tol
        self.dtype, self.mesh = dtype, mesh

    def fit(self, X: Float[np.ndarray, "n d"], y: Any) -> Self:
        """Finds the coefficients.

        Args:
            X: (n, d) features, which are neither normalised nor scaled here.
            y: (n,) labels, strings or whole numbers, of at least two classes.

        Raises:
            ValueError: a parameter is out of range; shapes don't fit; a feature is not finite; a
                label is missing or of another kind than the rest; there is only one class; or C or
                the features are so small or large that the gradient or the coefficients overflow.
            TypeError: the features are sparse.

        Warns:
            ConvergenceWarning: the fit has ended before it reached `tol`; gives the gradient's
                norm.
        """
        check_parameters(self.C, self.max_iter, self.tol, self.dtype)
        features = check_features(X, self.dtype)
        classes, targets = number_labels(check_labels(y, len(features)))
        problem = Problem(features, targets, len(classes), dtype=self.dtype, mesh=self.mesh)
        solution = problem.solve(self.C, max_iter=self.max_iter, tol=self.tol)
        fitted = solution.gradient_norm, solution.coefficients, solution.intercepts
        if not all(np.isfinite(array).all() for array in fitted):
            raise ValueError(
                "the fit has failed: the gradient or the coefficients are not finite, with "
                f"C = {self.C!r} and features up to {np.abs(features).max():.3g}. Take "
                "another C, or features of another scale"
            )
        if not solution.gradient_norm <= self.tol:
            warnings.warn(_complaint(solution, self), ConvergenceWarning, stacklevel=2)
        return self.set_solution(solution, classes)

    def set_solution(self, solution: Solution, classes: np.ndarray) -> Self:
        """Sets the fitted attributes; `fit` does so, and the search for C, which solves itself."""
        self.coef_, self.intercept_ = solution.coefficients, solution.intercepts
        self.classes_ = classes
        self.n_iter_ = np.array([solution.num_iterations], np.int32)
        self.n_features_in_ = self.coef_.shape[1]
        return self

    def decision_function(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n ..."]:
        """Returns logits: (n, k); for two classes (n,), those of the second.

        Raises:
            ValueError: the features have another width or are not finite, or the probe is not
                fitted.
        """
        if not hasattr(self, "coef_"):
            raise _not_fitted()
        features = check_features(X, self.dtype, self.n_features_in_)
        with (
            jax.enable_x64(self.dtype == "float64"),
            jax.default_matmul_precision("highest"),
        ):
            logits = np.asarray(_logits(features, self.coef_, self.intercept_))
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict_proba(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Returns the probability of each class; raises as `decision_function`."""
        logits = class_logits(self, X)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def predict(self, X: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Returns the most probable label of each row; raises as `decision_function`."""
        logits = self.decision_function(X)
        return self.classes_[_best(logits)]

    def score(self, X: Float[np.ndarray, "n d"], y: Any) -> float:
        """Returns the accuracy: the share of rows whose label is predicted.

        Args:
            X: (n, d) features.
            y: (n,) labels. A label that `fit` has not seen counts as wrong.

        Raises:
            ValueError: as `decision_function`; there is not one label for each row; or the labels
                are text where numbers were fitted, or numbers where text was.
        """
        predicted = self.predict(X)
        labels = check_labels(y, len(predicted))
        check_kind(labels, self.classes_)
        return float(np.mean(predicted == labels))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the parameters by name; `deep` belongs to the protocol and has no effect."""
        return {name: getattr(self, name) for name in _PARAMETERS}

    def set_params(self, **parameters: Any) -> Self:
        """Sets parameters by name.

        Raises:
            ValueError: there is no parameter of that name.
        """
        for name, value in parameters.items():
            if name not in _PARAMETERS:
                raise ValueError(
                    f"Invalid parameter {name!r} for LinearProbe: expected one of "
                    f"{', '.join(_PARAMETERS)}."
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        return f"LinearProbe({', '.join(f'{k}={v!r}' for k, v in self.get_params().items())})"

    def __sklearn_tags__(self) -> Any:
        # Only scikit-learn calls this, so it is installed.
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(),
        )


def class_logits(probe: LinearProbe, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
    """Returns a logit for each class, also of two; raises as `LinearProbe.decision_function`."""
    logits = probe.decision_function(X)
    return np.stack([np.zeros_like(logits), logits], axis=1) if logits.ndim == 1 else logits


_PARAMETERS = ("C", "max_iter", "tol", "dtype", "mesh")


def check_parameters(C: object, max_iter: object, tol: object, dtype: object) -> None:
    """Checks the parameters of a probe.

    Raises:
        ValueError: one is out of range; says what was expected and what was given.
    """
    if not isinstance(C, numbers.Real) or not 0 < float(C) < math.inf:
        raise ValueError(f"C must be a number above 0, and finite. Got {C!r}.")
    if not isinstance(max_iter, numbers.Integral) or not 0 < int(max_iter) < 2**31:
        raise ValueError(f"max_iter must be a whole number from 1 on. Got {max_iter!r}.")
    if not isinstance(tol, numbers.Real) or not 0 < float(tol) < math.inf:
        raise ValueError(f"tol must be a number above 0, and finite. Got {tol!r}.")
    if dtype not in ("float32", "float64"):
        raise ValueError(f'dtype must be "float32" or "float64". Got {dtype!r}.')


@jax.jit
def _logits(
    features: Float[np.ndarray, "n d"],
    coefficients: Float[np.ndarray, "c d"],
    intercepts: Float[np.ndarray, " c"],
) -> np.ndarray | jax.Array:  # jax.Array under jit
    return features @ coefficients.T + intercepts[None]


def _best(logits: Float[np.ndarray, "n ..."]) -> Int[np.ndarray, " n"]:
    return (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)


def _complaint(solution: Solution, probe: LinearProbe) -> str:
    way_out = "scale the features, lower C, or raise max_iter or tol"
    if solution.num_iterations < probe.max_iter:  # only rounding errors changed the gradient
        way_out = 'raise tol, or take dtype="float64"' if probe.dtype == "float32" else "raise tol"
    return (
        f"no convergence in {solution.num_iterations} iterations: the gradient's norm (its largest "
        f"entry) is {solution.gradient_norm:.2e}, tol is {probe.tol:.2e}; {way_out}"
    )


def _not_fitted() -> Exception:
    """Returns scikit-learn's own error if it is loaded, since its tools catch that."""
    import sys

    message = "this LinearProbe is not fitted yet: call fit first."
    exceptions: Any = sys.modules.get("sklearn.exceptions")
    return exceptions.NotFittedError(message) if exceptions else ValueError(message)
