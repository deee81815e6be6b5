"""Figures of a classification, names of classes, and rows held out: those of plain NumPy."""

import numpy as np
import pytest

from clip_jax.evaluate.classes import hold_out, name_classes
from clip_jax.evaluate.scores import score, wilson


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
