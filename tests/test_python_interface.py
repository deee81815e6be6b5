"""What people of other libraries write in Python works, or the error names the way."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import clip_jax
from clip_jax import Encoder, Preprocess
from clip_jax.nn import CLIP, set_parameters
from tests.encoders import BATCH_SIZE, shared_encoder
from tests.models import SMALL_VIT, random_images, random_parameters, relative_error, small

PICTURES = [Image.fromarray(x) for x in random_images(3, 40)]


@pytest.mark.parametrize("texts", [["a pear"], "a pear", np.array(["a", "b"])])
def test_texts_in_place_of_ids_name_tokenize(model, texts):
    for call in (model.encode_text, model.text_outputs):
        with pytest.raises(ValueError, match=r"not texts: give clip_jax.tokenize\(texts\)"):
            call(texts)


def test_a_configuration_is_had_by_name_without_weights():
    assert clip_jax.config_of("ViT-L/14").vision.width == 1024
    with pytest.raises(ValueError, match="did you mean 'ViT-L/14'"):
        clip_jax.config_of("vit-l/14")


def test_a_list_of_pictures_becomes_a_batch():
    preprocess = Preprocess(32)
    batch = preprocess(PICTURES)
    assert batch.dtype == np.float32 and batch.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(batch[1], preprocess(PICTURES[1]))
    assert preprocess([]).shape == (0, 32, 32, 3)
    with pytest.raises(TypeError, match="use clip_jax.open_image"):
        preprocess(["a.jpg"])


def test_strings_and_pictures_are_encoded_in_their_order():
    encoder = shared_encoder()
    mixed = ["a cat", PICTURES[0], PICTURES[1], "a dog", PICTURES[2], *["x"] * BATCH_SIZE]
    given = encoder.encode(mixed)
    pixels = np.stack([Preprocess(32).pixels(x) for x in PICTURES])
    assert relative_error(given[[1, 2, 4]], encoder.images(pixels)) < 1e-6
    assert relative_error(given[[0, 3]], encoder.texts(["a cat", "a dog"])) < 1e-6
    assert encoder.encode("a cat").shape == (16,) and encoder.encode([]).shape == (0, 16)
    assert relative_error(encoder.encode(PICTURES[0]), given[1]) < 1e-6
    with pytest.raises(TypeError, match="strings and PIL images. Got int"):
        encoder.encode(["a", 3])


def test_they_are_shown_in_one_line(model):
    for shown in (repr(shared_encoder()), repr(model)):
        assert "\n" not in shown and len(shown) < 1_000
    assert repr(shared_encoder()).startswith("Encoder(image_size=32, 77 tokens -> embed_dim=16")


# ---- adapted models -----------------------------------------------------------------------------


class LoRA(nnx.Module):
    """A linear layer with a product of rank two beside it."""

    def __init__(self, base: nnx.Module):
        self.base = base
        rng, (rows, columns) = np.random.default_rng(0), base.kernel.shape
        self.a = nnx.Param(jnp.asarray(rng.normal(0, 0.3, (rows, 2)), jnp.float32))
        self.b = nnx.Param(jnp.asarray(rng.normal(0, 0.3, (2, columns)), jnp.float32))

    def __call__(self, x):
        a, b = (w[...].astype(x.dtype) for w in (self.a, self.b))
        return self.base(x) + (x @ a) @ b


class Scaled(nnx.Module):
    """Any layer, with its result made larger."""

    def __init__(self, base: nnx.Module):
        self.base = base

    def __call__(self, *arguments, **options):
        return 1.5 * self.base(*arguments, **options)


class Doubled(CLIP):
    """A model of a class of its own."""

    def image_features(self, images, *arguments, **options):
        return 2 * super().image_features(images, *arguments, **options)


def with_lora() -> CLIP:
    model = small(SMALL_VIT)
    for transformer in (model.transformer, model.visual.transformer):
        for block in transformer.resblocks:
            block.attn.in_proj, block.mlp.c_fc = LoRA(block.attn.in_proj), LoRA(block.mlp.c_fc)
    return model


def with_layers_replaced() -> CLIP:
    model = small(SMALL_VIT)
    model.visual.ln_post = Scaled(model.visual.ln_post)
    model.transformer.resblocks[0].mlp = Scaled(model.transformer.resblocks[0].mlp)
    model.transformer.resblocks[1].attn = Scaled(model.transformer.resblocks[1].attn)
    return model


def of_another_class() -> CLIP:
    model = Doubled(SMALL_VIT)
    set_parameters(model, random_parameters(SMALL_VIT))
    return model


@pytest.mark.parametrize("adapted", [with_lora, with_layers_replaced, of_another_class])
def test_an_adapted_model_is_encoded_as_it_is(adapted):
    model, pixels = adapted(), random_images(3, 32)
    tokens = clip_jax.tokenize(["a cat", "a dog on the moon"])
    encoder = Encoder(model, batch_size=4)
    assert relative_error(encoder.images(pixels), model.encode_image(pixels)) < 1e-5
    assert relative_error(encoder.texts(tokens), model.encode_text(tokens)) < 1e-5
    assert relative_error(encoder.images(pixels), small(SMALL_VIT).encode_image(pixels)) > 0.1
    half = Encoder(model, batch_size=4, dtype="bfloat16")
    assert relative_error(half.images(pixels), model.encode_image(pixels)) < 3e-2
    assert model.dtype == jnp.float32
