"""The encoder refuses wrong options and inputs, and names rows that are no numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import Encoder, from_parameters
from tests.encoders import BATCH_SIZE, END, callers_mesh
from tests.models import SMALL_VIT, random_parameters, to_float


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "at least 1. Got 0"),
        ({"batch_size": -8}, ValueError, "at least 1. Got -8"),
        ({"batch_size": 2.5}, TypeError, "float"),
        ({"parallel": "pjit"}, ValueError, '"jit", "pmap" or "mesh". Got \'pjit\''),
        ({"dtype": "int32"}, ValueError, "float32, bfloat16 or float16. Got int32"),
        ({"dtype": "float64"}, ValueError, "float32, bfloat16 or float16. Got float64"),
    ],
)
def test_wrong_options_are_refused(model, options, error, message):
    with pytest.raises(error, match=message):
        Encoder(model, **options)


@pytest.mark.parametrize("placement", ["jit", "pmap"])
def test_a_mesh_without_parallel_mesh_is_refused(model, placement):
    with pytest.raises(ValueError, match=f"parallel=\"mesh\". Got parallel='{placement}'"):
        Encoder(model, parallel=placement, mesh=callers_mesh())


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 3, 32, 32), np.uint8, r"\(batch, 32, 32, 3\). Got \(2, 3, 32, 32\).*NCHW"),
        ((2, 48, 48, 3), np.uint8, r"Got \(2, 48, 48, 3\)"),
        ((0, 48, 48, 3), np.uint8, r"Got \(0, 48, 48, 3\)"),
        ((32, 32, 3), np.uint8, r"Got \(32, 32, 3\).*images\[None\]"),
        ((2, 32, 32, 3), np.int32, "uint8 pixels or normalised floats. Got int32"),
    ],
)
def test_wrong_images_are_refused(one_device, shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        one_device.images(np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((12, 77), np.int32), "end token, 49407. Rows without: 0, 1, .*, 9 and 2 more"),
        (np.array([[49406, END], [49406, 320]]), "Rows without: 1"),
        (np.full((2, 77), 49408), "must lie in 0..49407. Got 49408..49408"),
        (jnp.full((2, 77), -1), "must lie in 0..49407. Got -1..-1"),
        (np.zeros((2, 78), np.int32), r"length 1 to 77. Got \(2, 78\)"),
        (np.zeros(77, np.int32), r"Got \(77,\)"),
        (np.zeros((2, 77), np.float32), "must be integers. Got float32"),
    ],
)
def test_wrong_tokens_are_refused(one_device, tokens, message):
    with pytest.raises(ValueError, match=message):
        one_device.texts(tokens)


def test_wrong_texts_are_refused(one_device):
    with pytest.raises(ValueError, match="102 tokens .* more than the context length of 77"):
        one_device.texts(["a dog", "dog " * 100])
    with pytest.raises(TypeError, match=r"texts\[1\] must be a string, got int 7"):
        one_device.texts(["a dog", 7])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_images_with_nan_are_named_and_disturb_no_other(encoder, images, bad):
    pixels = np.array(to_float(images[:10]))
    expected = encoder.images(pixels)
    pixels[[3, 8], 5, 7, 1] = bad
    with pytest.raises(ValueError, match="rows 3, 8 are not finite: their pixels are not finite"):
        encoder.images(pixels)
    good = np.delete(np.arange(10), [3, 8])
    assert np.array_equal(encoder.images(pixels[good]), expected[good])


def test_damaged_weights_are_named_as_the_reason(images):
    tree = random_parameters(SMALL_VIT)
    tree["visual"]["proj"] = np.full((64, 16), np.nan)
    encoder = Encoder(from_parameters(SMALL_VIT, tree), batch_size=BATCH_SIZE)
    with pytest.raises(ValueError, match="rows 0 are not finite: the weights are damaged"):
        encoder.images(images[:1])
