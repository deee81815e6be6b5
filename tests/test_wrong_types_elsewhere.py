"""What people give by habit of other libraries: told, and never embedded as something else."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.embed import ImageEmbedder, embed
from clip_jax.evaluate import ZeroShotClassifier, retrieval
from clip_jax.export import export
from clip_jax.sources.pairs import open_pairs
from tests.models import SMALL_VIT, random_images, small


@pytest.fixture(scope="module")
def model():
    """A model."""
    return small(SMALL_VIT)


@pytest.fixture
def picture(tmp_path) -> Path:
    """A picture's file."""
    Image.fromarray(random_images(1, 40)[0]).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_the_path_of_a_picture_is_not_encoded_as_a_text(model, picture, monkeypatch):
    encoder = clip_jax.Encoder(model)
    for inputs in (str(picture), ["a pear", str(picture)]):
        with pytest.raises(ValueError, match=r"a picture's file, .* clip_jax.open_image\("):
            encoder.encode(inputs)
    assert encoder.encode("of no file.png").shape == (16,)
    wrong: tuple[Any, ...] = (picture, [picture], {"a": 1}, 3, None)
    for inputs in wrong:
        with pytest.raises(TypeError, match=r"strings and PIL images. Got .*open_image\(path\)"):
            encoder.encode(inputs)


def test_options_of_pictures_are_no_dictionary(model, picture, tmp_path):
    wrong: Any = {"fit": "pad"}
    captions = tmp_path / "captions.csv"
    captions.write_text("image,caption\na.png,a pear\n")
    for use in (
        lambda: embed(picture.parent, model, tmp_path / "out", pictures=wrong),
        lambda: ImageEmbedder(model, pictures=wrong),
        lambda: retrieval(captions, model, pictures=wrong),
    ):
        with pytest.raises(TypeError, match=r"PictureOptions\(fit='pad'\). Got dict"):
            use()
    assert not (tmp_path / "out").exists()


def test_a_dictionary_is_no_list_of_texts():
    with pytest.raises(TypeError, match="a string or a list of strings, got dict"):
        clip_jax.tokenize({"a pear": 1})


def test_what_cuts_a_text_is_named_where_there_is_no_such_argument(model):
    with pytest.raises(ValueError, match="its tokenizer, called with truncate=True, cuts it"):
        clip_jax.Encoder(model).encode("word " * 80)


def test_pixels_as_floats_are_told_from_normalised_ones(model):
    pixels = random_images(2, 32)
    for encode in (model.encode_image, clip_jax.Encoder(model).images):
        with pytest.warns(UserWarning, match="images are floats up to 25.*give pixels as uint8"):
            encode(pixels.astype(np.float32))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encode(clip_jax.Preprocess(32)([Image.fromarray(each) for each in pixels]))
            encode(np.zeros((0, 32, 32, 3), np.float32))


def test_a_grey_image_is_not_told_to_lack_its_batch(model):
    with pytest.raises(ValueError, match=r"Got \(2, 32, 32\)\.$"):
        model.encode_image(np.zeros((2, 32, 32), np.uint8))


@pytest.mark.parametrize("dtype", ["bf16", "int32", dict])
def test_an_unknown_dtype_or_precision_is_refused_when_it_is_given(dtype):
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or float16. Got"):
        clip_jax.load("emoji", dtype=dtype)
    with pytest.raises(ValueError, match="precision must be one that .* Got 'max'"):
        clip_jax.load("emoji", precision="max")
    assert clip_jax.load("emoji", precision="bfloat16")[0].precision == "bfloat16"


def test_a_name_in_place_of_a_model_is_told_where_a_model_is_needed(tmp_path):
    calls = (
        lambda: clip_jax.save("emoji", tmp_path / "out"),  # pyright: ignore[reportArgumentType]
        lambda: export("emoji", tmp_path / "out"),  # pyright: ignore[reportArgumentType]
        lambda: ZeroShotClassifier("emoji", ["cat", "dog"]),  # pyright: ignore[reportArgumentType]
    )
    for call in calls:
        with pytest.raises(TypeError, match="as clip_jax.load returns it. Got str"):
            call()
    assert not (tmp_path / "out").exists()


def test_columns_are_told_to_be_columns(model, picture):
    table = picture.with_name("table.csv")
    table.write_text("picture,caption\na.png,a pear\n")
    given: Any = {"image": "picture"}
    calls = (
        lambda: embed(table, model, picture.with_name("out"), columns=given, progress=False),
        lambda: retrieval(table, model, columns=given, progress=False),
        lambda: open_pairs(table, given),
    )
    for call in calls:
        with pytest.raises(TypeError, match="columns must be clip_jax.embed.Columns.* Got dict"):
            call()
