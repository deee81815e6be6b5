"""The linear probe and the search for C: the coefficients and the protocol of scikit-learn."""

import gzip
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from clip_jax.evaluate import ConvergenceWarning, LinearProbe, logistic, sweep
from tests.evaluation import blobs


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("dtype", "reach"), [("float32", 1e-4), ("float64", 1e-6)])
def test_coefficients_are_scikit_learns(classes, dtype, reach):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = blobs(300, 7, classes)
    names = np.array(["ant", "bee", "cow", "dog"])[labels]
    reference = linear_model.LogisticRegression(C=0.7, tol=1e-10, max_iter=10_000)
    reference.fit(features, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 1e-10 is below float32
        probe = LinearProbe(C=0.7, tol=1e-10, dtype=dtype).fit(features, names)
    centred = reference.intercept_ - (reference.intercept_.mean() if classes > 2 else 0)
    assert probe.coef_.dtype == dtype
    assert probe.coef_.shape == reference.coef_.shape
    assert np.abs(probe.coef_ - reference.coef_).max() < reach
    assert np.abs(probe.intercept_ - centred).max() < reach
    assert np.array_equal(probe.predict(features), reference.predict(features))
    assert np.allclose(probe.predict_proba(features), reference.predict_proba(features), atol=reach)
    assert probe.decision_function(features).shape == reference.decision_function(features).shape
    assert probe.score(features, names) == reference.score(features, names)
    assert probe.classes_.tolist() == reference.classes_.tolist()
    assert not jax.config.jax_enable_x64


def test_rows_over_a_mesh_give_the_same_probe():
    features, labels = blobs(101, 5, 3)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    split = LinearProbe(tol=1e-9, dtype="float64", mesh=mesh).fit(features, labels)
    alone = LinearProbe(tol=1e-9, dtype="float64").fit(features, labels)
    assert np.allclose(split.coef_, alone.coef_, atol=1e-7)
    assert np.allclose(split.intercept_, alone.intercept_, atol=1e-7)


def test_constant_features_get_no_weight():
    features, labels = blobs(90, 3, 3)
    constant = np.concatenate([features, np.full((90, 1), 7.0)], axis=1)
    with_it, without = (
        LinearProbe(tol=1e-6, dtype="float64").fit(x, labels) for x in (constant, features)
    )
    assert np.abs(with_it.coef_[:, 3]).max() < 1e-9
    assert np.allclose(with_it.coef_[:, :3], without.coef_, atol=1e-4)
    assert np.allclose(LinearProbe().fit(np.ones((90, 2)), labels).coef_, 0)


def test_what_classes_have_in_common_stays_out_of_the_coefficients():
    # With weak regularisation nothing but the objective's symmetry keeps it out in float32.
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(500, 16)), rng.integers(0, 5, 500)
    with pytest.warns(ConvergenceWarning):
        single = LinearProbe(C=100, tol=1e-10).fit(features, labels)
    double = LinearProbe(C=100, tol=1e-10, dtype="float64").fit(features, labels)
    assert np.abs(single.coef_.sum(axis=0)).max() < 1e-6
    assert np.abs(single.coef_ - double.coef_).max() < 1e-6


@pytest.mark.parametrize("C", [1, 100, 1e4])
def test_few_rows_and_many_features_are_learnt_from_not_by_heart(C):
    # A first step along directions that the rows hardly vary in would satisfy the tolerance.
    features, labels = blobs(1100, 90, 4)
    probe = LinearProbe(C).fit(features[:100], labels[:100])
    assert probe.score(features[100:], labels[100:]) > 0.99


def test_no_convergence_is_told_with_the_gradient_norm():
    features, labels = blobs(90, 5, 3)
    with pytest.warns(ConvergenceWarning, match=r"in 2 iterations: the gradient's norm .* is \d"):
        probe = LinearProbe(max_iter=2, tol=1e-6).fit(features, labels)
    assert probe.n_iter_.tolist() == [2]
    with pytest.warns(ConvergenceWarning, match='raise tol, or take dtype="float64"'):
        LinearProbe(tol=1e-20).fit(features, labels)


@pytest.mark.parametrize(
    ("C", "scale", "given"),
    [(1e-300, 1.0, "C = 1e-300 and features up to"), (1.0, 1e25, "C = 1.0 and .*e\\+26")],
)
def test_fits_that_leave_the_numbers_of_the_dtype_fail(C, scale, given):
    features, labels = blobs(90, 5, 3)
    probe = LinearProbe(C)
    with pytest.raises(ValueError, match=f"not finite, with {given}.* Take another C, or features"):
        probe.fit(features * scale, labels)
    assert not hasattr(probe, "coef_")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"C": 0}, "C must be a number above 0, and finite. Got 0"),
        ({"C": -1.0}, "C must be"),
        ({"C": float("nan")}, "C must be"),
        ({"max_iter": 0}, "max_iter must be"),
        ({"tol": 0}, "tol must be"),
        ({"dtype": "float16"}, 'must be "float32" or "float64"'),
        ({"y": [1, 1, 1]}, "two classes. Got one class: 1"),
        ({"y": [1, 2]}, r"the shape \(3,\), one for each row of the features. Got \(2,\)"),
        ({"y": [0.5, 1, 2]}, "Unknown label type"),
        ({"y": None}, "labels are missing"),
        ({"y": ["a", None, "b"]}, "every row needs a label, and rows 1 have none"),
        ({"y": ["a", float("nan"), "b"]}, "rows 1 have none"),
        ({"y": np.array([1, np.nan, np.nan], object)}, "rows 1, 2 have none"),
        ({"y": np.array(["a", 1, "b"], object)}, "of one kind. Got numbers and text"),
        ({"y": np.array(["a", "a", "a"], object)}, "two classes. Got one class: 'a'"),
        ({"X": [[1.0], [np.nan], [0.0]]}, "rows 1 hold NaN or infinity"),
        ({"X": [[1.0], [1e300], [0.0]]}, "too large for float32"),
        ({"X": [1.0, 2.0, 3.0]}, r"shape \(rows, columns\). Got \(3,\)"),
    ],
)
def test_probes_refuse(change, message):
    data = {"X": [[1.0], [2.0], [0.0]], "y": [1, 2, 1]} | change
    X, y = data.pop("X"), data.pop("y")
    with pytest.raises(ValueError, match=message):
        LinearProbe(**data).fit(X, y)


@pytest.fixture(scope="module")
def probe_of_numbers() -> tuple[LinearProbe, np.ndarray, np.ndarray]:
    """A probe, and features and labels of which it gets three quarters right."""
    X, y = np.arange(8.0)[:, None], np.repeat([3, 7], 4)
    return LinearProbe().fit(X, y), X, np.where(np.arange(8) % 4 == 1, 10 - y, y)


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
@pytest.mark.parametrize("kind", [int, float, object, np.uint8])
def test_the_score_is_scikit_learns(probe_of_numbers, shape, kind):
    metrics = pytest.importorskip("sklearn.metrics")
    probe, X, y = probe_of_numbers
    assert metrics.accuracy_score(y[:, None], probe.predict(X)) == 0.75
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert probe.score(X, y.astype(kind).reshape(shape)) == 0.75
    assert ["A column-vector y" in str(each.message) for each in told] == [True] * (len(shape) - 1)


def test_labels_that_were_not_fitted_count_as_wrong(probe_of_numbers):
    probe, X, y = probe_of_numbers
    assert probe.score(X, y + 1) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: [3], r"the shape \(8,\), one for each row of the features. Got \(1,\)"),
        (lambda y: y[:7], r"Got \(7,\)"),
        (lambda y: y[None], r"Got \(1, 8\)"),
        (lambda y: None, "labels are missing"),
        (lambda y: y.astype(str), "must be numbers, as those .* Got text, such as '3'"),
        (lambda y: y.astype(str).astype(object), "Got text, such as '3'"),
        (lambda y: y.astype(bytes), "Got bytes_, such as b'3'"),
        (lambda y: y + 0.5, "Unknown label type"),
        (lambda y: [*y[:7], None], "rows 7 have none"),
    ],
)
def test_labels_that_can_not_be_scored_are_refused(probe_of_numbers, change, message):
    probe, X, y = probe_of_numbers
    with pytest.raises(ValueError, match=message):
        probe.score(X, change(y))


def test_numbers_are_refused_where_text_was_fitted(probe_of_numbers):
    _, X, y = probe_of_numbers
    for kind in (str, object):
        probe = LinearProbe().fit(X, np.repeat(["a", "b"], 4).astype(kind))
        assert probe.score(X, ["a"] * 8) == 0.5
        with pytest.raises(ValueError, match="must be text, as those .* Got numbers, such as 3"):
            probe.score(X, y)


def test_another_width_is_refused_when_predicting():
    probe = LinearProbe().fit([[1.0, 2.0], [2.0, 1.0]], ["a", "b"])
    with pytest.raises(ValueError, match="X has 1 features, but LinearProbe is expecting 2"):
        probe.predict([[1.0]])
    with pytest.raises(ValueError, match="call fit first"):
        LinearProbe().predict([[1.0]])


@pytest.mark.long
def test_scikit_learn_takes_it_for_an_estimator():
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checks.check_estimator(LinearProbe())


FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.long
@pytest.mark.skipif(not FASHION.is_dir(), reason="apt-get install dataset-fashion-mnist")
def test_real_pictures_are_learnt_as_by_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    images, labels = (
        np.frombuffer(gzip.decompress((FASHION / f"t10k-{kind}-ubyte.gz").read_bytes()), "u1")
        for kind in ("images-idx3", "labels-idx1")
    )
    features, labels = images[16:].reshape(-1, 784)[:1500] / 255, labels[8:1508]
    train, test = slice(1000), slice(1000, None)
    reference = linear_model.LogisticRegression(C=0.316, tol=1e-6, max_iter=10_000)
    reference.fit(features[train], labels[train])
    probe = LinearProbe(C=0.316, tol=1e-6).fit(features[train], labels[train])
    assert np.array_equal(probe.predict(features[test]), reference.predict(features[test]))
    assert probe.score(features[test], labels[test]) > 0.8


def test_the_sweep_is_the_papers_and_finds_the_best():
    features, labels = blobs(240, 6, 3)
    # Noise that only a strong regularisation ignores.
    features = np.concatenate([features, np.random.default_rng(1).normal(size=(240, 40))], axis=1)
    found = sweep(features[:80], labels[:80], features[80:], labels[80:], tol=1e-3)
    strengths = np.log10([trial.C for trial in found.trials])
    assert {-6, -4, -2, 0, 2, 4, 6} <= set(strengths.round(6)) and 11 <= len(strengths) <= 15
    best = max(found.trials, key=lambda trial: (trial.accuracy, -trial.C))
    assert found.best.C == best.C
    assert np.isclose(np.diff(strengths)[np.searchsorted(strengths, np.log10(best.C)) - 1], 0.125)
    assert found.best.score(features[80:], labels[80:]) == best.accuracy
    cold = LinearProbe(C=best.C, tol=1e-6, dtype="float64").fit(features[:80], labels[:80])
    assert np.array_equal(cold.predict(features[80:]), found.best.predict(features[80:]))


def test_a_warm_start_saves_iterations():
    features, labels = blobs(200, 6, 3)
    problem = logistic.Problem(features, labels, 3, dtype="float64")
    cold = problem.solve(2.0, max_iter=100, tol=1e-8)
    start = problem.solve(1.9, max_iter=100, tol=1e-8).start
    warm = problem.solve(2.0, max_iter=100, tol=1e-8, start=start)
    assert warm.num_iterations < cold.num_iterations
    assert np.allclose(warm.coefficients, cold.coefficients, atol=1e-6)


@pytest.mark.parametrize(
    ("training", "validation", "message"),
    [
        ([0, 0, 1, 1], [0, 2], "no training row has these labels: 2"),
        ([0, 0, 1, 1], [0, 0], "no validation row has these labels: 1"),
    ],
)
def test_splits_of_other_classes_are_refused(training, validation, message):
    features = np.arange(4.0)[:, None]
    with pytest.raises(ValueError, match=message):
        sweep(features, training, features[:2], validation)


def test_validation_labels_are_checked_as_those_to_fit():
    features, labels = np.arange(8.0)[:, None], np.repeat([0, 1], 4)
    with pytest.warns(UserWarning, match="A column-vector y"):
        found = sweep(features, labels, features, labels[:, None])
    assert found.best.score(features, labels) == max(trial.accuracy for trial in found.trials) == 1
    with pytest.raises(ValueError, match=r"the shape \(8,\).* Got \(2,\)"):
        sweep(features, labels, features, [0, 1])
