"""The bias that the sigmoid loss trains is a parameter of the model that comes of it."""

import dataclasses

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax.train import OptimizerConfig, StepConfig, init_state, make_step, model_of
from tests import quickly
from tests.models import SMALL_VIT, random_images, random_tokens, small

OPTIMIZER = OptimizerConfig(total_steps=4, warmup_steps=0, learning_rate=1e-2)
BATCH = {"images": random_images(8, 32), "tokens": random_tokens(8)}


def trained(model):
    state = init_state(model, OPTIMIZER, loss="sigmoid")
    step = quickly.jit(make_step(model.config, OPTIMIZER, StepConfig(loss="sigmoid")))
    return step(state, BATCH, jax.random.key(0))[0]


@pytest.fixture(scope="module")
def state():
    """The state after a step from a model without a bias."""
    return trained(small(SMALL_VIT))


def test_a_model_trained_by_the_sigmoid_loss_is_saved_with_its_bias(state, tmp_path):
    model = model_of(state, SMALL_VIT)
    assert model.config == dataclasses.replace(SMALL_VIT, logit_bias=-10.0)
    clip_jax.save(model, tmp_path / "model")
    again, _ = clip_jax.load(tmp_path / "model")
    bias = float(state.parameters["logit_bias"])
    assert bias != -10 and float(again.logit_bias[...]) == bias
    images, tokens = BATCH["images"][:2], BATCH["tokens"][:2]
    cosines = clip_jax.nn.normalize(again.encode_image(images)) @ (
        clip_jax.nn.normalize(again.encode_text(tokens)).T
    )
    expected = np.exp(state.parameters["logit_scale"]) * np.asarray(cosines) + bias
    np.testing.assert_allclose(again(images, tokens)[0], expected, rtol=1e-5, atol=1e-5)


def test_training_goes_on_from_the_bias_that_a_model_has(state):
    model = model_of(state, SMALL_VIT)
    begun = init_state(model, OPTIMIZER, loss="sigmoid").parameters
    for name in ("logit_bias", "logit_scale"):
        assert begun[name] == state.parameters[name]
    assert trained(model).parameters["logit_bias"] != state.parameters["logit_bias"]


def test_the_softmax_loss_adds_no_bias():
    state = init_state(small(SMALL_VIT), OPTIMIZER)
    assert model_of(state, SMALL_VIT).config == SMALL_VIT
