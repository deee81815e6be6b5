"""Zero-shot, retrieval and the linear probe: the figures of plain NumPy and of scikit-learn."""

import csv
import gzip
import json
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

import clip_jax
from clip_jax.cli import main
from clip_jax.embed import Columns, embed
from clip_jax.encoder import Encoder
from clip_jax.evaluate import (
    ConvergenceWarning,
    LinearProbe,
    ZeroShotClassifier,
    logistic,
    recall_at_k,
    retrieval,
    sweep,
    zeroshot,
)
from clip_jax.evaluate import captions as captions_module
from clip_jax.evaluate import data as data_module
from clip_jax.evaluate.classes import hold_out, name_classes
from clip_jax.evaluate.data import without_projection
from clip_jax.evaluate.scores import score, wilson
from clip_jax.nn import model_digest
from tests.archives import write_tar
from tests.models import SMALL_RESNET, SMALL_VIT, random_images, small, to_float
from tests.pictures import COLOURS

pytest.importorskip("pyarrow")

NAMES = ("red bicycle", "dog", "cat")
TEMPLATES = ("a photo of a {}.", "the {}, a drawing of a {}")


@pytest.fixture(scope="module")
def model():
    return small(SMALL_VIT)


def unit(x) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# --- zero-shot


@pytest.fixture(scope="module")
def classifier(model):
    return ZeroShotClassifier(model, NAMES, TEMPLATES, batch_size=8)


def test_zero_shot_is_the_published_ensemble(model, classifier):
    images = random_images(3, 32)
    prompts = [[template.replace("{}", name) for template in TEMPLATES] for name in NAMES]
    each = [unit(model.encode_text(clip_jax.tokenize(texts))) for texts in prompts]
    weights = unit(np.stack([rows.mean(axis=0) for rows in each]))
    logits = (
        np.exp(np.float64(model.logit_scale[...])) * unit(model.encode_image(images)) @ weights.T
    )
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    given = classifier.probabilities(images)
    assert given.dtype == np.float32 and np.allclose(given, expected, atol=1e-4)
    assert np.array_equal(classifier.predict(images), expected.argmax(axis=1))
    best, numbers = classifier.top_k(images, 2)
    assert np.array_equal(numbers, np.argsort(-expected, axis=1)[:, :2])
    assert np.array_equal(best, np.take_along_axis(given, numbers, axis=1))


def test_normalised_floats_are_classified_as_pixels(classifier):
    images = random_images(3, 32)
    floats = classifier.probabilities(np.asarray(to_float(images)))
    assert np.allclose(floats, classifier.probabilities(images), atol=1e-4)
    assert classifier.predict(images[:0]).shape == (0,)


def test_logits_are_those_of_float64_and_leave_jax_as_it_was(classifier):
    embeddings = np.random.default_rng(1).normal(size=(50, 16)).astype(np.float32)
    scale = classifier.logits(classifier.weights).max()
    expected = scale * unit(embeddings) @ classifier.weights.T
    assert np.allclose(classifier.logits(embeddings), expected, rtol=1e-12, atol=1e-12)
    assert not jax.config.jax_enable_x64


def test_prompts_are_embedded_once_for_a_model(model, classifier, monkeypatch):
    monkeypatch.setattr(zeroshot, "_tokens", None)
    again = ZeroShotClassifier(model, NAMES, TEMPLATES)
    assert again.weights is classifier.weights
    other = small(SMALL_VIT)
    other.ln_final.bias[...] = other.ln_final.bias[...] + 1
    for arguments in ((other, NAMES, TEMPLATES), (model, NAMES[:2], TEMPLATES), (model, NAMES)):
        with pytest.raises(TypeError, match="NoneType"):
            ZeroShotClassifier(*arguments)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (("dog", "cat", "dog"), ("{}",), "Given more than once: 'dog'"),
        (("dog", " "), ("{}",), "must not be blank"),
        ((), ("{}",), "class_names must not be empty"),
        (("dog",), (), "templates must not be empty"),
        (("dog",), ("a photo",), "must have {} where the name goes.* Got 'a photo'"),
        (("dog",), ("{} " * 80,), "more than the context length of 77"),
    ],
)
def test_prompts_that_make_no_classifier_are_refused(model, names, templates, message):
    with pytest.raises(ValueError, match=message):
        ZeroShotClassifier(model, names, templates)


def test_a_single_string_is_no_list_of_names(model):
    with pytest.raises(TypeError, match="class_names must be a sequence of strings. Got 'dog'"):
        ZeroShotClassifier(model, "dog")


def test_what_can_not_be_classified_is_refused(classifier):
    with pytest.raises(ValueError, match=r"must have the shape \(rows, 16\). Got \(2, 5\)"):
        classifier.logits(np.ones((2, 5)))
    with pytest.raises(ValueError, match="k must be from 1 to 3. Got 4"):
        classifier.top_k(random_images(1, 32), 4)


# --- retrieval


def plain_recall(image, text, owners, ks) -> dict:
    """By the whole matrix, sorted; a stranger as near as the own one comes first."""
    cosines = unit(image) @ unit(text).T
    mine = owners == np.arange(len(image))[:, None]
    ranks = {}
    for name, scores, own in (
        ("image_to_text", cosines, mine),
        ("text_to_image", cosines.T, mine.T),
    ):
        best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
        ranks[name] = (~own & (scores >= best - 1e-14)).sum(axis=1)
    return {name: {k: np.mean(rank < k) for k in ks} for name, rank in ranks.items()}


@pytest.mark.parametrize("block", [7, 2048])
def test_recall_is_that_of_plain_numpy(block, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.concatenate([np.arange(23), rng.integers(0, 23, 36)]))
    image = rng.normal(size=(23, 11)).astype(np.float32)
    text = (image[owners] + rng.normal(size=(59, 11)) * 2).astype(np.float32)
    image[5], text[3], text[4] = image[9], text[17], text[17]  # ties
    ks = (1, 2, 3, 5, 10, 100)
    assert recall_at_k(image, text, owners, ks) == plain_recall(image, text, owners, ks)
    assert not jax.config.jax_enable_x64


def test_recall_without_pairs_goes_by_rows():
    image = np.eye(4)
    assert recall_at_k(image, image[[0, 1, 3, 2]], ks=[1, 4]) == {
        "image_to_text": {1: 0.5, 4: 1.0},
        "text_to_image": {1: 0.5, 4: 1.0},
    }


@pytest.mark.parametrize("ks", [np.array([1, 4]), np.array([1, 4], np.uint8), range(1, 5, 3)])
def test_any_sequence_of_whole_numbers_says_how_many_count(ks):
    image = np.eye(4)
    given = recall_at_k(image, image[[0, 1, 3, 2]], ks=ks)
    assert given["image_to_text"] == given["text_to_image"] == {1: 0.5, 4: 1.0}
    assert all(type(k) is int for k in given["image_to_text"])


def test_a_model_that_tells_nothing_apart_recalls_nothing():
    same = np.ones((20, 8), np.float32)
    given = recall_at_k(same, same, ks=(1, 10, 20))
    assert given["image_to_text"] == given["text_to_image"] == {1: 0, 10: 0, 20: 1}


def test_differences_below_float32_are_told_apart():
    image = np.array([[1.0, 0.0], [0.0, 1.0]])
    text = np.array([[1.0, 1.0 - 1e-10], [1.0 - 1e-10, 1.0]])
    assert recall_at_k(image, text, ks=(1,))["text_to_image"] == {1: 1.0}
    assert recall_at_k(image, text[::-1], ks=(1,))["text_to_image"] == {1: 0.0}


@pytest.mark.parametrize(
    ("text", "pairs", "ks", "message"),
    [
        (np.ones((2, 4)), None, (1,), "as many images as texts. Got 3 and 2"),
        (np.ones((3, 5)), None, (1,), r"one width. Got \(3, 4\) and \(3, 5\)"),
        (np.ones(3), None, (1,), r"shape \(rows, width\). Got \(3,\)"),
        (np.diag([1.0, 1, 0, 1])[:3], None, (1,), "finite and not zero. Rows that aren't: 2"),
        (np.ones((3, 4)), [0, 1, 3], (1,), "from 0 to 2. Text 2 has 3"),
        (np.ones((3, 4)), [0, 1, 1], (1,), "1 images have no text, such as image 2"),
        (np.ones((3, 4)), [0.0, 1.0, 2.0], (1,), "3 whole numbers, one for each text"),
        (np.ones((3, 4)), None, (1, 0), r"from 1 on. Got \(1, 0\)"),
        (np.ones((3, 4)), None, [1.5], r"whole numbers from 1 on. Got \[1.5\]"),
        (np.ones((3, 4)), None, 5, "a sequence of whole numbers from 1 on. Got 5"),
        (np.ones((3, 4)), None, [], r"from 1 on. Got \[\]"),
    ],
)
def test_retrieval_refuses(text, pairs, ks, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(np.ones((3, 4)), text, pairs, ks)


# --- the linear probe


def blobs(rows: int, columns: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that overlap, of unequal scales and means, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % classes)
    centres = rng.normal(size=(classes, columns))
    features = centres[labels] + rng.normal(size=(rows, columns)) * 1.5
    return (features * rng.uniform(0.3, 3, columns) + rng.normal(size=columns) * 2), labels


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


# --- the sweep


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


# --- figures


def test_scores_are_those_of_plain_numpy():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(200, 7)), rng.integers(0, 6, 200)
    logits[:50, 3] = logits[:50, 5]  # ties go to the class that comes first
    given = score(logits, targets)
    order = np.argsort(-logits, axis=1, kind="stable")
    right = order[:, 0] == targets
    assert given.top1 == right.mean() and given.count == 200
    assert given.top5 == (order[:, :5] == targets[:, None]).any(axis=1).mean()
    assert given.mean_per_class == pytest.approx(
        np.mean([right[targets == c].mean() for c in range(6)])
    )
    assert given.confusion.sum() == 200 and given.confusion[6].sum() == 0
    assert given.confusion[2, 4] == ((targets == 2) & (order[:, 0] == 4)).sum()


def test_the_interval_is_wilsons():
    assert wilson(45, 50) == pytest.approx((0.7864, 0.9565), abs=1e-4)  # R's prop.test, uncorrected
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)


def test_labels_find_their_names():
    assert name_classes(["b", "a", "b"], None)[0] == ["a", "b"]
    assert name_classes(["b", "a", "b"], None)[1].tolist() == [1, 0, 1]
    names, targets = name_classes(["n02", "n01"], ["n01\ttench", "n02\tgoldfish"])
    assert (names, targets.tolist()) == (["tench", "goldfish"], [1, 0])
    names, targets = name_classes(["2", "0"], ["x", "y", "z"])
    assert (names, targets.tolist()) == (["x", "y", "z"], [2, 0])
    for labels, lines, message in [
        (["a", "c"], ["a", "b"], "not among the 2 classes: c. Expected a line"),
        (["2"], ["a", "b"], "not among the 2 classes: 2"),
        (["a"], ["a", "b", "a"], "classes given more than once: a"),
    ]:
        with pytest.raises(ValueError, match=message):
            name_classes(labels, lines)


def test_every_fifth_row_of_a_class_is_held_out():
    rest, held = hold_out(["a"] * 6 + ["b"] * 10, "testing")
    assert held.tolist() == [4, 10, 15] and len(rest) == 13
    with pytest.raises(
        ValueError, match=r"for testing, but these classes have fewer rows: b \(4\)"
    ):
        hold_out(["a"] * 6 + ["b"] * 4, "testing")


# --- the command line


@pytest.fixture(scope="module")
def compiled_once():
    """All commands share their programs, which take longer than the evaluations."""
    made: dict[str, Encoder] = {}

    def encoder(model, batch_size=None):
        digest = model_digest(model)
        if digest not in made:
            made[digest] = Encoder(model, batch_size=8)
        return made[digest]

    with pytest.MonkeyPatch.context() as patch:
        for module in (data_module, captions_module, zeroshot):
            patch.setattr(module, "Encoder", encoder)
        yield


@pytest.fixture(scope="module")
def data(compiled_once, model, tmp_path_factory) -> Path:
    """A model, pictures of three colours in class folders, and what holds the same."""
    root = tmp_path_factory.mktemp("evaluate")
    clip_jax.save(model, root / "model")
    rng = np.random.default_rng(0)
    members, captions = {}, []
    for label, (name, colour) in enumerate(COLOURS.items()):
        (root / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.clip(np.array(colour) + rng.normal(0, 25, (40, 50, 3)), 0, 255)
            path = root / "pictures" / name / f"{i}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            members[f"{name}{i}.png"] = path.read_bytes()
            members[f"{name}{i}.cls"] = str(label).encode()
            texts = [f"something {name}", f"number {i}"]
            captions.append({"image": f"pictures/{name}/{i}.png", "captions": texts})
            members[f"{name}{i}.json"] = json.dumps({"captions": texts, "label": name}).encode()
    write_tar(root / "in.tar", members)
    lines = "".join(json.dumps(row) + "\n" for row in captions)
    (root / "captions.jsonl").write_text(lines)
    (root / "classes.txt").write_text("\n".join(COLOURS))
    (root / "templates.txt").write_text("a photo of a {}.\n\na {} thing\n")
    options = {"what": "both", "columns": Columns(others=("label",)), "progress": False}
    embed(root / "in.tar", root / "model", root / "embedded", batch_size=8, **options)
    return root


@pytest.fixture
def run(data, monkeypatch, capsys):
    """Runs a command in this process, in the folder; gives its status, output and errors."""
    monkeypatch.chdir(data)

    def run(*argv: object) -> tuple[int, str, list[str]]:
        try:
            status = main(["eval", *map(str, argv)])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err.splitlines()

    return run


@pytest.mark.long
def test_zero_shot_of_folders_shards_and_embeddings_is_one(run, data, model):
    options = ("--model", "model", "--templates", "templates.txt", "--batch-size", 8, "--json")
    status, out, err = run("zeroshot", "pictures", *options)
    assert (status, err) == (0, [])
    folders = json.loads(out)
    shards = json.loads(run("zeroshot", "in.tar", *options, "--classes", "classes.txt")[1])
    rows = json.loads(run("zeroshot", "embedded", *options, "--classes", "classes.txt")[1])
    assert folders["per_class"] == shards["per_class"] == rows["per_class"]
    assert folders["count"] == 30 and folders["classes"] == 3 and folders["top5"] == 1
    # By the classifier itself.
    preprocess = clip_jax.Preprocess(32)
    classifier = ZeroShotClassifier(model, sorted(COLOURS), ["a photo of a {}.", "a {} thing"])
    right = 0
    for path in sorted((data / "pictures").glob("*/*.png")):
        number = classifier.predict(preprocess.pixels(clip_jax.open_image(path))[None])[0]
        right += sorted(COLOURS)[number] == path.parent.name
    assert folders["top1"] == pytest.approx(right / 30)
    low, high = folders["top1_interval"]
    assert low <= folders["top1"] < high


@pytest.mark.long
def test_the_report_has_a_table_a_picture_and_an_escaped_page(run, data, tmp_path):
    (data / "odd.txt").write_text("red\t<b>red</b>\ngreen\t$x$ green\nblue\tblue\n")
    options = ("--classes", "odd.txt", "--report", tmp_path / "r")
    status, out, _ = run("zeroshot", "embedded", *options)
    assert status == 0 and "top-1" in out and "95% interval" in out and "mean per class" in out
    rows = list(csv.DictReader((tmp_path / "r" / "per_class.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["<b>red</b>", "$x$ green", "blue"]
    assert sum(int(row["rows"]) for row in rows) == 30
    assert clip_jax.open_image(tmp_path / "r" / "confusion.png").size[0] > 300
    page = (tmp_path / "r" / "report.html").read_text()
    wrong = 30 - sum(int(row["right"]) for row in rows)
    assert page.count("<li>") == wrong > 0
    assert "<b>red" not in page and "&lt;b&gt;red" in page
    assert page.count("data:image/jpeg;base64,") == wrong


@pytest.mark.long
def test_retrieval_of_pairs_and_of_embeddings_is_one(run):
    options = ("--model", "model", "--json")
    table = json.loads(run("retrieval", "captions.jsonl", *options, "--batch-size", 8)[1])
    shards = json.loads(run("retrieval", "in.tar", *options, "--batch-size", 8)[1])
    assert table == shards
    assert (table["images"], table["texts"]) == (30, 60)
    assert set(table["image_to_text"]) == {"1", "5", "10"}
    rows = json.loads(run("retrieval", "embedded", "--json")[1])
    assert (rows["images"], rows["texts"]) == (30, 30)
    assert "at 10" in run("retrieval", "embedded")[1]


@pytest.mark.long
def test_the_probe_separates_colours(run, tmp_path):
    options = ("--model", "model", "--batch-size", 8, "--report", tmp_path / "r")
    status, out, err = run("probe", "pictures", *options, "--json")
    given = json.loads(out)
    assert (status, err) == (0, [])
    assert (given["fitted"], given["count"], given["top1"]) == (24, 6, 1)
    assert len(given["sweep"]) >= 7 and any(t["C"] == given["C"] for t in given["sweep"])
    assert clip_jax.open_image(tmp_path / "r" / "sweep.png").size[0] > 300


@pytest.mark.long
def test_the_probe_takes_features_before_the_projection_and_other_test_rows(run):
    options = ("--model", "model", "-C", 1, "--batch-size", 8)
    status, out, _ = run(
        "probe", "pictures", "--test", "pictures", "--features", "before", *options
    )
    assert status == 0 and "fitted 30 rows with C = 1\n30 images of 3 classes" in out
    assert run("probe", "embedded", "-C", 1)[0] == 0


@pytest.mark.long
def test_features_before_the_projection_are_the_towers(model):
    images = random_images(2, 32)
    given = without_projection(model).encode_image(images)
    assert given.shape == (2, SMALL_VIT.vision.width)
    proj = np.asarray(model.visual.proj[...])
    assert np.allclose(given @ proj, model.encode_image(images), atol=1e-4)
    with pytest.raises(ValueError, match="a ResNet has no projection"):
        without_projection(small(SMALL_RESNET))


@pytest.mark.long
@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (("zeroshot", "nowhere"), 1, "nowhere"),
        (("zeroshot", "pictures/red"), 1, "pictures/red holds no class folders"),
        (("zeroshot", "bad"), 1, "a class folder without images: bad/empty"),
        (("zeroshot", "embedded", "--model", "other"), 1, "another model: its fingerprint is"),
        (
            ("zeroshot", "embedded", "--label-column", "x"),
            1,
            "no column 'x'; its columns are 'key'",
        ),
        (("zeroshot", "in.tar", "--label-column", "x"), 1, "red0 has no 'x'"),
        (
            ("zeroshot", "embedded", "--classes", "templates.txt"),
            1,
            "not among the 2 classes: blue",
        ),
        (("zeroshot", "embedded", "--classes", "twice.txt"), 1, "given more than once: red"),
        (("zeroshot", "embedded", "--templates", "classes.txt"), 1, "must have {} where the name"),
        (("zeroshot", "embedded", "--templates", "empty.txt"), 1, "empty.txt is empty"),
        (("retrieval", "model"), 1, "no table of captions"),
        (("retrieval", "texts"), 1, "no embeddings of images: embed them with --what both"),
        (("zeroshot", "texts"), 1, "no embeddings of images: embed them with --what images"),
        (("retrieval", "images"), 1, "no embeddings of captions: embed them with --what both"),
        (("zeroshot", "hidden"), 1, "without images: hidden/a: its pictures are hidden files"),
        (("zeroshot", "header.csv"), 1, "header.csv: no picture"),
        (("probe", "embedded", "-C", "1e-300"), 1, "the fit has failed: the gradient or"),
        (("probe", "embedded", "-C", "0"), 2, "expected a number above 0. Got '0'"),
        (("probe", "embedded", "--features", "before"), 1, "give the pictures instead"),
        (
            ("probe", "one", "-C", "1", "--test", "pictures"),
            1,
            "no training row has these labels: blue",
        ),
        (("probe", "one", "-C", "1"), 1, "at least two classes. Got one class: 'red'"),
    ],
)
def test_mistakes_are_said_in_a_line(run, data, argv, status, message):
    for name, content in (("twice", "red\nblue\nred"), ("empty", "\n")):
        (data / f"{name}.txt").write_text(content)
    (data / "header.csv").write_text("image,label\n")
    if not (data / "one").exists():
        (data / "bad" / "empty").mkdir(parents=True)
        (data / "one").mkdir()
        (data / "one" / "red").symlink_to(data / "pictures" / "red")
        other = small(SMALL_VIT)
        other.ln_final.bias[...] = other.ln_final.bias[...] + 1
        clip_jax.save(other, data / "other")
        embed(data / "templates.txt", data / "model", data / "texts", progress=False)
        embed(data / "one", data / "model", data / "images", batch_size=8, progress=False)
        (data / "hidden" / "a").mkdir(parents=True)
        (data / "hidden" / "a" / "._0.png").touch()
    if not {"embedded", "texts", "images", "--model"} & set(argv):
        argv = (*argv, "--model", "model", "--batch-size", "8")
    code, out, err = run(*argv)
    assert (code, out) == (status, "")
    assert message in err[0]


@pytest.mark.long
@pytest.mark.parametrize("what", ["zeroshot", "retrieval", "probe"])
def test_no_model_is_loaded_for_data_that_does_not_exist(run, monkeypatch, what):
    def load(*_, **__):
        raise AssertionError

    monkeypatch.setattr(clip_jax, "load", load)
    status, out, err = run(what, "nowhere-{0..3}.tar")
    assert (status, out, len(err)) == (1, "", 1)
    assert "nowhere-0.tar" in err[0]


@pytest.mark.long
def test_what_stops_the_evaluation_is_said_before_a_model_is_loaded(run, data, monkeypatch):
    def load(*_, **__):
        raise AssertionError

    monkeypatch.setattr(clip_jax, "load", load)
    (data / "double.txt").write_text("red\tthing\nblue\tthing\ngreen\tgreen\n")
    for argv, message in (
        (("zeroshot", "pictures", "--classes", "double.txt"), "Given more than once: 'thing'"),
        (("zeroshot", "pictures", "--classes", "templates.txt"), "not among the 2 classes: blue"),
        (("zeroshot", "pictures/red"), "pictures/red holds no class folders"),
        (("probe", "pictures/red"), "pictures/red holds no class folders"),
        (("probe", "pictures", "--test", "pictures/red"), "pictures/red holds no class folders"),
        (("zeroshot", "pictures", "--report", "classes.txt/r"), "classes.txt/r: Not a directory"),
        (("probe", "pictures", "--report", "classes.txt"), "classes.txt: File exists"),
    ):
        status, out, err = run(*argv)
        assert (status, out, len(err)) == (1, "", 1)
        assert message in err[0]


@pytest.mark.long
def test_embeddings_whose_model_has_moved_ask_for_it(run, data):
    (data / "model").rename(data / "moved")
    try:
        status, _, err = run("zeroshot", "embedded")
        assert run("zeroshot", "embedded", "--model", "moved")[0] == 0
        assert run("probe", "embedded", "-C", 1)[0] == 0  # which needs none
    finally:
        (data / "moved").rename(data / "model")
    assert status == 1 and "model, is not there any more: give --model" in err[0]


@pytest.mark.long
def test_pictures_that_can_not_be_read_are_left_out_and_told(run, data, tmp_path):
    for name in COLOURS:
        (tmp_path / "p" / name).mkdir(parents=True)
        (tmp_path / "p" / name / "0.png").symlink_to(data / "pictures" / name / "0.png")
    (tmp_path / "p" / "red" / "1.png").write_bytes(b"no picture")
    status, out, err = run("zeroshot", tmp_path / "p", "--model", "model", "--json")
    assert (status, json.loads(out)["count"], json.loads(out)["unreadable"]) == (1, 3, 1)
    assert "red/1.png: is not an image" in err[0]


@pytest.mark.long
def test_hidden_files_and_folders_are_neither_classes_nor_pictures(run, data, tmp_path):
    for name in (".ipynb_checkpoints", "red/.thumbnails", *COLOURS):
        (tmp_path / "p" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name / "0.png").symlink_to(data / "pictures" / "red" / "0.png")
    (tmp_path / "p" / "red" / "._0.png").write_bytes(b"what macOS leaves")
    status, out, err = run("zeroshot", tmp_path / "p", "--model", "model", "--json")
    given = json.loads(out)
    assert (status, err, given["count"]) == (0, [], 3)
    assert set(given["per_class"]) == set(COLOURS)


@pytest.fixture(scope="module")
def flawed(data) -> Path:
    """Pairs of which two pictures can't be read, and what an embedding job leaves of them."""
    members = {}
    for name in COLOURS:
        for i in range(6):
            about = {"caption": f"something {name} {i}", "label": name}
            members[f"{name}{i}.png"] = (data / "pictures" / name / f"{i}.png").read_bytes()
            members[f"{name}{i}.json"] = json.dumps(about).encode()
    members["red1.png"] = members["blue4.png"] = b"no picture"
    write_tar(data / "flawed.tar", members)
    options = {"what": "both", "columns": Columns(others=("label",)), "progress": False}
    out = data / "flawed"
    embed(data / "flawed.tar", data / "model", out, batch_size=8, rows_per_part=5, **options)
    assert len(list(out.glob("part-*.parquet"))) == 4
    return out


EVALUATIONS = [
    ("zeroshot", ("--label-column", "label")),
    ("retrieval", ()),
    ("probe", ("--label-column", "label", "--test", "embedded", "-C", 1)),
]


@pytest.mark.long
@pytest.mark.parametrize(("what", "options"), EVALUATIONS)
def test_errors_of_an_embedding_job_are_told_as_those_of_pictures(run, flawed, what, options):
    options = (*options, "--model", "model", "--json")
    status, out, err = run(what, "flawed", *options)
    assert (status, json.loads(out)["unreadable"]) == (1, 2)
    lines = [f"clip-jax: {key}: is not an image" for key in ("red1", "blue4")]
    assert len(err) == 2 and all(map(str.startswith, err, lines))
    pictures = run(what, "flawed.tar", *options)
    assert (pictures[0], json.loads(pictures[1])["unreadable"]) == (1, 2)
    assert what == "retrieval" or pictures[2] == err  # pairs have numbers, not keys


@pytest.mark.long
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("is_damaged", [False, True])
@pytest.mark.parametrize(("what", "options"), EVALUATIONS)
def test_an_embedding_job_that_is_not_finished_is_told(
    run, flawed, tmp_path, what, options, is_damaged
):
    out = shutil.copytree(flawed, tmp_path / "out")
    first, part = out / "part-000000-000000.parquet", out / "part-000000-000001.parquet"
    if is_damaged:
        part.write_bytes(part.read_bytes()[:200] + b"?" + part.read_bytes()[201:])
    else:
        part.unlink()
    status, printed, err = run(what, out, *options, "--json")
    document = json.loads(printed)
    assert (status, document["unreadable"]) == (1, 2 + 5)
    if what != "probe":
        assert document["count" if what == "zeroshot" else "images"] == 18 - 2 - 5
    assert err[0] == (
        f"clip-jax: warning: {out} is not finished: 5 rows are left out, whose parts are missing "
        "or damaged (part-000000-000001.parquet): run the same clip-jax embed command again"
    )
    assert [line.split(": ")[1] for line in err[1:]] == ["red1", "blue4"]
    for path in out.glob("part-*"):
        path.write_bytes(b"PAR1")
    assert run(what, out, *options)[2] == [
        f"clip-jax: {first} is damaged: run the same clip-jax embed command again"
    ]


@pytest.mark.long
def test_files_of_the_input_without_a_part_are_told(data, flawed, tmp_path):
    for name in "abc":
        shutil.copy(data / "flawed.tar", tmp_path / f"{name}.tar")
    out = tmp_path / "out"
    options = {"columns": Columns(others=("label",)), "progress": False}
    embed(tmp_path / "{a,b,c}.tar", data / "model", out, batch_size=8, **options)
    (out / "part-000001-000000.parquet").unlink()
    with pytest.warns(UserWarning, match=r"no part of some files of its input \(part-000001-\*"):
        images = data_module.read_images(str(out))
    assert (len(images.labels), len(images.problems), images.missing) == (32, 4, 0)


@pytest.mark.long
def test_a_job_without_a_single_embedding_is_refused(run, data, tmp_path):
    write_tar(tmp_path / "in.tar", {"a.png": b"no picture", "a.json": b'{"label": "red"}'})
    options = {"columns": Columns(others=("label",)), "progress": False}
    embed(tmp_path / "in.tar", data / "model", tmp_path / "out", batch_size=8, **options)
    status, out, err = run("zeroshot", tmp_path / "out", "--model", "model")
    assert (status, out) == (1, "")
    assert "no picture could be read; the first: a: is not an image" in err[0]
