"""The optimizer: schedules, AdamW, Muon, rates by path, frozen parameters."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.shapes import parameter_shapes
from clip_jax.train import OptimizerConfig, init_state, make_optimizer, make_schedule, make_step
from clip_jax.train.optimizer import factors
from tests import quickly
from tests.models import SMALL_RESNET, SMALL_VIT, TINY_VIT, small
from tests.training_steps import batch


def test_learning_rate_rises_and_falls():
    config = OptimizerConfig(
        learning_rate=2.0, warmup_steps=10, total_steps=110, final_learning_rate=0.5
    )
    rate = make_schedule(config)
    assert [float(rate(step)) for step in (0, 5, 10)] == [0, 1, 2]
    assert float(rate(60)) == pytest.approx(0.5 + 1.5 / 2)
    assert float(rate(110)) == float(rate(500)) == pytest.approx(0.5)


def test_a_warm_up_may_be_all_there_is():
    rate = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=4, total_steps=4))
    assert [float(rate(step)) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]


def test_updates_are_adamws_with_decay_on_matrices_only():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, max_gradient_norm=None)
    parameters = {path: jnp.ones(shape) for path, shape in parameter_shapes(SMALL_VIT).items()}
    gradients = {path: jnp.full_like(x, 0.5) for path, x in parameters.items()}
    transformation = make_optimizer(config, SMALL_VIT)
    updates, _ = transformation.update(gradients, transformation.init(parameters), parameters)
    for path, update in updates.items():
        # The first step of Adam is the sign of the gradient, whatever its size.
        decay = 0.2 if parameters[path].ndim >= 2 else 0.0
        np.testing.assert_allclose(update, -0.1 * (1 + decay), rtol=1e-5)


def test_muon_makes_the_blocks_matrices_orthogonal_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    parameters = {path: jnp.ones(shape) for path, shape in parameter_shapes(SMALL_VIT).items()}
    gradients = {path: jnp.asarray(rng.normal(size=x.shape)) for path, x in parameters.items()}
    matrices = {path for path, x in parameters.items() if "/resblocks/" in path and x.ndim == 2}
    assert {path.partition("/")[0] for path in matrices} == {"visual", "transformer"}
    vectors = {}
    for path in matrices:
        u, _, v = np.linalg.svd(np.asarray(gradients[path]), full_matrices=False)
        vectors[path] = u, v
        gradients[path] = jnp.asarray(u * np.linspace(5, 1, len(v)) @ v)
    found = {}
    for name in ("adamw", "muon"):
        config = OptimizerConfig(
            name=name,
            learning_rate=0.1,
            warmup_steps=0,
            weight_decay=0.5,
            max_gradient_norm=None,
        )
        transformation = make_optimizer(config, SMALL_VIT)
        found[name], _ = transformation.update(
            gradients, transformation.init(parameters), parameters
        )
    for path, update in found["muon"].items():
        if path not in matrices:
            assert np.array_equal(update, found["adamw"][path])
            continue
        step = np.asarray(update / -0.1 - 0.5) / (0.2 * max(update.shape) ** 0.5)
        u, v = vectors[path]
        turned = u.T @ step @ v.T
        # The gradient's own singular vectors, with values that five iterations of Newton and
        # Schulz bring to about 1, and no nearer.
        assert (0.6 < turned.diagonal()).all() and (turned.diagonal() < 1.3).all()
        # Sums of up to 256 float32 products, five times over
        np.testing.assert_allclose(turned, np.diag(turned.diagonal()), atol=1e-3)


def test_gradients_are_cut_to_a_norm():
    parameters = {"visual/proj": jnp.zeros((64, 16)), "logit_scale": jnp.zeros(())}
    gradients = {"visual/proj": jnp.full((64, 16), 3.0), "logit_scale": jnp.float32(4.0)}
    config = OptimizerConfig(max_gradient_norm=1e-3, eps=1.0, warmup_steps=0, learning_rate=1.0)
    transformation = make_optimizer(config, SMALL_VIT)
    updates, _ = transformation.update(gradients, transformation.init(parameters), parameters)
    # With an epsilon this large Adam's step is the gradient itself.
    assert float(optax.tree.norm(updates)) == pytest.approx(1e-3, rel=1e-3)


def test_rates_differ_by_path_and_the_first_that_fits_counts():
    config = OptimizerConfig(learning_rates={"^visual/conv1": 0.0, "^visual/": 0.1, "^ln_final": 2})
    found = factors(config, SMALL_VIT)
    assert found["visual/conv1/kernel"] == 0
    assert found["visual/proj"] == found["visual/transformer/resblocks/0/ln_1/scale"] == 0.1
    assert found["ln_final/bias"] == 2
    assert found["text_projection"] == found["logit_scale"] == 1
    assert not any("num_batches" in path for path in factors(OptimizerConfig(), SMALL_RESNET))


@pytest.mark.parametrize(
    ("config", "freeze", "trained"),
    [
        (
            TINY_VIT,
            {"freeze_image": 1, "freeze_text": "all"},
            r"visual/transformer/resblocks/3/|visual/ln_post/|visual/proj$|logit_scale$",
        ),
        (TINY_VIT, {"freeze_image": 0, "freeze_text": "all"}, r"visual/(ln_post/|proj$)|logit_s"),
        (
            SMALL_VIT,
            {"freeze_image": "all", "freeze_text": 1},
            r"transformer/resblocks/1/|ln_final/|text_projection$|logit_scale$",
        ),
        (
            SMALL_RESNET,
            {"freeze_image": 2, "freeze_text": "all"},
            r"visual/(layer3|layer4|attnpool)/|logit_scale$",
        ),
        (SMALL_VIT, {"freeze_image": "all"}, r"(?!visual/)"),
    ],
)
def test_towers_and_all_but_the_last_blocks_can_be_frozen(config, freeze, trained):
    found = factors(OptimizerConfig(**freeze), config)
    assert {path for path, factor in found.items() if factor} == {
        path for path in found if re.match(trained, path)
    }


def test_frozen_parameters_stay_to_the_bit_and_take_no_memory():
    config = OptimizerConfig(warmup_steps=0, freeze_image="all", freeze_text=1)
    state = init_state(small(SMALL_VIT), config)
    after, _ = quickly.jit(make_step(SMALL_VIT, config))(state, batch(8), jax.random.key(0))
    moved = {
        path
        for path, array in state.parameters.items()
        if not np.array_equal(array, after.parameters[path])
    }
    assert moved == {path for path, factor in factors(config, SMALL_VIT).items() if factor}
    sizes = sum(x.size for x in jax.tree.leaves(state.optimizer) if x.ndim)
    assert sizes == 2 * sum(state.parameters[path].size for path in moved if path != "logit_scale")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sgd"}, "'adamw' or 'muon'. Got 'sgd'"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"warmup_steps": 9, "total_steps": 8}, "warmup_steps=9"),
        ({"learning_rate": -1}, "learning_rate must be 0 or more. Got -1"),
        ({"b2": 1.0}, "b2 must be from 0 to 1, and not 1. Got 1.0"),
        ({"max_gradient_norm": 0}, "above 0. Got 0"),
        ({"freeze_image": "some"}, '"none", "all", or how many.* Got \'some\''),
        ({"freeze_text": -1}, "Got -1"),
        ({"learning_rates": {"(": 1}}, r"'\(' is no regular expression"),
        ({"learning_rates": {"visual": -2}}, "'visual' must be 0 or more. Got -2"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rates": {"vision/": 0.1}}, "'vision/' is found in no parameter's path"),
        ({"freeze_image": 3}, "freeze_image must be at most 2.* Got 3"),
        ({"learning_rates": {"": 0.0}}, "nothing is left to train"),
    ],
)
def test_hyperparameters_that_do_not_fit_the_model_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        factors(OptimizerConfig(**options), SMALL_VIT)
