"""Models with settings, methods or layers of a user's own, wherever they are computed or kept."""

import subprocess
import sys
from typing import Any

import pytest
from flax import nnx

import clip_jax
from clip_jax.backends.half import cast
from clip_jax.encoder import Encoder
from clip_jax.evaluate.data import without_projection
from clip_jax.nn import CLIP, model_digest, set_parameters
from clip_jax.nn.tree import adaptations
from clip_jax.train import OptimizerConfig, init_state
from tests.models import (
    SMALL_RESNET,
    SMALL_VIT,
    random_images,
    random_parameters,
    relative_error,
    small,
)
from tests.siglip import SIGLIP


class Shifted(CLIP):
    """A model whose public methods are of its own class, and not those beneath them."""

    def encode_image(self, images):
        return super().encode_image(images) + 1

    def encode_text(self, tokens, *, embeddings=None):
        return super().encode_text(tokens, embeddings=embeddings) + 1


class Factor(nnx.Module):
    def __init__(self, base: nnx.Module, by: float):
        self.base, self.by = base, by

    def __call__(self, x):
        return self.by * self.base(x)


def shifted() -> CLIP:
    model = Shifted(SMALL_VIT)
    set_parameters(model, random_parameters(SMALL_VIT))
    return model


def with_another_activation(activation="gelu") -> CLIP:
    model: Any = small(SMALL_VIT)
    for tower in (model.transformer, model.visual.transformer):
        tower.resblocks[1].mlp.activation = activation
    return model


def with_another_epsilon() -> CLIP:
    model: Any = small(SMALL_VIT)
    model.visual.ln_post.epsilon = model.ln_final.epsilon = 0.5
    return model


def with_a_factor(by: float = 2.0) -> CLIP:
    model: Any = small(SMALL_VIT)
    model.visual.ln_pre = Factor(model.visual.ln_pre, by)
    return model


ADAPTED = [shifted, with_another_activation, with_another_epsilon]


@pytest.mark.parametrize("adapted", ADAPTED)
def test_settings_and_methods_of_a_users_own_are_encoded_with(adapted):
    model, pixels = adapted(), random_images(3, 32)
    tokens = clip_jax.tokenize(["a cat", "a dog on the moon"])
    encoder, plain = Encoder(model, batch_size=4), small(SMALL_VIT)
    assert relative_error(encoder.images(pixels), model.encode_image(pixels)) < 1e-5
    assert relative_error(encoder.texts(tokens), model.encode_text(tokens)) < 1e-5
    assert relative_error(encoder.images(pixels), plain.encode_image(pixels)) > 1e-3
    assert relative_error(encoder.texts(tokens), plain.encode_text(tokens)) > 1e-3


@pytest.mark.parametrize("adapted", [*ADAPTED, with_a_factor])
def test_an_adapted_model_is_not_exported_as_its_configuration_says(adapted, tmp_path):
    with pytest.raises(ValueError, match="the model has been adapted, by a class or layers"):
        clip_jax.export.export(adapted(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("adapted", [with_another_activation, with_another_epsilon, with_a_factor])
def test_what_would_be_loaded_without_its_settings_is_not_saved(adapted, tmp_path):
    with pytest.raises(ValueError, match="layers or settings that its configuration doesn't say"):
        clip_jax.save(adapted(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("adapted", [with_another_activation, with_another_epsilon, with_a_factor])
def test_what_would_be_made_of_the_configuration_alone_is_refused(adapted):
    says = "layers or settings that its configuration doesn't say, and would"
    for use in (
        lambda model: init_state(model, OptimizerConfig(total_steps=1, warmup_steps=0)),
        without_projection,
        lambda model: cast(model, "bfloat16"),
    ):
        with pytest.raises(ValueError, match=says):
            use(adapted())


def test_an_activation_that_is_none_by_name_is_no_identity():
    """In a process of its own: here the annotations are checked before it."""
    program = "import jax.numpy as jnp; from clip_jax.nn.layers import activate\n"
    program += "activate(jnp.ones((2, 2)), jnp.tanh)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ValueError: activation must be one of quick_gelu, gelu, gelu_tanh." in done.stderr


def test_the_digest_of_a_model_says_how_it_was_adapted():
    models = [*(make() for make in ADAPTED), with_a_factor(), with_a_factor(3.0), small(SMALL_VIT)]
    models.append(with_another_activation("gelu_tanh"))
    digests = [model_digest(model) for model in models]
    assert len(set(digests)) == len(models)
    assert model_digest(with_another_activation()) == digests[1]


@pytest.mark.parametrize("config", [SMALL_VIT, SMALL_RESNET, SIGLIP])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_as_its_configuration_says_is_not_adapted(config, dtype):
    assert adaptations(small(config, dtype=dtype)) == []


def test_training_mode_adapts_no_model():
    model = small(SMALL_RESNET)
    digest = model_digest(model)
    model.train()
    assert model_digest(model) == digest
    pixels = random_images(2, 64)
    given = Encoder(model, batch_size=2).images(pixels)
    assert relative_error(given, small(SMALL_RESNET).encode_image(pixels)) < 1e-5
