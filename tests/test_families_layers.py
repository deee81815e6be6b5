"""Layers with the switches of other families: every way of computing them gives the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.backends import optimize_for_training
from clip_jax.config import CLIPConfig, TextConfig, ViTConfig
from clip_jax.encoder import Encoder
from clip_jax.evaluate import ZeroShotClassifier
from clip_jax.nn import parameters
from clip_jax.nn.clip import computing
from clip_jax.nn.text import pooled_positions
from clip_jax.pixel_config import PixelConfig
from clip_jax.shapes import parameter_shapes
from clip_jax.tokenizer import tokenize
from clip_jax.train.rematerialize import rematerialize
from tests.models import SMALL_VIT, fresh, random_images, relative_error, small

TEXT = TextConfig(
    48,
    2,
    3,
    context_length=9,
    vocab_size=31,
    activation="gelu_tanh",
    norm_epsilon=0.01,
    mlp_width=100,
    layer_scale=0.3,
    is_causal=False,
    pooling="last",
    has_projection_bias=True,
)
VISION = ViTConfig(
    32,
    8,
    96,
    2,
    3,
    norm_epsilon=0.02,
    mlp_width=77,
    layer_scale=0.4,
    has_ln_pre=False,
    pooling="mean",
    norm_after_pooling=True,
)
UNLIKE = CLIPConfig(
    16, VISION, TEXT, "gelu", logit_bias=-1.0, pixels=PixelConfig(mean=(0.1, 0.2, 0.3))
)
# Pooled at one row, so that the last block computes that row alone.
POOLED = dataclasses.replace(
    UNLIKE,
    vision=dataclasses.replace(VISION, pooling="class"),
    text=dataclasses.replace(TEXT, is_causal=True, pooling="eos", eos_id=5),
)
CONFIGS = {"all rows": UNLIKE, "one row": POOLED}


def some_tokens(n=4):
    """Ids with an end, 5, at different places."""
    tokens = np.random.default_rng(1).integers(6, 31, (n, 9), np.int32)
    tokens[np.arange(n), np.arange(n) * 2 + 1] = 5
    return tokens


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_an_encoder_gives_what_the_model_gives(config, dtype, tolerance):
    model = small(config)
    encoder = Encoder(model, dtype=dtype, batch_size=8)
    images, tokens = random_images(3, 32), some_tokens()
    assert relative_error(encoder.images(images), model.encode_image(images)) < tolerance
    assert relative_error(encoder.texts(tokens), model.encode_text(tokens)) < tolerance


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_training_computes_the_same(config):
    model, other = small(config), small(config)
    optimize_for_training(other, "cpu")
    rematerialize(other)
    images, tokens = jnp.asarray(random_images(2, 32)), jnp.asarray(some_tokens())

    def loss(model):
        with computing("highest"):
            image, text = model.image_features(images), model.text_features(tokens, model.dtype)
        return (image**2).sum() + (text**3).sum()

    gradient, same = (jax.tree.leaves(jax.jit(jax.grad(loss))(m)) for m in (model, other))
    for one, another in zip(gradient, same, strict=True):
        assert relative_error(another, one) < 1e-4 if np.any(one) else not np.any(another)


def test_new_models_have_the_arrays_that_the_configuration_says():
    shapes = parameter_shapes(UNLIKE)
    assert shapes["logit_bias"] == () and shapes["text_projection/kernel"] == (48, 16)
    assert shapes["visual/transformer/resblocks/1/ls_2/gamma"] == (96,)
    assert shapes["transformer/resblocks/0/mlp/c_fc/kernel"] == (48, 100)
    assert not any("ln_pre" in path for path in shapes)
    model = fresh(UNLIKE)
    tree = parameters(model)
    assert float(tree["logit_bias"]) == -1
    gammas = tree["transformer"]["resblocks"]["0"]["ls_1"]["gamma"]
    assert np.allclose(gammas, 0.3)


def test_columns_that_follow_the_pooled_token_may_be_left_out_if_the_mask_is_causal():
    model, tokens = small(POOLED), some_tokens(3)
    assert POOLED.text.can_be_cut
    cut = pooled_positions(tokens, POOLED.text).max() + 1
    assert cut < 9
    whole = model.encode_text(tokens)
    assert relative_error(model.encode_text(tokens[:, :cut]), whole) < 1e-6


@pytest.mark.parametrize("changes", [{"is_causal": False}, {"pooling": "last"}])
def test_short_texts_are_refused_where_they_would_change_the_embedding(changes):
    config = dataclasses.replace(
        SMALL_VIT, text=dataclasses.replace(SMALL_VIT.text, **changes), embed_dim=16
    )
    model = small(config)
    tokens = np.full((2, 77), 49407, np.int32)
    assert model.encode_text(tokens).shape == (2, 16)
    with pytest.raises(ValueError, match=r"\(batch, 77\), padding included"):
        model.encode_text(tokens[:, :12])


def test_a_classifier_does_not_cut_prompts_that_depend_on_their_padding():
    text = dataclasses.replace(SMALL_VIT.text, is_causal=False)
    model = small(dataclasses.replace(SMALL_VIT, text=text))
    tokens = tokenize([f"a photo of a {name}." for name in ("cat", "dog")])
    expected = np.asarray(model.encode_text(tokens))
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    given = ZeroShotClassifier(model, ["cat", "dog"], templates=["a photo of a {}."]).weights
    assert relative_error(given, expected) < 1e-5


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ({}, True),
        ({"eos_id": 2}, True),
        ({"eos_id": 2, "vocab_size": 49410}, True),  # ids that were added to CLIP's
        ({"pooling": "eos", "eos_id": 49407, "vocab_size": 49410}, True),
        ({"pooling": "eos", "eos_id": 2}, False),
        ({"pooling": "last", "vocab_size": 32000}, False),
        ({"vocab_size": 901_629}, False),
        ({"tokenizer": "bert-base-uncased"}, False),
    ],
)
def test_strings_are_taken_where_clips_ids_are_the_models(text, fits):
    config = TextConfig(64, 1, 1, **text)
    if fits:
        config.check_strings()
    else:
        with pytest.raises(ValueError, match="not those of CLIP's tokenizer"):
            config.check_strings()


def test_a_rule_of_pooling_says_which_end_a_row_must_have():
    assert TextConfig(64, 1, 1).end_id == 49407
    assert TextConfig(64, 1, 1, eos_id=2).end_id == 49407
    assert TextConfig(64, 1, 1, vocab_size=49410, eos_id=2).end_id is None
    assert TextConfig(64, 1, 1, pooling="eos", eos_id=7).end_id == 7
    assert TextConfig(64, 1, 1, pooling="last").end_id is None


def test_logits_have_the_bias():
    model = small(UNLIKE)
    images, tokens = random_images(2, 32), some_tokens()
    before = np.asarray(model(images, tokens)[0])
    model.logit_bias.set_value(model.logit_bias[...] + 2)
    assert np.allclose(np.asarray(model(images, tokens)[0]), before + 2, atol=1e-4)
