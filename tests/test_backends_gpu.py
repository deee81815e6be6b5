"""Layers for NVIDIA GPUs equal those of `nn` that they replace, on whatever device is here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.backends import compiler_options, defaults, optimize, use_attention
from clip_jax.backends.gpu.mlp import QuickMLP, quick_gelu
from clip_jax.backends.gpu.norm import OnePassLayerNorm
from clip_jax.nn.layers import MLP, LayerNorm, activate
from tests.models import TINY_VIT, relative_error, small

pytestmark = pytest.mark.usefixtures("ranks_promoted")


def norm_of(width: int) -> LayerNorm:
    model = small(TINY_VIT)
    norm = model.visual.ln_pre
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
    for block in model.visual.transformer.resblocks:
        assert type(block.ln_1) is type(block.ln_2) is OnePassLayerNorm
        assert type(block.mlp) is QuickMLP
    for block in model.transformer.resblocks:
        assert type(block.ln_1) is LayerNorm and type(block.mlp) is MLP


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_other_activations_stay(activation):
    model = small(dataclasses.replace(TINY_VIT, activation=activation))
    use_attention(model, image="cudnn", text="cudnn")
    assert type(model.visual.transformer.resblocks[0].mlp) is MLP


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
