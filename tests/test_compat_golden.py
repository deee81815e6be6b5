"""Flax CLIP's outputs, against those of transformers 4 (benchmarks/flax_clip_golden.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.compat import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    FlaxCLIPModel,
    FlaxCLIPTextModel,
    FlaxCLIPTextModelWithProjection,
    FlaxCLIPVisionModel,
)
from clip_jax.nn import flatten
from tests import flax_clip as cases
from tests.models import GOLDEN, relative_error

TOLERANCE = 1e-6  # relative; float32 sums in another order, measured 4e-7
HALF = 1e-2  # bfloat16: softmax is float32 here, bfloat16 there
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}

TEXT, TEXT_EOS = CLIPTextConfig(**cases.TEXT), CLIPTextConfig(**cases.TEXT_EOS)
VISION = CLIPVisionConfig(**cases.VISION)
WHOLE = CLIPConfig(cases.TEXT_EOS, cases.VISION, projection_dim=20)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "flax_clip.npz") as file:
        return dict(file)


def filled(model, name, golden):
    """The model with the parameters that transformers' had, after a look at their paths."""
    prefix = f"shape:{name}:"
    shapes = {k.removeprefix(prefix): tuple(v) for k, v in golden.items() if k.startswith(prefix)}
    assert shapes == {path: array.shape for path, array in flatten(model.params).items()}
    model.params = cases.random_params(shapes)
    return model


def same(name, output, golden, tolerance=TOLERANCE):
    """Whether there are exactly the results that transformers gave, in order."""
    found = {}

    def collect(prefix, output):
        for field, value in output.items():
            if hasattr(value, "items"):
                collect(f"{prefix}:{field}", value)
            elif isinstance(value, tuple):
                found.update({f"{prefix}:{field}:{i}": x for i, x in enumerate(value)})
            else:
                found[f"{prefix}:{field}"] = value

    collect(name, output)
    assert list(found) == [key for key in golden if key.startswith(f"{name}:")]
    for key, array in found.items():
        assert array.shape == golden[key].shape, key
        assert relative_error(array, golden[key]) < tolerance, key


@pytest.fixture(scope="module")
def text(golden):
    return filled(FlaxCLIPTextModel(TEXT), "text", golden)


def test_a_text_tower_gives_what_transformers_gave(text, golden):
    same("text", text(cases.tokens(), **EVERYTHING), golden)


def test_a_mask_is_obeyed_also_where_a_position_sees_nothing(text, golden):
    same("masked", text(cases.tokens(), cases.mask()), golden)


def test_tokens_may_have_other_positions(text, golden):
    same("moved", text(cases.tokens(), None, cases.positions()), golden)


def test_sequences_may_be_shorter(text, golden):
    same("short", text(cases.tokens()[:, :7]), golden)


def test_gradients_by_params_are_those_of_transformers(text, golden):
    def loss(params):
        return (text(cases.tokens(), params=params, train=False)[0] ** 2).sum()

    gradients = flatten(jax.grad(loss)(text.params))
    kept = [key.removeprefix("gradient:") for key in golden if key.startswith("gradient:")]
    assert len(kept) == 5
    for path in kept:
        assert relative_error(gradients[path], golden[f"gradient:{path}"]) < 2 * TOLERANCE, path


def test_a_tower_with_projection_gives_what_transformers_gave(golden):
    model = filled(FlaxCLIPTextModelWithProjection(TEXT_EOS), "projected", golden)
    same("projected", model(cases.tokens(), cases.mask(), output_hidden_states=True), golden)
    half = FlaxCLIPTextModelWithProjection(TEXT_EOS, dtype=jnp.bfloat16, _do_init=False)
    output = half(cases.tokens(), params=model.params)
    assert output.text_embeds.dtype == jnp.bfloat16
    same("half", output, golden, HALF)


def test_a_vision_tower_gives_what_transformers_gave(golden):
    model = filled(FlaxCLIPVisionModel(VISION), "vision", golden)
    same("vision", model(cases.pixels(), **EVERYTHING), golden)


def test_both_towers_give_what_transformers_gave(golden):
    model = filled(FlaxCLIPModel(WHOLE), "whole", golden)
    same("whole", model(cases.tokens(), cases.pixels()), golden)
    text = model.get_text_features(cases.tokens(), cases.mask())
    image = model.get_image_features(cases.pixels())
    assert relative_error(text, golden["features:text"]) < TOLERANCE
    assert relative_error(image, golden["features:image"]) < TOLERANCE
