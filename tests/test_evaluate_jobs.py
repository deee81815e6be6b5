"""The evaluations as functions of Python: `zeroshot`, `retrieval` and `probe`."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import clip_jax
from clip_jax import evaluate
from clip_jax.evaluate import LinearProbe, ZeroShotClassifier, inputs, recall_at_k
from clip_jax.evaluate.results import LeftOut
from tests.calls import Run, runner
from tests.evaluation import shared_encoders, write_data
from tests.models import SMALL_VIT, small
from tests.pictures import COLOURS

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def model():
    return small(SMALL_VIT)


@pytest.fixture(scope="module")
def data(model, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("jobs")
    with shared_encoders():
        write_data(root, model)
        yield root


@pytest.fixture
def run(data, monkeypatch, capsys) -> Run:
    monkeypatch.chdir(data)
    return runner(capsys, "eval")


@pytest.fixture(scope="module")
def embeddings(data) -> dict[str, np.ndarray]:
    table = clip_jax.embed.read_embeddings(data / "embedded").to_table()
    return {
        "images": np.array(table["embedding"].to_pylist(), np.float32),
        "texts": np.array(table["text_embedding"].to_pylist(), np.float32),
        "labels": np.array(table["label"].to_pylist()),
    }


def test_zeroshot_is_the_classifier_on_the_embeddings(data, model, embeddings, run):
    templates = ["a photo of a {}.", "a {} thing"]
    result = evaluate.zeroshot(
        data / "embedded", model, class_names=["red", "blue", "green"], templates=templates
    )
    classifier = ZeroShotClassifier(model, ["red", "blue", "green"], templates)
    expected = classifier.logits(embeddings["images"]).argmax(axis=1)
    names = np.array(result.class_names)
    assert names.tolist() == ["red", "blue", "green"] and result.templates == tuple(templates)
    assert np.array_equal(result.scores.predicted, expected)
    assert np.array_equal(names[result.targets], embeddings["labels"])
    assert result.scores.top1 == np.mean(names[expected] == embeddings["labels"])
    assert (len(result.keys), len(result.paths), result.left_out) == (30, 30, LeftOut([]))
    (data / "order.txt").write_text("red\nblue\ngreen")
    printed = run("zeroshot", "embedded", "--classes", "order.txt", "--templates", "templates.txt",
                  "--json")[1]  # fmt: skip
    document = json.loads(printed)
    assert document["per_class"] == result.per_class and document["top1"] == result.scores.top1


def test_retrieval_is_the_recall_of_the_embeddings(data, model, embeddings):
    result = evaluate.retrieval(data / "embedded")
    assert (result.num_images, result.num_texts, bool(result.left_out)) == (30, 30, False)
    assert result.recalls == recall_at_k(embeddings["images"], embeddings["texts"])
    assert evaluate.retrieval(data / "embedded", model) == result
    pairs = evaluate.retrieval(data / "captions.jsonl", model, batch_size=8, progress=False)
    assert (pairs.num_images, pairs.num_texts) == (30, 60)


def test_probe_is_the_linear_probe_on_the_embeddings(data, embeddings):
    result = evaluate.probe(data / "embedded", C=0.5, tol=1e-6)
    is_test = np.arange(30) % 10 % 5 == 4  # of ten rows of each class, one class after the other
    images, labels = embeddings["images"], embeddings["labels"]
    expected = LinearProbe(0.5, tol=1e-6).fit(images[~is_test], labels[~is_test])
    assert np.allclose(result.probe.coef_, expected.coef_, atol=1e-4)
    assert result.scores.top1 == expected.score(images[is_test], labels[is_test])
    assert (result.num_fitted, result.scores.count, result.sweep) == (24, 6, None)
    assert result.class_names == sorted(COLOURS)
    with pytest.warns(UserWarning, match="by heart"):
        other = evaluate.probe(data / "embedded", test=data / "embedded", C=0.5)
    assert (other.num_fitted, other.scores.count) == (30, 30)
    searched = evaluate.probe(data / "embedded")
    assert searched.sweep.best.C == searched.probe.C


def test_pictures_are_evaluated_with_a_model_that_is_in_memory(data, model, monkeypatch):
    def load(*_, **__):
        raise AssertionError

    monkeypatch.setattr(inputs, "load", load)
    result = evaluate.zeroshot(data / "pictures", model, batch_size=8, progress=False)
    assert result.scores.count == 30 and not result.left_out
    features = evaluate.probe(data / "pictures", model, C=1.0, batch_size=8, progress=False)
    assert features.probe.n_features_in_ == SMALL_VIT.embed_dim


def test_results_can_not_be_changed(data):
    result = evaluate.retrieval(data / "embedded")
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.num_images = 3


def test_unfit_parameters_of_a_probe_are_found_before_a_picture_is_read(data, model, monkeypatch):
    monkeypatch.setattr(inputs, "embed_images", None)
    for options, message in (
        ({"C": -1.0}, "C must be a number above 0"),
        ({"max_iter": 0}, "max_iter must be a whole number from 1 on"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.probe(data / "pictures", model, **options)


def test_what_is_left_out_of_two_sources_is_added_up():
    both = LeftOut(["a"], 2, 4) + LeftOut(["b"], 5, 3)
    assert both == LeftOut(["a", "b"], 7, 7)
    assert both and LeftOut(missing=1) and LeftOut(unknown=1) and not LeftOut()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_told_each_step_unless_progress_is_off(data, monkeypatch):
    for progress in (True, False):
        monkeypatch.setattr(sys, "stderr", Terminal())
        evaluate.probe(data / "embedded", data / "model", progress=progress)
        said = sys.stderr.getvalue().splitlines()
        steps = ["loading the model ...", "searching for C ...", "fitting ..."]
        assert said == (steps if progress else [])
