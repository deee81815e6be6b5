"""Names of classes that can't be told apart, or are no names."""

import warnings
from typing import Any

import pytest

from clip_jax.evaluate import ZeroShotClassifier, zeroshot
from tests.calls import runner
from tests.models import SMALL_VIT, random_images, small

ALONE = "one class alone always has 100%"


@pytest.fixture(scope="module")
def model():
    """A model."""
    return small(SMALL_VIT)


def test_one_class_alone_is_told_to_mean_nothing(model):
    with pytest.warns(UserWarning, match=ALONE):
        classifier = ZeroShotClassifier(model, ["cat"])
    assert classifier.probabilities(random_images(2, 32)).tolist() == [[1], [1]]


def test_names_that_the_tokenizer_takes_for_one_are_told(model):
    with pytest.warns(UserWarning, match=r"called 'cat' and 'Cat' and ' cat': their scores are"):
        classifier = ZeroShotClassifier(model, ["cat", "dog", "Cat", " cat"])
    first, _, second, third = classifier.logits(random_images(1, 16)[0, :2, :, 0])[0]
    assert first == pytest.approx(second) == pytest.approx(third)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZeroShotClassifier(model, ["cat", "cats", "a cat"])


def test_names_that_differ_to_a_tokenizer_are_two(model):
    def tokenizer(texts):
        ids = ZeroShotClassifier.__init__.__globals__["tokenize"](texts)
        ids[:, 1] = ["Cat" in text for text in texts]
        return ids

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZeroShotClassifier(model, ["cat", "Cat"], tokenizer=tokenizer)


def test_a_dictionary_or_a_text_are_no_list_of_names(model, tmp_path):
    wrong: tuple[Any, ...] = ({"cat": "a cat", "dog": "a dog"}, "cat")
    for names in wrong:
        with pytest.raises(TypeError, match="class_names must be a sequence of strings"):
            ZeroShotClassifier(model, names)
        for folder in ("cat", "dog"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "0.png").touch()
        with pytest.raises(TypeError, match="class_names must be a sequence of strings"):
            zeroshot(tmp_path, model, class_names=names, progress=False)


def test_a_list_as_text_is_no_name(model):
    with pytest.raises(ValueError, match=r"must be one name. Got a list .*: \['cat', 'dog'\]"):
        ZeroShotClassifier(model, ["['cat', 'dog']", "bird"])


def test_a_file_is_no_label(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    run = runner(capsys, "classify")
    status, _, err = run("a.png", "--labels", "labels.txt", "--model", "emoji")
    assert status == 2 and "labels.txt is a file, expected a label" in err[-1]
