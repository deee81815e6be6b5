"""Frames resized on the device equal Pillow's pixels to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_jax.pixel_config import PixelConfig
from clip_jax.preprocess import Preprocess

# Height, width, size of the model: enlarged, reduced, both, and the order of Pillow's passes.
SIZES = [
    *((48, 64, 224), (480, 640, 224), (640, 480, 224), (300, 30, 48), (30, 300, 48)),
    *((224, 224, 224), (500, 499, 48), (700, 90, 64), (97, 31, 32), (1, 5, 8), (250, 16, 224)),
]


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_pillows(height, width, size, resize, interpolation):
    config = PixelConfig(resize=resize, interpolation=interpolation)
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    resizer = Preprocess(size, config).on_device(height, width)
    expected = [Preprocess(size, config).pixels(Image.fromarray(frame)) for frame in frames]
    # Uncompiled, because there is one program for each pair of sizes.
    with jax.disable_jit():
        np.testing.assert_array_equal(np.asarray(resizer(jnp.asarray(frames))), expected)


def test_a_compiled_resizer_gives_the_same():
    frames = np.random.default_rng(1).integers(0, 256, (3, 120, 90, 3), np.uint8)
    expected = [Preprocess(48).pixels(Image.fromarray(frame)) for frame in frames]
    resized = jax.jit(Preprocess(48).on_device(120, 90))(frames)
    np.testing.assert_array_equal(np.asarray(resized), expected)


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (300, 30), (97, 131)])
def test_pixels_of_models_whose_images_are_not_square(height, width, resize):
    config = PixelConfig(resize=resize)
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    resizer = Preprocess((32, 56), config).on_device(height, width)
    expected = [Preprocess((32, 56), config).pixels(Image.fromarray(frame)) for frame in frames]
    with jax.disable_jit():
        np.testing.assert_array_equal(np.asarray(resizer(jnp.asarray(frames))), expected)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0)])
def test_frames_without_pixels_are_refused(height, width):
    with pytest.raises(ValueError, match=rf"Got {height} x {width} pixels"):
        Preprocess(8).on_device(height, width)
