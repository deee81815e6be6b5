"""OpenCLIP's names: our table of architectures and weights is open_clip's own."""

import importlib
import json
import re
from typing import Any

import pytest

from clip_jax.cli import main
from clip_jax.open_clip_architectures import architectures
from clip_jax.open_clip_catalog import PretrainedTag, lookup_tag, pretrained_tags
from tests.reference import clip, quiet, requires_reference

# Towers that are not read: timm's but SigLIP's, and text towers of Hugging Face's.
OTHERS = re.compile(
    r"coca_|convnext|EVA0|ViTamin|MobileCLIP|PE-Core|swin|vit_|roberta|mt5|nllb|naflex", re.I
)


def open_clip() -> Any:
    clip()  # puts torchvision on its feet
    pytest.importorskip("open_clip")
    with quiet():
        return importlib.import_module("open_clip")


def tag_of(name: str) -> PretrainedTag:
    found = lookup_tag(name)
    assert found is not None
    return found


def all_tags() -> list[PretrainedTag]:
    twins = [name for name in architectures() if name.endswith("-quickgelu")]
    return [*pretrained_tags(), *(tag for name in twins for tag in pretrained_tags(name))]


@requires_reference
def test_every_architecture_is_the_one_of_open_clip():
    theirs = {name: open_clip().get_model_config(name) for name in open_clip().list_models()}
    assert len(theirs) > 100
    # MobileCLIP2-L-14 and the like have our towers, but aren't among the published CLIP models.
    expected = {name: model for name, model in theirs.items() if not OTHERS.search(name)}
    assert architectures() == expected


@requires_reference
def test_every_tag_is_the_one_of_open_clip():
    theirs = {
        f"{architecture}/{tag}": open_clip().get_pretrained_cfg(architecture, tag)
        for architecture, tag in open_clip().list_pretrained()
        if not OTHERS.search(architecture)
    }
    ours = {tag.name: tag for tag in all_tags()}
    assert ours.keys() == theirs.keys() and len(ours) > 100
    for name, found in theirs.items():
        tag = ours[name]
        assert tag.quick_gelu == bool(found.get("quick_gelu")), name
        assert (tag.mean, tag.std) == (found["mean"], found["std"]), name
        assert (tag.interpolation, tag.resize) == (found["interpolation"], found["resize_mode"])
        if tag.repository is None:
            # Their table has the repository of other weights, and the right file beside it.
            assert (tag.url, name) == (found["url"], "ViT-B-16-plus-240/laion400m_e32")
        else:
            assert f"{tag.repository}/" == found["hf_hub"], name


@requires_reference
def test_what_is_not_in_the_table_is_refused_by_name():
    others = [name for name in open_clip().list_models() if OTHERS.search(name)]
    assert len(others) > 50
    for name in others:
        with pytest.raises(ValueError, match=f"^{name}/webli: OpenCLIP's {name} (is|has) an? "):
            lookup_tag(f"{name}/webli")


def test_a_tag_has_the_configuration_that_its_weights_need():
    config = tag_of("ViT-H-14/dfn5b").open_clip_config()
    assert config["model_cfg"]["quick_gelu"] is True
    assert config["model_cfg"]["vision_cfg"]["head_width"] == 80
    assert config["preprocess_cfg"]["resize_mode"] == "squash"
    config = tag_of("ViT-L-14/laion2b_s32b_b82k").open_clip_config()
    assert config["model_cfg"]["quick_gelu"] is False
    assert config["preprocess_cfg"] == {
        "size": 224,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    # The architecture's own name says exact GELU; these weights were trained with QuickGELU.
    assert architectures()["ViT-B-32"].get("quick_gelu") is None
    assert tag_of("ViT-B-32/openai").quick_gelu


def test_what_is_changed_in_a_configuration_does_not_reach_the_next():
    before = tag_of("ViT-B-16-SigLIP/webli").open_clip_config()
    changed = tag_of("ViT-B-16-SigLIP/webli").open_clip_config()
    changed["model_cfg"]["vision_cfg"]["image_size"] = 50
    changed["preprocess_cfg"]["size"] = 50
    assert tag_of("ViT-B-16-SigLIP/webli").open_clip_config() == before


def test_a_wrong_tag_is_told_the_nearest_and_all():
    with pytest.raises(ValueError) as caught:
        lookup_tag("ViT-H-14/dfn5")
    assert str(caught.value) == (
        "ViT-H-14/dfn5: OpenCLIP has no weights of ViT-H-14 by the tag 'dfn5': did you mean "
        "'dfn5b'? known: laion2b_s32b_b79k, metaclip_fullcc, metaclip_altogether, dfn5b"
    )
    with pytest.raises(ValueError, match=r"by the tag '': known: none"):
        lookup_tag("ViT-e-14")
    # An activation is the tag's: these weights don't have the one that the name says.
    with pytest.raises(ValueError, match="no weights of ViT-H-14-quickgelu by the tag"):
        lookup_tag("ViT-H-14-quickgelu/laion2b_s32b_b79k")


@pytest.mark.parametrize(
    "name", ["openai/clip-vit-base-patch32", "ViT-B/32", "x", "laion/ViT-H-14"]
)
def test_other_names_are_no_tags(name):
    assert lookup_tag(name) is None


def test_the_command_lists_what_each_tag_needs(capsys):
    assert main(["models", "--all", "--json"]) == 0
    found = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert len(found) == len(pretrained_tags())
    assert found["ViT-H-14-CLIPA-336/laion2b"] == {
        "name": "ViT-H-14-CLIPA-336/laion2b",
        "image_size": 336,
        "embed_dim": 1024,
        "activation": "gelu",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "resize": "squash",
        "source": "UCSC-VLAA/ViT-H-14-CLIPA-336-laion2B",
    }
    assert main(["models", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found) + 1
    (line,) = (line for line in lines if line.startswith("ViT-H-14/dfn5b "))
    assert line.split()[:6] == ["ViT-H-14/dfn5b", "224", "1024", "quick_gelu", "bicubic", "squash"]
