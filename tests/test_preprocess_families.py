"""Pixels as other models' folders say: OpenCLIP's ways to a square, and Hugging Face's own."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_jax.errors import CheckpointError
from clip_jax.pixel_config import PixelConfig
from clip_jax.preprocess import Preprocess
from clip_jax.preprocess_huggingface import HuggingFacePreprocess
from tests.peers import peer
from tests.pictures import random_image
from tests.reference import requires_reference

MODES = ["RGB", "L", "LA", "RGBA", "P", "1"]
MEAN, STD = (0.5, 0.25, 0.125), (0.3, 0.2, 0.7)


def open_clips(n: int, config: PixelConfig, image: Image.Image) -> np.ndarray:
    """What OpenCLIP's transform makes of an image."""
    transform = peer("open_clip").image_transform(
        n,
        False,
        mean=config.mean,
        std=config.std,
        resize_mode=config.resize,
        interpolation=config.interpolation,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return transform(image).numpy().transpose(1, 2, 0)


@requires_reference
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@settings(max_examples=8, deadline=None)
@given(
    n=st.sampled_from([1, 7, 32, 97]),
    width=st.integers(1, 120),
    height=st.integers(1, 120),
    seed=st.integers(0, 99),
)
@example(n=32, width=32, height=32, seed=0)
@example(n=32, width=35, height=32, seed=0)
@example(n=33, width=64, height=51, seed=0)
@example(n=31, width=1, height=40, seed=0)
@example(n=31, width=40, height=1, seed=0)
def test_pixels_are_those_of_open_clip_to_the_bit(
    mode, resize, interpolation, n, width, height, seed
):
    if resize == "longest":  # theirs fails below one pixel
        width, height = max(width, height // 3), max(height, width // 3)
    if resize == "longest" and n < 7:
        n = 7
    image = random_image(mode, (width, height), np.random.default_rng(seed))
    config = PixelConfig(mean=MEAN, std=STD, interpolation=interpolation, resize=resize)
    ours, expected = Preprocess(n, config)(image), open_clips(n, config, image)
    assert ours.dtype == np.float32 and ours.shape == (n, n, 3)
    assert ours.tobytes() == expected.tobytes()


@requires_reference
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (2000, 13), (13, 2000)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "LA", "P"])
def test_long_thin_pictures_are_those_of_open_clip_to_the_bit(size, interpolation, mode):
    image = random_image(mode, size, np.random.default_rng(0))
    for resize in ("shortest", "squash"):
        config: Any = PixelConfig(interpolation=interpolation, resize=resize)
        assert Preprocess(64, config)(image).tobytes() == open_clips(64, config, image).tobytes()


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_a_thread_of_pixels_takes_no_memory(resize):
    config = PixelConfig(resize=resize)
    for size in ((1, 3_000_000), (3_000_000, 1)):
        image = Image.new("I", size)
        try:
            assert Preprocess(224, config).pixels(image).shape == (224, 224, 3)
        except ValueError as error:
            assert "too long and thin" in str(error)


def test_an_image_that_would_vanish_is_refused():
    with pytest.raises(ValueError, match="too long and thin"):
        Preprocess(10, PixelConfig(resize="longest"))(Image.new("RGB", (1, 1000)))


def test_pixels_before_normalisation_are_the_same():
    image = random_image("RGB", (40, 30), np.random.default_rng(0))
    preprocess = Preprocess(16, PixelConfig(mean=MEAN, std=STD, resize="squash"))
    pixels = preprocess.pixels(image).astype(np.float32) / np.float32(255)
    mean, std = (np.array(color, np.float32) for color in (MEAN, STD))
    assert np.array_equal(preprocess(image), (pixels - mean) / std)


# ---- Hugging Face's own -------------------------------------------------------------------------


def hugging_faces(image: Image.Image, **options: Any) -> np.ndarray:
    """What transformers' PIL image processor makes of an image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = peer("transformers").CLIPImageProcessorPil(**options)
        found = processor(image, return_tensors="np")["pixel_values"]
    return np.asarray(found)[0].transpose(1, 2, 0)


def write(folder: Path, document: dict[str, Any], name: str = "preprocessor_config.json") -> None:
    (folder / name).write_text(json.dumps(document))


@requires_reference
@pytest.mark.parametrize("mode", [*MODES, "I", "F", "CMYK", "P, transparency table"])
@settings(max_examples=8, deadline=None)
@given(
    n=st.sampled_from([7, 32, 97]),
    width=st.integers(1, 120),
    height=st.integers(1, 120),
    seed=st.integers(0, 99),
    resample=st.sampled_from([2, 3]),
)
@example(n=32, width=35, height=32, seed=0, resample=3)
@example(n=32, width=32, height=39, seed=0, resample=3)
def test_hugging_faces_pixels_are_those_of_its_pil_processor(
    mode, n, width, height, seed, resample
):
    image = random_image(mode, (width, height), np.random.default_rng(seed))
    config = PixelConfig(
        mean=MEAN, std=STD, interpolation="bicubic" if resample == 3 else "bilinear"
    )
    ours = HuggingFacePreprocess(n, config)(image)
    options = {"image_mean": MEAN, "image_std": STD, "resample": resample}
    size = {"size": {"shortest_edge": n}, "crop_size": {"height": n, "width": n}}
    assert ours.tobytes() == hugging_faces(image, **size, **options).tobytes()


DOCUMENTS = {
    "today's": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
    "old": {"size": 24, "crop_size": 24, "feature_extractor_type": "CLIPFeatureExtractor"},
    "larger than the crop": {"size": {"shortest_edge": 30}, "crop_size": 24},
    "smaller than the crop": {"size": {"shortest_edge": 15}, "crop_size": 24},
    "squashed": {"size": {"height": 24, "width": 24}, "crop_size": 24, "resample": 2},
    "squashed to no square": {"size": {"height": 30, "width": 25}, "crop_size": 24},
    "no crop": {"size": {"height": 24, "width": 24}, "do_center_crop": False},
    "not normalised": {"size": 24, "crop_size": 24, "do_normalize": False},
    "other statistics": {"size": 24, "crop_size": 24, "image_mean": MEAN, "image_std": STD},
}


@requires_reference
@pytest.mark.parametrize("what", DOCUMENTS)
def test_a_folder_says_how_its_pixels_are_made(tmp_path, what):
    write(tmp_path, DOCUMENTS[what])
    preprocess = HuggingFacePreprocess.from_folder(tmp_path, 24)
    for size in ((50, 40), (27, 24), (24, 31)):
        image = random_image("RGB", size, np.random.default_rng(0))
        assert preprocess(image).tobytes() == hugging_faces(image, **DOCUMENTS[what]).tobytes()
    (tmp_path / "preprocessor_config.json").unlink()
    write(tmp_path, {"image_processor": DOCUMENTS[what]}, "processor_config.json")
    assert HuggingFacePreprocess.from_folder(tmp_path, 24) == preprocess


def test_a_folder_that_says_nothing_has_the_defaults(tmp_path):
    assert HuggingFacePreprocess.from_folder(tmp_path, 24) == HuggingFacePreprocess(
        24, PixelConfig(), 24
    )


BAD = {
    "another size": ({"size": 32, "crop_size": 32}, "32 x 32 pixels, expected the model's"),
    "no square": ({"size": 24, "crop_size": {"height": 24, "width": 30}}, "24 x 30 pixels"),
    "no crop": ({"size": 24, "do_center_crop": False}, "wouldn't be squares"),
    "another form": ({"size": {"longest_edge": 24}}, "size: expected"),
    "another filter": ({"size": 24, "crop_size": 24, "resample": 0}, "resample"),
    "below zero": ({"size": 24, "crop_size": -24}, "crop_size: expected positive"),
    "a truth": ({"size": True, "crop_size": 24}, "size"),
    "huge": ({"size": 1 << 40, "crop_size": 24}, "size: expected positive"),
    "not scaled": ({"size": 24, "crop_size": 24, "do_rescale": False}, "do_rescale"),
}


@pytest.mark.parametrize("what", BAD)
def test_pixels_that_can_not_be_made_are_refused(tmp_path, what):
    document, expected = BAD[what]
    write(tmp_path, document)
    with pytest.raises(CheckpointError) as caught:
        HuggingFacePreprocess.from_folder(tmp_path, 24)
    assert expected in str(caught.value) and "preprocessor_config.json" in str(caught.value)
