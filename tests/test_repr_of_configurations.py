"""A configuration is shown by what differs from the defaults, and can be typed back."""

import dataclasses

import pytest

import clip_jax
from clip_jax.config import CLIPConfig, ResNetConfig, SigLIPConfig, TextConfig, ViTConfig
from clip_jax.pixel_config import PixelConfig
from tests.models import TINY_RESNET, TINY_VIT
from tests.siglip import SIGLIP

KINDS = (CLIPConfig, SigLIPConfig, TextConfig, ViTConfig, ResNetConfig, PixelConfig)


@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET, SIGLIP])
def test_a_configurations_repr_gives_it_again(config):
    changed = dataclasses.replace(config.text, norm_epsilon=1e-6, context_length=9)
    for each in (config, dataclasses.replace(config, text=changed)):
        assert eval(repr(each), {kind.__name__: kind for kind in KINDS}) == each


def test_what_is_at_its_default_is_not_shown():
    assert repr(clip_jax.config_of("ViT-B/32").text) == (
        "TextConfig(width=512, num_layers=12, num_heads=8)"
    )
    assert len(repr(clip_jax.config_of("ViT-B/32"))) < 200
