"""`Preprocess.on_device` makes Pillow's pixels of any size of frames, in every way to fit them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_jax.pixel_config import PixelConfig
from clip_jax.preprocess import Preprocess
from clip_jax.preprocess_huggingface import HuggingFacePreprocess


def drawn(seed: int) -> tuple[Preprocess, int, int]:
    """A preprocessing, and the height and width of frames, smaller or larger than its images."""
    rng = np.random.default_rng(seed)
    height, width = np.exp(rng.uniform(np.log(3), np.log(500), 2)).astype(int).tolist()
    sides = [int(rng.integers(5, 250)), (int(rng.integers(5, 90)), int(rng.integers(5, 90)))]
    config = PixelConfig(
        interpolation=["bicubic", "bilinear"][rng.integers(2)],
        resize=["shortest", "squash", "longest"][rng.integers(3)],
    )
    fit = [None, None, "crop", "pad", "squash"][rng.integers(5)]
    background = [None, "#123456"][rng.integers(2)]
    kind = [Preprocess, HuggingFacePreprocess][int(config.resize != "longest" and seed % 2)]
    preprocess = kind(sides[int(rng.random() < 0.3)], config, fit=fit, background=background)
    return preprocess, height, width


@pytest.mark.parametrize("seed", range(40))
def test_frames_of_any_size_have_pillows_pixels(seed):
    preprocess, height, width = drawn(seed)
    frames = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), np.uint8)
    expected = [preprocess.pixels(Image.fromarray(frame)) for frame in frames]
    with jax.disable_jit():  # one program for each size would take long to compile
        found = preprocess.on_device(height, width)(jnp.asarray(frames))
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_the_sizes_that_are_drawn_are_larger_and_smaller_than_the_images():
    ratios = []
    for seed in range(40):
        preprocess, height, width = drawn(seed)
        place = preprocess.geometry(width, height)
        ratios += [width / place.width, height / place.height]
    assert sum(ratio > 1 for ratio in ratios) > 20 and sum(ratio < 1 for ratio in ratios) > 20


def test_a_crop_larger_than_the_resized_picture_has_black_margins():
    preprocess = HuggingFacePreprocess(32, resized=20, background="white")
    frames = np.full((1, 30, 40, 3), 200, np.uint8)
    found = np.asarray(preprocess.on_device(30, 40)(jnp.asarray(frames)))
    np.testing.assert_array_equal(found[0], preprocess.pixels(Image.fromarray(frames[0])))
    assert (found[0, 0] == 0).all() and (found[0, 16, 16] == 200).all()


def test_resizing_normalising_and_encoding_are_one_program():
    preprocess = Preprocess(16)
    resize = preprocess.on_device(24, 20)

    @jax.jit
    def brightness(frames: jax.Array) -> jax.Array:
        return resize(frames).astype(jnp.float32).mean((1, 2))

    frames = np.random.default_rng(0).integers(0, 256, (3, 24, 20, 3), np.uint8)
    expected = [preprocess.pixels(Image.fromarray(frame)).mean((0, 1)) for frame in frames]
    np.testing.assert_allclose(np.asarray(brightness(jnp.asarray(frames))), expected, rtol=1e-5)


def test_frames_that_are_too_thin_to_fit_in_are_refused():
    with pytest.raises(ValueError, match="frames of 2000 x 1 pixels are too long and thin"):
        Preprocess(32, fit="pad").on_device(2000, 1)
