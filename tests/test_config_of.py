"""`config_of`: the configuration that `load` would have, without weights."""

import pytest

import clip_jax
from clip_jax.config import CLIPConfig
from clip_jax.convert import to_huggingface, to_open_clip
from clip_jax.open_clip_architectures import architectures
from clip_jax.open_clip_catalog import pretrained_tags
from clip_jax.weights import save_parameters
from tests.model_files import VIT
from tests.models import SMALL_RESNET, random_parameters
from tests.siglip import SIGLIP


@pytest.mark.parametrize(
    "config, write",
    [
        (VIT, save_parameters),
        (SMALL_RESNET, save_parameters),
        (SIGLIP, save_parameters),
        (VIT, to_open_clip),
        (VIT, to_huggingface),
        (SIGLIP, to_huggingface),
    ],
)
def test_a_folder_says_what_it_says_when_it_is_loaded(config, write, tmp_path):
    write(config, random_parameters(config), tmp_path / "model")
    loaded = clip_jax.load(tmp_path / "model")[0].config
    for weights in (tmp_path / "model").glob("*.safetensors"):
        weights.write_bytes(b"")  # not read
    found = clip_jax.config_of(tmp_path / "model")
    assert found == loaded and type(found) is type(loaded)


def test_every_name_of_openclips_has_a_configuration():
    for name in architectures():
        assert isinstance(clip_jax.config_of(name), CLIPConfig)
    for tag in pretrained_tags():
        config = clip_jax.config_of(tag.name)
        assert config.activation == tag.activation
    assert clip_jax.config_of("ViT-H-14").vision.num_heads == 16


def test_a_repository_in_the_cache_has_one_and_no_other_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ValueError, match="isn't in the Hub's cache: clip_jax.load"):
        clip_jax.config_of("someone/model")
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    to_huggingface(VIT, random_parameters(VIT), repository / "snapshots" / commit)
    assert (
        clip_jax.config_of("someone/model")
        == clip_jax.load(repository / "snapshots" / commit)[0].config
    )


def test_what_has_no_configuration_alone_is_told(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"")
    for given, message in (
        (tmp_path / "a.pt", "is a file, .*take clip_jax.load"),
        (tmp_path, "is not a model: it has no config.json"),
        ("vit-l/14", "ViT-L/14"),
        ("ViT-L/15", "ViT-L/14"),
        ("ViT-Q", "clip-jax models --all"),
        ("ViT-H-14/none", "no weights of ViT-H-14"),
    ):
        with pytest.raises((ValueError, clip_jax.CheckpointError), match=message):
            clip_jax.config_of(given)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(clip_jax.CheckpointError, match=r"config.json"):
        clip_jax.config_of(tmp_path)
