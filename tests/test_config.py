"""Configurations: to JSON and back, and what they refuse."""

import json

import pytest

from clip_jax.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from tests.models import TINY_RESNET, TINY_VIT


@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET])
def test_json_gives_the_configuration_back(config):
    assert CLIPConfig.from_json(config.to_json()) == config
    assert hash(CLIPConfig.from_json(config.to_json())) == hash(config)


def test_activation_survives_json():
    config = CLIPConfig(8, TINY_VIT.vision, TINY_VIT.text, "gelu")
    assert CLIPConfig.from_json(config.to_json()).activation == "gelu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("embed_dim"), "- embed_dim: missing"),
        (lambda d: d.update(colour=1), r"\+ colour: unknown"),
        (lambda d: d["vision"].pop("type"), "vision.type must be one of vit, resnet. Got None"),
        (lambda d: d["vision"].update(type="bert"), "Got 'bert'"),
        (lambda d: d["vision"].update(type=[]), "vision.type must be one of vit, resnet. Got .."),
        (lambda d: d["vision"].update(type={}), "vision.type must be one of vit, resnet. Got {}"),
        (lambda d: d["text"].update(width="128"), "width must be positive and whole. Got '128'"),
        (lambda d: d["text"].update(num_heads=7), "num_heads must divide the width. Got 7 and 128"),
        (lambda d: d.update(text=3), "must have an object 'text'"),
        (lambda d: d.update(activation="relu"), "quick_gelu, gelu, gelu_tanh. Got 'relu'"),
    ],
)
def test_a_wrong_document_is_refused_with_its_reason(change, message):
    document = json.loads(TINY_VIT.to_json())
    change(document)
    with pytest.raises(ValueError, match=message):
        CLIPConfig.from_json(json.dumps(document))


def test_what_is_not_json_is_refused():
    with pytest.raises(ValueError, match="not JSON"):
        CLIPConfig.from_json("embed_dim: 512")
    with pytest.raises(ValueError, match="not JSON"):
        CLIPConfig.from_json("[" * 100_000)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ViTConfig(225, 32, 64, 1, 1), "multiple of patch_size. Got 225 and 32"),
        (lambda: ViTConfig(224, 0, 64, 1, 1), "patch_size must be positive and whole. Got 0"),
        (lambda: ResNetConfig(230, 64, (1, 1, 1, 1), 32), "multiple of 32. Got 230"),
        (lambda: ResNetConfig(224, 64, (1, 1, 1), 32), "stage_depths must be four"),
        (lambda: ResNetConfig(224, 64, 5, 32), "stage_depths must be four"),
        (lambda: ResNetConfig(224, 64, (1, 1, 1, 0), 32), "stage_depths must be positive"),
        (lambda: ResNetConfig(224, 7, (1, 1, 1, 1), 32), "width must be even"),
        (lambda: TextConfig(64, -1, 1), "num_layers must be positive and whole. Got -1"),
    ],
)
def test_impossible_numbers_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
