"""Layers of ONNX's operators compute what the layers of nn/ compute; no ONNX is needed here."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.backends.half import cast
from clip_jax.backends.onnx.apply import use_onnx_operators
from clip_jax.backends.onnx.layers import OnnxLayerNorm, OnnxLinear, OnnxMLP, OnnxTransformer
from clip_jax.backends.onnx.resnet import OnnxAttentionPool, OnnxBottleneck
from clip_jax.backends.onnx.towers import OnnxPatchEmbedding, text_features
from clip_jax.image_size import sides_of
from tests.models import (
    SMALL_RESNET,
    SMALL_TEXT,
    SMALL_VIT,
    TINY_RESNET,
    TINY_VIT,
    random_tokens,
    relative_error,
    small,
)
from tests.siglip import SIGLIP

pytestmark = pytest.mark.usefixtures("ranks_promoted")

EQUAL = 1e-6  # relative, in float32: sums in another order


def normal(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


@pytest.fixture(scope="module")
def model():
    return small(TINY_VIT)


def replaced(model):
    copy = cast(model, model.dtype)
    use_onnx_operators(copy)
    return copy


@pytest.mark.parametrize("shape", [(3, 192), (3, 5, 192)])
def test_linear(model, shape):
    layer = model.visual.transformer.resblocks[0].mlp.c_fc
    assert relative_error(OnnxLinear(layer)(normal(*shape)), layer(normal(*shape))) < EQUAL


def test_layer_norm_of_rows_far_from_zero(model):
    layer = model.visual.ln_post
    x = normal(3, 5, 192) + 1000
    assert relative_error(OnnxLayerNorm(layer)(x), layer(x)) < EQUAL


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
def test_mlp(model, activation):
    layer = cast(model, model.dtype).visual.transformer.resblocks[0].mlp
    layer.activation = activation
    x = normal(3, 5, 192)
    assert relative_error(OnnxMLP(layer)(x), layer(x)) < EQUAL


def test_patch_embedding(model):
    layer = model.visual.conv1
    x = normal(2, 48, 48, 3)
    assert relative_error(OnnxPatchEmbedding(layer)(x), layer(x)) < EQUAL


@pytest.mark.parametrize("rows", [None, 0, 2, "each"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_transformer(model, rows, is_causal):
    rows = jnp.array([4, 0, 2]) if rows == "each" else rows
    x = normal(3, 5, 192)
    expected = model.visual.transformer(x, rows, is_causal=is_causal)
    copy = replaced(model).visual.transformer
    assert isinstance(copy, OnnxTransformer)
    assert relative_error(copy(x, rows, is_causal=is_causal), expected) < EQUAL


def test_bottleneck_and_attention_pool():
    model = small(SMALL_RESNET)
    block, pool = model.visual.layer2[0], model.visual.attnpool
    copy = replaced(model).visual
    assert isinstance(copy.layer2[0], OnnxBottleneck)
    assert isinstance(copy.attnpool, OnnxAttentionPool)
    x = normal(2, 16, 16, 16)
    given = copy.layer2[0](x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    assert relative_error(given, block(x)) < EQUAL
    x = normal(2, 2, 2, 128)
    assert relative_error(copy.attnpool(x.transpose(0, 3, 1, 2)), pool(x)) < EQUAL


TEXTS = {
    "argmax": {},
    "eos": {"pooling": "eos", "eos_id": 49407},
    "first, not causal": {"pooling": "first", "is_causal": False},
    "last": {"pooling": "last"},
    "projection with a bias": {"has_projection_bias": True},
}


@pytest.mark.parametrize("options", TEXTS.values(), ids=TEXTS)
def test_texts_of_each_family(options):
    text = dataclasses.replace(SMALL_TEXT, **options)
    model = small(dataclasses.replace(SMALL_VIT, text=text))
    copy = replaced(model)
    for length in (77, 40) if text.can_be_cut else (77,):
        tokens = random_tokens(4, length)
        given = text_features(copy, jnp.asarray(tokens))
        assert relative_error(given, model.encode_text(tokens)) < EQUAL


@pytest.mark.parametrize(
    "config",
    [
        TINY_VIT,
        TINY_RESNET,
        dataclasses.replace(
            SMALL_VIT, vision=dataclasses.replace(SMALL_VIT.vision, pooling="mean", layer_scale=0.1)
        ),
        dataclasses.replace(
            SMALL_VIT, vision=dataclasses.replace(SMALL_VIT.vision, has_ln_pre=False)
        ),
        SIGLIP,
        dataclasses.replace(
            SMALL_VIT, vision=dataclasses.replace(SMALL_VIT.vision, image_size=(32, 48))
        ),
    ],
    ids=["vit", "resnet", "mean, layer scale", "no first norm", "siglip", "not square"],
)
def test_images_of_each_family(config):
    model = small(config)
    images = normal(2, *sides_of(config.vision.image_size), 3)
    given = replaced(model).visual(images)
    assert relative_error(given, model.encode_image(images)) < EQUAL


def test_texts_of_siglip():
    model = small(SIGLIP)
    text = SIGLIP.text
    shape = (3, text.context_length)
    tokens = np.random.default_rng(0).integers(0, text.vocab_size, shape, np.int32)
    given = text_features(replaced(model), jnp.asarray(tokens))
    assert relative_error(given, model.encode_text(tokens)) < EQUAL
