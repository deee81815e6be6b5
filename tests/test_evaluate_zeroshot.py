"""Zero-shot classification: the logits of plain NumPy, from prompts that are embedded once."""

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax.errors import NotFiniteError
from clip_jax.evaluate import ZeroShotClassifier
from clip_jax.evaluate import classifier as classifier_module
from clip_jax.model_tokenizer import Tokenizer
from tests.evaluation import unit
from tests.models import SMALL_VIT, random_images, small, to_float

NAMES = ("red bicycle", "dog", "cat")
TEMPLATES = ("a photo of a {}.", "the {}, a drawing of a {}")


@pytest.fixture(scope="module")
def model():
    return small(SMALL_VIT)


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


def test_many_prompts_are_embedded_once_for_a_model(model, monkeypatch):
    monkeypatch.setattr(classifier_module, "FEW", 1)
    first = ZeroShotClassifier(model, NAMES, TEMPLATES)
    monkeypatch.setattr(classifier_module, "tokenize", None)
    again = ZeroShotClassifier(model, NAMES, TEMPLATES)
    assert again.weights is first.weights
    other = small(SMALL_VIT)
    other.ln_final.bias[...] = other.ln_final.bias[...] + 1
    for arguments in ((other, NAMES, TEMPLATES), (model, NAMES[:2], TEMPLATES), (model, NAMES)):
        with pytest.raises(TypeError, match="NoneType"):
            ZeroShotClassifier(*arguments)


def test_few_prompts_have_the_embeddings_of_many(model, classifier, monkeypatch):
    monkeypatch.setattr(classifier_module, "FEW", 1)
    many = ZeroShotClassifier(model, NAMES, TEMPLATES)
    assert np.abs(many.weights - classifier.weights).max() < 1e-6
    assert many.weights.dtype == classifier.weights.dtype == np.float64


def test_few_prompts_take_no_digest_of_the_weights(model, monkeypatch):
    monkeypatch.setattr(classifier_module, "model_digest", None)
    ZeroShotClassifier(model, NAMES, TEMPLATES)
    with pytest.raises(TypeError, match="NoneType"):
        ZeroShotClassifier(model, [f"thing {i}" for i in range(classifier_module.FEW + 1)])


@pytest.mark.parametrize("few", [0, 64])
@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_damaged_text_weights_make_no_classifier(monkeypatch, few, bad):
    monkeypatch.setattr(classifier_module, "FEW", few)
    damaged = small(SMALL_VIT)
    damaged.text_projection[...] = damaged.text_projection[...] * bad
    with pytest.raises(NotFiniteError, match="the weights are damaged") as caught:
        ZeroShotClassifier(damaged, NAMES)
    assert caught.value.rows == [0, 1, 2]


@pytest.mark.parametrize("logarithm", [np.nan, np.inf, 1e4])
def test_a_logit_scale_that_is_not_finite_makes_no_classifier(logarithm):
    damaged = small(SMALL_VIT)
    damaged.logit_scale[...] = logarithm
    with pytest.raises(ValueError, match="logit scale is not finite .*: the weights are damaged"):
        ZeroShotClassifier(damaged, NAMES)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
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


@pytest.mark.parametrize("few", [1, 64])
def test_prompts_are_made_ids_by_the_tokenizer_that_is_given(model, monkeypatch, few):
    monkeypatch.setattr(classifier_module, "FEW", few)
    plain = ZeroShotClassifier(model, ["a &amp; b", "c"], ["{}"])
    theirs = Tokenizer(77, "huggingface", pad_id=49407)  # which doesn't resolve entities
    given = ZeroShotClassifier(model, ["a &amp; b", "c"], ["{}"], tokenizer=theirs)
    expected = unit(model.encode_text(theirs(["a &amp; b", "c"])))
    np.testing.assert_allclose(given.weights, expected, atol=1e-5)
    assert np.abs(plain.weights[0] - given.weights[0]).max() > 1e-3
    np.testing.assert_allclose(plain.weights[1], given.weights[1], atol=1e-5)
