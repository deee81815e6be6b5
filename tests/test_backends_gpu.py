"""Layers for NVIDIA GPUs equal those of `nn` that they replace, on whatever device is here."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.backends import (
    compiler_options,
    defaults,
    optimize,
    optimize_for_training,
    use_attention,
)
from clip_jax.backends.gpu.attention import CudnnAttention, TrainedCudnnAttention
from clip_jax.backends.gpu.mlp import QuickMLP, quick_gelu
from clip_jax.backends.gpu.norm import OnePassLayerNorm
from clip_jax.nn import CLIP
from clip_jax.nn.layers import MLP, LayerNorm, activate
from clip_jax.train import OptimizerConfig, StepConfig, make_step
from tests.models import TINY_VIT, relative_error, small

pytestmark = pytest.mark.usefixtures("ranks_promoted")


def tower(model: CLIP) -> Any:
    """The image tower, here a Vision Transformer."""
    return model.visual


def norm_of(width: int) -> LayerNorm:
    model = small(TINY_VIT)
    norm = tower(model).ln_pre
    rng = np.random.default_rng(1)
    norm.scale.set_value(jnp.asarray(rng.uniform(0.5, 1.5, width), jnp.float32))
    norm.bias.set_value(jnp.asarray(rng.normal(size=width), jnp.float32))
    return norm


@pytest.mark.parametrize("offset", [0, 3, 1e3, -1e5])
def test_moments_of_one_pass_don_t_cancel_where_the_mean_is_large(offset):
    x = np.random.default_rng(0).normal(size=(5, 7, 64)) + offset
    x32 = jnp.asarray(x, jnp.float32)
    norm = norm_of(64)
    exact = np.asarray(x32, np.float64)
    exact = exact - exact.mean(-1, keepdims=True)
    exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    exact = exact * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
    # Of x - mean itself some digits are lost where the offset is large, in both layers.
    tolerance = max(1e-6, 2e-7 * abs(offset))
    assert relative_error(np.asarray(OnePassLayerNorm(norm)(x32)), exact) < tolerance


def test_equal_elements_are_normalised_to_the_bias():
    norm = norm_of(64)
    for value in (0.1, -3e4, 7e-8):
        given = OnePassLayerNorm(norm)(jnp.full((2, 3, 64), value))
        np.testing.assert_array_equal(given, np.broadcast_to(norm.bias[...], (2, 3, 64)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_quick_gelu_without_a_division_is_quick_gelu(dtype):
    x = jnp.concatenate([jnp.linspace(-30, 30, 6001), jnp.array([0, -1e-6, -200, 200])])
    x = x.astype(dtype)
    given, expected = quick_gelu(x), activate(x, "quick_gelu")
    assert given.dtype == expected.dtype
    epsilon = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.asarray(given, np.float64), np.asarray(expected, np.float64), rtol=3 * epsilon, atol=1e-8
    )


def test_quick_gelu_of_the_largest_numbers_is_finite():
    x = np.array([-3e38, -1e10, 1e10, 3e38], np.float32)
    np.testing.assert_array_equal(quick_gelu(jnp.asarray(x)), np.maximum(x, 0))


def test_a_tower_with_cudnns_attention_gets_its_norms_and_activations():
    model = small(TINY_VIT)
    optimize(model, "gpu")
    use_attention(model, image="cudnn", text="xla")
    for block in tower(model).transformer.resblocks:
        assert type(block.ln_1) is type(block.ln_2) is OnePassLayerNorm
        assert type(block.mlp) is QuickMLP
    for block in model.transformer.resblocks:
        assert type(block.ln_1) is LayerNorm and type(block.mlp) is MLP


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_other_activations_stay(activation):
    model = small(dataclasses.replace(TINY_VIT, activation=activation))
    use_attention(model, image="cudnn", text="cudnn")
    assert type(tower(model).transformer.resblocks[0].mlp) is MLP


def test_tritons_products_are_left_to_towers_without_cudnn():
    assert compiler_options("xla") == {}
    options = compiler_options("cudnn")
    program = jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8)))
    program.compile(options)  # which knows the option, or would raise
    assert options == {"xla_gpu_enable_triton_gemm": False}


@pytest.mark.parametrize(
    ("kind", "num_tokens", "value"),
    [
        ("NVIDIA H200", 257, "cudnn"),
        ("NVIDIA H200", 197, "cudnn"),
        ("NVIDIA H200", 50, "xla"),
        ("NVIDIA H100 80GB HBM3", 577, "cudnn"),
        ("NVIDIA A100-SXM4-80GB", 577, "xla"),
    ],
)
def test_attention_of_half_precision_is_cudnns_where_it_was_measured(kind, num_tokens, value):
    for dtype in (np.dtype(jnp.bfloat16), np.dtype(np.float16)):
        assert defaults.default_attention("gpu", kind, dtype, num_tokens).value == value
    full = np.dtype(np.float32)
    assert defaults.default_attention("gpu", kind, full, num_tokens).value == "xla"


@pytest.mark.parametrize("length", [6, 7])
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_in_training_and_its_gradient_are_those_of_nn(length, is_causal, monkeypatch):
    """With XLA in cuDNN's place; JAX's gradient of cuDNN's refuses odd numbers of tokens."""
    attention = jax.nn.dot_product_attention
    seen = []

    def by_xla(q, k, v, *, implementation, **options):
        seen.append((implementation, q.shape[1] % 2))
        return attention(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    layer = tower(small(TINY_VIT)).transformer.resblocks[0].attn
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, length, 192)), jnp.float32)

    def total(x, layer):
        y = layer(x, is_causal=is_causal)
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

    expected, given = (
        jax.value_and_grad(total)(x, each) for each in (layer, TrainedCudnnAttention(layer))
    )
    np.testing.assert_allclose(given[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(given[1], expected[1], atol=2e-6)
    assert seen == [("cudnn", 0)]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_training_with_cudnn_is_refused_where_it_can_not_be(platform):
    how = StepConfig(dtype="bfloat16", attention="cudnn")
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, total_steps=1)
    with pytest.raises(ValueError, match=f"for NVIDIA GPUs.* platform {platform}"):
        make_step(TINY_VIT, optimizer, how, platform=platform)
    with pytest.raises(ValueError, match="half precision"):
        StepConfig(attention="cudnn")
    with pytest.raises(ValueError, match="'flash'"):
        StepConfig(attention="flash")  # pyright: ignore[reportArgumentType]


def test_training_with_cudnn_exchanges_the_image_towers_attention():
    model = small(TINY_VIT)
    optimize_for_training(model, "gpu", "cudnn")
    blocks = tower(model).transformer.resblocks
    assert {type(block.attn) for block in blocks} == {TrainedCudnnAttention}
    assert not any(isinstance(block.attn, CudnnAttention) for block in model.transformer.resblocks)


def test_moments_of_one_pass_take_the_epsilon_of_the_norm():
    norm = LayerNorm(64, 0.5, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 64)), jnp.float32)
    np.testing.assert_allclose(OnePassLayerNorm(norm)(x), norm(x), atol=2e-6)
