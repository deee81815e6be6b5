"""A folder of transformers that crops its pictures from larger ones says so when it is loaded."""

import json

import pytest

import clip_jax
from clip_jax.convert import to_huggingface
from tests.model_files import VIT
from tests.models import random_parameters


@pytest.fixture
def folder(tmp_path):
    to_huggingface(VIT, random_parameters(VIT), tmp_path / "hf")
    return tmp_path / "hf"


def change(folder, **values):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("size", [{"shortest_edge": 40}, 40])
@pytest.mark.parametrize("load", [clip_jax.load, clip_jax.load_vision_model])
def test_a_crop_from_larger_pictures_is_told_and_can_be_had(folder, size, load):
    change(folder, size=size)
    with pytest.warns(UserWarning, match="resized to 40 and cropped to 32 x 32; OpenAI's way"):
        load(folder)
    _, preprocess = load(folder, preprocessing="huggingface")
    assert preprocess.resized == 40


@pytest.mark.parametrize("values", [{"crop_size": 36}, {"do_center_crop": False}])
def test_a_crop_that_cannot_be_followed_is_told(folder, values):
    change(folder, **values)
    with pytest.warns(UserWarning, match="its image processor can't be followed"):
        clip_jax.load(folder)


def test_the_usual_crop_is_loaded_without_a_word(folder):
    clip_jax.load(folder)
    change(folder, size={"height": 32, "width": 32})
    clip_jax.load(folder)
