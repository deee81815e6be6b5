"""Pixels as other models' folders say: OpenCLIP's ways to a square, and Hugging Face's own."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_jax.config import PixelConfig
from clip_jax.preprocess import Preprocess
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
