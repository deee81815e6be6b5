"""What is given in place of a model, of arrays or of ids is named, with what to give instead."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.evaluate import ZeroShotClassifier
from tests.models import SMALL_VIT, small

PICTURE = Image.new("RGB", (9, 9))


@pytest.fixture(scope="module")
def model():
    return small(SMALL_VIT)


@pytest.mark.parametrize("images", [[PICTURE], "a.png", [Path("a.png")]])
def test_pictures_in_place_of_arrays_name_preprocess(model, images):
    for encode in (model.encode_image, clip_jax.Encoder(model).images):
        with pytest.raises(ValueError, match=r"the model's preprocess: preprocess\(\[picture\]\)"):
            encode(images)
    assert clip_jax.Preprocess(32)([PICTURE]).shape == (1, 32, 32, 3)


def test_what_is_no_model_of_both_towers_is_no_encoders(tmp_path, model):
    clip_jax.save(model, tmp_path / "model")
    text, _ = clip_jax.load_text_model(tmp_path / "model")
    for wrong in ("ViT-B/32", text, None):
        with pytest.raises(TypeError, match="one of both towers, as clip_jax.load returns it"):
            clip_jax.Encoder(wrong)  # pyright: ignore[reportArgumentType]


def test_a_classifier_has_a_short_repr(model):
    assert repr(ZeroShotClassifier(model, ["cat", "dog"])).startswith(
        "ZeroShotClassifier(2 names, 1 template, Encoder("
    )


def test_one_array_of_an_image_still_wants_its_axis(model):
    with pytest.raises(ValueError, match="give images\\[None\\]"):
        model.encode_image(np.zeros((32, 32, 3), np.uint8))
