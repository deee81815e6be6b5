"""Class numbers taken for captions are told: a model knows nothing of what 0 stands for."""

import pytest

import clip_jax
from clip_jax.evaluate import retrieval
from clip_jax.sources import Columns, open_pairs
from clip_jax.sources.stand_ins import stand_ins, warn_of_stand_ins
from clip_jax.train.config import read_config
from clip_jax.train.run import train
from tests import training
from tests.evaluation import shared_encoders
from tests.models import SMALL_VIT, small
from tests.pictures import noise


def table(folder, labels):
    for i in range(len(labels)):
        (folder / f"{i}.png").write_bytes(noise(i))
    rows = [f"{i}.png,{label}\n" for i, label in enumerate(labels)]
    (folder / "pairs.csv").write_text("image,label\n" + "".join(rows))
    return folder / "pairs.csv"


NUMBERS = ["0", "1", "0", "1", "1"]


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        (NUMBERS, "numbers"),
        (["n01440764", "n01443537"], "WordNet's numbers"),
        (["class 1", "class_2"], "numbers of classes"),
        (["True", "false"], "true or false"),
        (["0", "a dog"], ""),
        (["0", "n01440764"], ""),
        ([], ""),
    ],
)
def test_numbers_and_the_like_are_no_words(texts, what):
    assert stand_ins(texts) == what


def test_captions_of_which_one_is_a_word_are_not_spoken_of(tmp_path):
    warn_of_stand_ins(open_pairs(table(tmp_path, ["0", "a dog"]), Columns(caption="label")), "x")


def test_retrieval_by_class_numbers_is_told(tmp_path):
    path = table(tmp_path, NUMBERS)
    with shared_encoders(), pytest.warns(UserWarning, match="pairs.csv are numbers, not words"):
        retrieval(path, small(SMALL_VIT), columns=Columns(caption="label"), progress=False)


def test_training_on_class_numbers_is_told(tmp_path, monkeypatch):
    pytest.importorskip("grain")
    pytest.importorskip("orbax.checkpoint")
    monkeypatch.setattr("clip_jax.train.run.make_step", training.make_step)
    monkeypatch.setattr("clip_jax.train.run.compiler_options", lambda platform: {})
    clip_jax.save(small(SMALL_VIT), tmp_path / "model")
    (tmp_path / "run.toml").write_text(
        f"""out = "{tmp_path}/run"
[model]
from = "{tmp_path}/model"
[data]
train = "{table(tmp_path, 2 * NUMBERS)}"
caption_column = "label"
templates = ["a photo of a {{}}."]
[optimizer]
warmup_steps = 1
total_steps = 2
[run]
batch_size = 8
"""
    )
    with pytest.warns(UserWarning, match="pairs.csv are numbers, not words.* such as '0'"):
        train(read_config(tmp_path / "run.toml"), progress=False)
