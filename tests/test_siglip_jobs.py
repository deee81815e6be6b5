"""What is done with a model is done with SigLIP: probabilities are each label's own."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from clip_jax.cli import main
from clip_jax.embed import embed, read_embeddings
from clip_jax.evaluate import ZeroShotClassifier, zeroshot
from clip_jax.evaluate.data import without_projection
from clip_jax.evaluate.scores import score_blocks, sigmoid
from clip_jax.search import search
from clip_jax.train import OptimizerConfig, StepConfig, init_state, make_step
from clip_jax.weights import save_parameters
from tests.evaluation import unit
from tests.models import random_images, random_parameters, relative_error, small
from tests.siglip import SIGLIP, random_ids

# With CLIP's vocabulary, so that strings are understood without SentencePiece.
SPOKEN = dataclasses.replace(
    SIGLIP, text=dataclasses.replace(SIGLIP.text, vocab_size=49408, context_length=16)
)
LABELS = ["red", "blue", "dog"]


@pytest.fixture(scope="module")
def model():
    return small(SPOKEN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and pictures of two classes."""
    root = tmp_path_factory.mktemp("siglip")
    save_parameters(SPOKEN, random_parameters(SPOKEN), root / "model")
    for i, pixels in enumerate(random_images(6, 29)):
        path = root / "pictures" / LABELS[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def test_a_class_has_the_sigmoid_of_its_own_logit(model):
    classifier = ZeroShotClassifier(model, LABELS, ["{}"])
    images = random_images(4, 29)
    image = unit(np.asarray(model.encode_image(images), np.float64))
    scale, bias = (np.float64(x[...]) for x in (model.logit_scale, model.logit_bias))
    logits = np.exp(scale) * image @ classifier.weights.T + bias
    np.testing.assert_allclose(classifier.logits(image), logits, atol=1e-6)
    given = classifier.probabilities(images)
    np.testing.assert_allclose(given, 1 / (1 + np.exp(-logits)), atol=1e-4)
    assert classifier.is_independent and (given.sum(axis=1) != 1).all()
    # Another label changes nothing.
    fewer = ZeroShotClassifier(model, LABELS[:1], ["{}"]).probabilities(images)
    np.testing.assert_allclose(fewer[:, 0], given[:, 0], atol=1e-5)
    assert (classifier.predict(images) == logits.argmax(axis=1)).all()


def test_the_sigmoid_doesnt_overflow():
    with np.errstate(all="raise"):
        found = sigmoid(np.array([-700.0, -1.0, 0.0, 1.0, 700.0]))
    np.testing.assert_allclose(found, [0, 0.26894142, 0.5, 0.73105858, 1], atol=1e-8)


def test_the_confidence_of_a_report_is_the_labels_own():
    logits = np.array([[-3.0, -1.0], [2.0, 1.0]])
    scores = score_blocks([logits], np.array([0, 0]), is_independent=True)
    np.testing.assert_allclose(scores.confidence, [0.26894142, 0.88079708], atol=1e-8)
    scores = score_blocks([logits], np.array([0, 0]))
    np.testing.assert_allclose(scores.confidence, [0.88079708, 0.73105858], atol=1e-8)


def test_the_command_says_that_each_probability_is_the_labels_own(folder, capsys):
    picture = str(folder / "pictures" / "red" / "0.png")
    command = ["classify", picture, "--model", str(folder / "model"), "--labels", *LABELS]
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "each label has a probability of its own" in err and err.count("\n") == 1
    (found,) = json.loads(out)
    classifier = ZeroShotClassifier(small(SPOKEN), LABELS, ["{}"])
    expected = classifier.probabilities(random_images(6, 29)[:1])[0]
    given = {score["label"]: score["probability"] for score in found["scores"]}
    np.testing.assert_allclose([given[label] for label in LABELS], expected, atol=1e-5)


def test_pictures_are_embedded_searched_and_classified(folder, model, tmp_path):
    pictures = str(folder / "pictures")
    embed(pictures, folder / "model", tmp_path / "out", progress=False)
    assert read_embeddings(tmp_path / "out").count_rows() == 6
    query = folder / "pictures" / "red" / "0.png"
    hits = search(tmp_path / "out", folder / "model", query, k=2)
    assert hits[0]["key"] == "red/0.png" and hits[0]["score"] > 0.999
    assert len(search(tmp_path / "out", folder / "model", "red", k=6)) == 6
    result = zeroshot(pictures, folder / "model", class_names=LABELS, progress=False)
    classifier = ZeroShotClassifier(model, LABELS)
    own = classifier.probabilities(random_images(6, 29)).max(axis=1)
    np.testing.assert_allclose(np.sort(result.scores.confidence), np.sort(own), atol=1e-5)


def test_there_are_no_features_before_a_projection_that_there_isnt(model):
    with pytest.raises(ValueError, match="SigLIP has no projection after its attention pooling"):
        without_projection(model)


def test_training_goes_on_from_the_models_own_scale_by_its_own_loss(model):
    optimizer = OptimizerConfig(total_steps=20, warmup_steps=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match='SigLIP is trained with loss="sigmoid"'):
        make_step(SPOKEN, optimizer)
    state = init_state(model, optimizer, "sigmoid")
    assert float(state.parameters["logit_scale"]) == pytest.approx(float(model.logit_scale[...]))
    step = jax.jit(make_step(SIGLIP, optimizer, StepConfig(loss="sigmoid")))
    state = init_state(small(SIGLIP), optimizer, "sigmoid")
    batch = {"images": random_images(4, 29), "tokens": random_ids(4)}
    losses = []
    for number in range(6):
        state, metrics = step(state, batch, jax.random.key(number))
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < 0.7 * losses[0]


def test_what_is_written_of_a_siglip_model_by_the_command_is_read_back(folder, tmp_path, capsys):
    there, back = tmp_path / "huggingface", tmp_path / "native"
    assert main(["convert", str(folder / "model"), str(there), "--to", "huggingface"]) == 0
    assert main(["convert", str(there), str(back)]) == 0
    assert "gelu_tanh" in capsys.readouterr().out
    import clip_jax

    model, _ = clip_jax.load(back)
    assert model.config == SPOKEN
    images = random_images(2, 29)
    assert relative_error(model.encode_image(images), small(SPOKEN).encode_image(images)) < 1e-6
    assert main(["convert", str(back), str(tmp_path / "x"), "--to", "open_clip"]) == 1
    assert "SigLIP model, whose vision tower is timm's" in capsys.readouterr().err
