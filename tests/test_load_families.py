"""`load` of other libraries' models: by folder, by repository in the Hub's cache, by tag."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.convert import to_huggingface, to_open_clip
from clip_jax.errors import CheckpointError, DownloadError
from clip_jax.nn import flatten, parameters
from clip_jax.open_clip_catalog import PretrainedTag
from clip_jax.pixel_config import PixelConfig
from clip_jax.weights import finding
from tests.models import SMALL_VIT, random_images, random_parameters

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PARAMS = random_parameters(SMALL_VIT)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The Hub's cache, without the network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def place(name):
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        return repository / "snapshots" / COMMIT

    return place


def is_the_model(model):
    found, expected = flatten(parameters(model)), flatten(PARAMS)
    return found.keys() == expected.keys() and all(
        np.asarray(found[path]).tobytes() == expected[path].tobytes() for path in expected
    )


def test_a_repository_in_the_cache_loads_offline(cache):
    to_huggingface(SMALL_VIT, PARAMS, cache("owner/clip"))
    assert is_the_model(clip_jax.load("owner/clip")[0])
    assert is_the_model(clip_jax.load("owner/clip", revision=COMMIT)[0])
    with pytest.raises(DownloadError, match="owner/other"):
        clip_jax.load("owner/other")


def test_a_subfolder_is_taken_of_repositories_and_folders(cache, tmp_path):
    to_open_clip(SMALL_VIT, PARAMS, cache("owner/several") / "inner")
    assert is_the_model(clip_jax.load("owner/several", subfolder="inner")[0])
    to_open_clip(SMALL_VIT, PARAMS, tmp_path / "here" / "inner")
    assert is_the_model(clip_jax.load(tmp_path / "here", subfolder="inner")[0])
    with pytest.raises(ValueError, match="has no folder 'other'"):
        clip_jax.load(tmp_path / "here", subfolder="other")


def test_a_folder_wins_over_a_repository_of_its_name_and_that_is_said(cache, tmp_path):
    other = dataclasses.replace(SMALL_VIT, activation="gelu")
    to_huggingface(other, PARAMS, cache("owner/clip"))
    to_huggingface(SMALL_VIT, PARAMS, tmp_path / "owner" / "clip")
    with pytest.warns(UserWarning, match="the folder is taken"):
        assert clip_jax.load("owner/clip")[0].config.activation == "quick_gelu"


@pytest.mark.parametrize("says_itself", [True, False])
def test_a_tag_of_openclip_is_its_repository(cache, monkeypatch, says_itself):
    pixels = PixelConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    folder = cache("timm/small")
    to_open_clip(dataclasses.replace(SMALL_VIT, pixels=pixels), PARAMS, folder)
    document = json.loads((folder / "open_clip_config.json").read_text())
    if not says_itself:
        (folder / "open_clip_config.json").unlink()
        (folder / "config.json").write_text("{}")
    tag = PretrainedTag("ViT-S", "small", "timm/small", None, True)
    monkeypatch.setattr(PretrainedTag, "open_clip_config", lambda self: document)
    monkeypatch.setattr(finding, "lookup_tag", lambda name: tag if name == "ViT-S/small" else None)
    model, preprocess = clip_jax.load("ViT-S/small")
    assert is_the_model(model) and model.config.pixels == pixels
    black = Image.new("RGB", (32, 32))
    assert np.allclose(preprocess(black), -1)


def test_a_tag_that_is_in_no_repository_says_where_its_file_is():
    with pytest.raises(DownloadError, match="https://.*clip-jax convert FILE FOLDER --model"):
        clip_jax.load("ViT-B-16-plus-240/laion400m_e32")


def test_wrong_tags_and_unsupported_architectures_are_named():
    with pytest.raises(ValueError, match="no weights of ViT-H-14 by the tag 'dfn6b'"):
        clip_jax.load("ViT-H-14/dfn6b")
    with pytest.raises(ValueError, match="ConvNeXt"):
        clip_jax.load("convnext_base/laion400m_s13b_b51k")


@pytest.mark.parametrize("option", ["revision", "subfolder"])
def test_official_names_have_no_revisions(option):
    with pytest.raises(ValueError, match=f"{option} is for repositories.*'x' for 'ViT-B/32'"):
        clip_jax.load("ViT-B/32", **{option: "x"})  # pyright: ignore[reportArgumentType]


def test_hugging_faces_pixels_are_given_by_name_for_its_folders_alone(tmp_path):
    to_huggingface(SMALL_VIT, PARAMS, tmp_path / "hf")
    to_open_clip(SMALL_VIT, PARAMS, tmp_path / "oc")
    palette = Image.fromarray(random_images(1, 50)[0]).convert("P")
    ours = clip_jax.load(tmp_path / "hf")[1](palette)
    theirs = clip_jax.load(tmp_path / "hf", preprocessing="huggingface")[1](palette)
    assert np.abs(ours - theirs).max() > 0.1  # theirs is resized as RGB
    with pytest.raises(ValueError, match="is for folders of Hugging Face's transformers"):
        clip_jax.load(tmp_path / "oc", preprocessing="huggingface")
    with pytest.raises(ValueError, match='must be "openai" or "huggingface". Got \'clip\''):
        clip_jax.load(tmp_path / "hf", preprocessing="clip")  # pyright: ignore[reportArgumentType]


def test_a_folder_with_nothing_but_configuration_and_weights_loads(tmp_path):
    to_huggingface(SMALL_VIT, PARAMS, tmp_path / "hf")
    for path in (tmp_path / "hf").iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    model, preprocess = clip_jax.load(tmp_path / "hf")
    assert is_the_model(model)
    assert preprocess(Image.new("RGB", (40, 30))).shape == (32, 32, 3)
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights, expected one of model.safetensors"):
        clip_jax.load(tmp_path / "hf")
