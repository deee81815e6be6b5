"""Layers exchanged for a platform: each equals the one of `nn` that it replaces."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from clip_jax.backends import defaults, optimize, optimize_for_training
from clip_jax.backends.cpu import attention
from clip_jax.backends.cpu.attention import CachedAttention, SingleQueryPool, attention_in_blocks
from clip_jax.backends.cpu.convolution import ProductsConv, SpaceToDepthConv, WinogradConv
from clip_jax.backends.cpu.gradients import linear_in_training
from clip_jax.backends.cpu.linear import multiply
from clip_jax.backends.gpu.attention import CudnnAttention
from clip_jax.backends.half import cast
from clip_jax.backends.pooled_row import PooledTransformer, RowAttention, rows_of
from clip_jax.backends.single_query import SingleQueryAttention
from clip_jax.encoder import Encoder
from clip_jax.nn import from_parameters, parameters
from clip_jax.nn.layers import dot_product_attention
from clip_jax.nn.resnet import Conv
from clip_jax.nn.tree import variables
from clip_jax.train.rematerialize import rematerialize
from tests.models import (
    TINY_RESNET,
    TINY_VIT,
    fresh,
    random_images,
    random_tokens,
    relative_error,
    small,
)

pytestmark = pytest.mark.usefixtures("ranks_promoted")


@pytest.mark.parametrize(
    "parts",
    [
        {},
        *({"heads_at_once": heads} for heads in (1, 2, 4)),
        *({"query_blocks": blocks} for blocks in (2, 3, 4)),
    ],
    ids=str,
)
def test_attention_equals_its_formula_in_float64(parts):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 3, 5)) for n in (4, 7, 7))
    scores = np.einsum("bqhc,bkhc->bhqk", q, k) / math.sqrt(5)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhc->bqhc", weights, v)
    arrays = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
    given = attention_in_blocks(*arrays, **parts)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 7), (8, 6)])
def test_winograd_equals_the_direct_convolution(size):
    direct = Conv(3, 5, 3, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)), jnp.float32)
    expected = direct(x)
    given = WinogradConv(direct)(x)
    # Sums of sixteen products of numbers that were themselves rounded: measured 2e-7.
    assert relative_error(given, expected) < 2e-6


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (10, 8)])
def test_convolution_of_two_by_two_pixels_equals_that_of_stride_two(size):
    conv = Conv(3, 5, 3, stride=2, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)), jnp.float32)
    expected = conv(x)
    assert relative_error(SpaceToDepthConv(conv)(x), expected) < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_nine_products_are_a_convolution(size):
    conv = Conv(6, 4, 3, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 6)), jnp.float32)
    assert relative_error(ProductsConv(conv)(x), conv(x)) < 1e-6


@pytest.mark.parametrize("in_slices", [True, False])
@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_model_optimized_for_the_cpu_is_the_same(config, in_slices, count):
    model, optimized = small(config), small(config)
    optimize(optimized, "cpu", in_slices=in_slices)
    images = random_images(count, config.vision.image_size)
    tokens = random_tokens(count)
    expected, given = model.encode_image(images), optimized.encode_image(images)
    assert relative_error(given, expected) < 2e-6
    expected, given = model.encode_text(tokens), optimized.encode_text(tokens)
    assert relative_error(given, expected) < 2e-6


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def test_a_model_optimized_for_the_cpu_is_as_near_in_bfloat16(config, count):
    model = small(config)
    half, optimized = (cast(model, jnp.bfloat16) for _ in range(2))
    optimize(optimized, "cpu")
    images, tokens = random_images(count, config.vision.image_size), random_tokens(count)
    for encode in (lambda m: m.encode_image(images), lambda m: m.encode_text(tokens)):
        expected, *given = (encode(m) for m in (model, half, optimized))
        plain, other = (relative_error(x.astype(jnp.float32), expected) for x in given)
        assert 1e-4 < other < 1.5 * plain < 5e-2


@pytest.mark.parametrize("rows", [(), (0,), (1,), (2,), (1, 1), (3, 1)], ids=str)
def test_bfloat16_products_are_the_same_for_any_number_of_rows(rows):
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((*rows, 7), (7, 5))
    )
    given = multiply(x, kernel)
    assert given.shape == (*rows, 5)
    expected = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    # Sums in float32 of seven products, each of them exact.
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "parts"), [(10, (None, 1)), (9, (None, 2)), (5, (None, 2)), (4, (2, 1))]
)
def test_images_of_many_tokens_attend_in_parts(monkeypatch, queries, parts):
    assert TINY_VIT.vision.num_patches + 1 == 10
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", queries)
    model, optimized = small(TINY_VIT), small(TINY_VIT)
    optimize(optimized, "cpu")
    for tower, expected in ((optimized.visual, parts), (optimized.transformer, (None, 1))):
        layers = [m for _, m in nnx.iter_modules(tower) if isinstance(m, CachedAttention)]
        assert {(m.heads_at_once, m.query_blocks) for m in layers} == {expected}
    images = random_images(3, TINY_VIT.vision.image_size)
    expected, given = model.encode_image(images), optimized.encode_image(images)
    assert relative_error(given, expected) < 2e-6


def test_optimizing_leaves_no_kernel_as_it_was():
    model = small(TINY_RESNET)
    before = {path: v.shape for path, v in variables(model).items()}
    optimize(model, "cpu")
    after = {path: v.shape for path, v in variables(model).items()}
    kernels = {path for path in before if path.endswith("kernel")}
    same = {path for path in kernels & after.keys() if after[path] == before[path]}
    assert all(before[path][-1] == before[path][-2] for path in same), same


def test_the_encoder_optimizes_a_model_of_its_own():
    model = small(TINY_RESNET)
    images = random_images(9, 96)
    before = np.array(model.visual.conv2.kernel[...])
    encoder = Encoder(model, batch_size=8)
    assert relative_error(encoder.images(images), model.encode_image(images)) < 2e-6
    assert np.array_equal(model.visual.conv2.kernel[...], before)


def test_bfloat16_products_are_added_up_in_float32_on_cpus():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=n), jnp.bfloat16) for n in ((6, 512), (512, 16)))
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    result = jax.jit(multiply)(x, kernel)
    assert result.dtype == jnp.float32
    assert relative_error(result, exact) < 1e-6
    assert multiply(x.astype(jnp.float16), kernel.astype(jnp.float16)).dtype == jnp.float16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("shape", "outputs"), [((2, 4, 6), 8), ((3, 5, 7), 9), ((1, 3), 2)])
def test_gradients_in_training_are_those_of_a_linear_layer(dtype, shape, outputs):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), dtype)
    kernel = jnp.asarray(rng.normal(size=(shape[-1], outputs)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=outputs), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(*shape[:-1], outputs)), dtype)

    def total(x, kernel, bias):
        y = linear_in_training(x, kernel, bias)
        return (y * weights).astype(jnp.float32).sum(), y

    gradients, y = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(x, kernel, bias)
    by_x, by_kernel, by_bias = gradients
    assert y.dtype == by_x.dtype == dtype
    assert by_kernel.dtype == by_bias.dtype == jnp.float32
    # Rounded once, to the 8 significand bits of bfloat16; what is float32 is not.
    once = 1e-6 if dtype == jnp.float32 else 4e-3
    rounded = np.asarray(kernel.astype(dtype), np.float64)
    rows = np.asarray(x, np.float64)
    # The bias is rounded, too.
    assert relative_error(y, rows @ rounded + np.asarray(bias, np.float64)) < 2 * once
    wide = np.asarray(weights, np.float64)
    assert relative_error(by_x, wide @ rounded.T) < once
    flat = wide.reshape(-1, outputs)
    assert relative_error(by_kernel, rows.reshape(-1, shape[-1]).T @ flat) < 1e-6
    assert relative_error(by_bias, flat.sum(0)) < 1e-6


def test_attention_of_nn_equals_its_formula_in_float64():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 3, 5)) for n in (4, 7, 7))
    seen = rng.random((2, 1, 4, 7)) < 0.7
    seen[..., 0] = True
    scores = np.where(seen, np.einsum("bqhc,bkhc->bhqk", q, k) / math.sqrt(5), -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhc->bqhc", weights, v)
    arrays = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
    given = dot_product_attention(*arrays, jnp.asarray(seen))
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rows", [None, 0, "each"])
@pytest.mark.parametrize(
    "layer", [RowAttention, SingleQueryAttention, CachedAttention, CudnnAttention]
)
def test_every_attention_equals_that_of_nn(layer, rows, is_causal, monkeypatch):
    fused = jax.nn.dot_product_attention
    monkeypatch.setattr(  # as far as it goes without such a GPU
        jax.nn,
        "dot_product_attention",
        lambda *args, implementation, **options: fused(*args, implementation="xla", **options),
    )
    plain = fresh(TINY_VIT).transformer.resblocks[0].attn
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7, 128)), jnp.float32)
    rows = jnp.asarray([0, 6, 3, 3, 1]) if rows == "each" else rows
    expected = rows_of(plain(x, is_causal=is_causal), rows)
    given = layer(plain)(x, is_causal=is_causal, rows=rows)
    assert given.shape == expected.shape
    assert relative_error(given, expected) < 2e-6


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rows", [0, 3, "each"])
def test_a_transformer_that_computes_the_pooled_row_alone_equals_that_of_nn(rows, is_causal):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7, 128)), jnp.float32)
    rows = jnp.asarray([0, 6, 3, 3, 1]) if rows == "each" else rows
    plain, pooled = small(TINY_VIT).transformer, PooledTransformer(small(TINY_VIT).transformer)
    expected = plain(x, rows, is_causal=is_causal)
    assert relative_error(pooled(x, rows, is_causal=is_causal), expected) < 2e-6
    seen: dict[str, jax.Array] = {}
    given = pooled(x, rows, is_causal=is_causal, tap=seen.__setitem__)
    assert relative_error(given, expected) < 2e-6
    assert [hidden.shape for hidden in seen.values()] == [x.shape] * len(plain.resblocks)


@pytest.mark.parametrize("count", [1, 5])
def test_a_pool_without_keys_and_values_equals_that_of_nn(count):
    pool = small(TINY_RESNET).visual.attnpool
    x = jnp.asarray(np.random.default_rng(0).normal(size=(count, 3, 3, 256)), jnp.float32)
    assert relative_error(SingleQueryPool(pool)(x), pool(x)) < 2e-6


@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_model_optimized_for_training_keeps_its_tree_and_its_numbers(config, platform):
    model, optimized = small(config), small(config)
    optimize_for_training(optimized, platform)
    rematerialize(optimized)
    paths = variables(model).keys()
    assert variables(optimized).keys() == paths
    images, tokens = random_images(4, config.vision.image_size), random_tokens(4)
    expected, given = model.encode_image(images), optimized.encode_image(images)
    assert relative_error(given, expected) < 2e-6
    expected, given = model.encode_text(tokens), optimized.encode_text(tokens)
    assert relative_error(given, expected) < 2e-6


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("optimized", [optimize, optimize_for_training])
def test_where_nothing_was_measured_only_the_pooled_row_is_computed_otherwise(platform, optimized):
    model = small(TINY_RESNET)
    kinds = {path: type(module) for path, module in nnx.iter_modules(model)}
    optimized(model, platform)
    last = ("transformer", "resblocks", TINY_RESNET.text.num_layers - 1)
    exchanged = {("transformer",), last, (*last, "attn")}
    for path, module in nnx.iter_modules(model):
        assert (type(module) is not kinds[path]) == (path in exchanged), path


def test_the_table_of_defaults_takes_the_first_row_that_fits(monkeypatch):
    half, full = np.dtype(jnp.bfloat16), np.dtype(np.float32)
    row = defaults.Default("cudnn", "gpu", "B200", ("bfloat16",), 50, "1.3 times")
    monkeypatch.setattr(defaults, "ATTENTION", (row, *defaults.ATTENTION))
    choose = defaults.default_attention
    assert choose("gpu", "NVIDIA B200", half, 50) is row
    for other in (
        ("gpu", "NVIDIA B200", half, 49),
        ("gpu", "NVIDIA B200", full, 50),
        ("gpu", "NVIDIA A100", half, 50),
        ("tpu", "TPU v5 lite", half, 50),
        ("cpu", "cpu", half, 50),
    ):
        assert choose(*other).value == "xla"


def test_every_default_says_why():
    assert all(row.reason for row in defaults.ATTENTION)
    assert "not measured" in defaults.default_attention("gpu", "", np.dtype("f4"), 1).reason


def test_a_model_that_was_optimized_is_no_public_tree():
    model = small(TINY_VIT)
    optimize(model, "cpu")
    with pytest.raises(ValueError, match="do not fit"):
        from_parameters(model.config, parameters(model))
