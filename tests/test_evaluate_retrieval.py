"""Recall at k: that of plain NumPy and float64, whatever the size of the blocks."""

import jax
import numpy as np
import pytest

from clip_jax.evaluate import recall, recall_at_k
from tests.evaluation import unit


def plain_recall(image, text, image_of, ks) -> dict:
    """By the whole matrix; a negative as similar as the positive ranks before it."""
    cosines = unit(image) @ unit(text).T
    positive = image_of == np.arange(len(image))[:, None]
    ranks = {}
    for name, scores, positives in (
        ("image_to_text", cosines, positive),
        ("text_to_image", cosines.T, positive.T),
    ):
        best = np.where(positives, scores, -np.inf).max(axis=1, keepdims=True)
        ranks[name] = (~positives & (scores >= best - 1e-14)).sum(axis=1)
    return {name: {k: np.mean(rank < k) for k in ks} for name, rank in ranks.items()}


@pytest.mark.parametrize("block", [7, 2048])
def test_recall_is_that_of_plain_numpy(block, monkeypatch):
    monkeypatch.setattr(recall, "BLOCK", block)
    rng = np.random.default_rng(0)
    image_of = rng.permutation(np.concatenate([np.arange(23), rng.integers(0, 23, 36)]))
    image = rng.normal(size=(23, 11)).astype(np.float32)
    text = (image[image_of] + rng.normal(size=(59, 11)) * 2).astype(np.float32)
    image[5], text[3], text[4] = image[9], text[17], text[17]  # ties
    ks = (1, 2, 3, 5, 10, 100)
    assert recall_at_k(image, text, image_of, ks) == plain_recall(image, text, image_of, ks)
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
