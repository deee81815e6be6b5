"""The names: their order, numbers and addresses, and what a wrong one is told."""

import math

import pytest

from clip_jax.catalog import CATALOG, available_models, lookup
from clip_jax.config import CLIPConfig
from clip_jax.convert.infer import infer_config
from clip_jax.shapes import parameter_shapes
from tests.models import official_shapes

OFFICIAL = [
    "RN50",
    "RN101",
    "RN50x4",
    "RN50x16",
    "RN50x64",
    "ViT-B/32",
    "ViT-B/16",
    "ViT-L/14",
    "ViT-L/14@336px",
]
BUNDLED = ["emoji"]
STATISTICS = ("/mean", "/var", "/num_batches_tracked")


def test_official_names_come_first_and_in_order():
    assert available_models() == OFFICIAL + BUNDLED


@pytest.mark.parametrize("name", OFFICIAL + BUNDLED)
def test_every_model_has_its_published_parameter_count(name):
    entry = lookup(name)
    sizes = {
        path: math.prod(shape)
        for path, shape in parameter_shapes(entry.config).items()
        if not path.endswith(STATISTICS)
    }
    assert sum(sizes.values()) == entry.num_parameters
    vision = sum(size for path, size in sizes.items() if path.startswith("visual/"))
    assert vision == entry.num_vision_parameters


@pytest.mark.parametrize("name", OFFICIAL)
def test_configuration_is_what_the_official_arrays_say(name):
    shapes = {path: shape for path, (shape, _) in official_shapes()[name].items()}
    assert lookup(name).config == infer_config(shapes, "quick_gelu")


@pytest.mark.parametrize("name", OFFICIAL + BUNDLED)
def test_configuration_survives_json(name):
    config = lookup(name).config
    assert CLIPConfig.from_json(config.to_json()) == config


def test_addresses_carry_distinct_checksums():
    assert len({entry.sha256 for entry in CATALOG.values()}) == len(CATALOG)
    for entry in map(lookup, OFFICIAL):
        assert len(entry.sha256) == 64 and int(entry.sha256, 16)
        assert entry.url.endswith(f"/{entry.sha256}/{entry.file}")
    assert lookup("ViT-L/14@336px").url == (
        "https://openaipublic.azureedge.net/clip/models/"
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt"
    )


@pytest.mark.parametrize(
    "wrong, meant",
    [("ViT-B32", "ViT-B/32"), ("vit-b/32", "ViT-B/32"), ("rn50x46", "RN50x4"), ("RN-101", "RN101")],
)
def test_near_miss_is_told_the_name_that_was_meant(wrong, meant):
    with pytest.raises(ValueError, match=f"unknown model '{wrong}': did you mean '{meant}'"):
        lookup(wrong)


def test_wild_guess_is_told_all_names():
    with pytest.raises(ValueError) as error:
        lookup("resnext")
    assert "did you mean" not in str(error.value)
    assert all(name in str(error.value) for name in OFFICIAL)
