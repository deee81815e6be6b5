"""What can't be had of the Hugging Face Hub is one line, by Python and by the command."""

import json

import pytest
from PIL import Image

import clip_jax
from clip_jax.cli import main
from clip_jax.compat import FlaxCLIPTextModel
from clip_jax.convert import to_huggingface
from clip_jax.errors import CheckpointError, DownloadError
from tests.fake_hub import Hub
from tests.model_files import VIT
from tests.models import random_parameters

pytest.importorskip("huggingface_hub")

INDEX = json.dumps({"weight_map": {"a": "../../x"}}).encode()
CASES = {
    "no/body": "is no repository that you may read: check the name; if it is private, log in",
    "a/private": "is no repository that you may read: check the name; if it is private, log in",
    "a/gated": "is gated: accept its conditions at",
    "a/readme": "holds no CLIP model, expected .* it has README.md: check the name",
    "a/bare": "has no weights, expected one of model.safetensors",
    "a/pipeline": "is a pipeline of several models.* subfolder=, such as text_encoder",
    "a/index": "'../../x' is not the name of a file in this folder",
    "a/other": "of the type chinese_clip, which is not supported: expected clip",
}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """The files of each repository by name."""
    folder = tmp_path_factory.mktemp("hub") / "hf"
    to_huggingface(VIT, random_parameters(VIT), folder)
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {
        **dict.fromkeys(("a/good", "a/private", "a/gated"), good),
        "a/readme": {"README.md": b""},
        "a/bare": {"config.json": good["config.json"]},
        "a/pipeline": {"model_index.json": b"{}", "text_encoder/config.json": b"{}"},
        "a/index": {"config.json": good["config.json"], "model.safetensors.index.json": INDEX},
        "a/other": {**good, "config.json": b'{"model_type": "chinese_clip"}'},
    }


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch):
    """A Hub that has them, an empty cache, and a picture in the current folder."""
    hub = Hub()
    hub.files |= repositories
    hub.private.add("a/private")
    hub.gated.add("a/gated")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("a.png")
    yield hub
    hub.close()


@pytest.mark.parametrize("name", CASES)
def test_a_repository_that_can_not_be_read_is_one_line(hub, name, capsys):
    for read in (clip_jax.load, clip_jax.load_text_model, FlaxCLIPTextModel.from_pretrained):
        with pytest.raises((DownloadError, CheckpointError), match=CASES[name]) as caught:
            read(name)
    assert main(["classify", "a.png", "--labels", "cat", "--model", name]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clip-jax: ") and str(caught.value)[:80] in line


def test_a_revision_and_a_folder_that_are_not_there_are_named(hub):
    for read in (clip_jax.load, clip_jax.load_text_model, FlaxCLIPTextModel.from_pretrained):
        with pytest.raises(DownloadError, match="has no revision 'v9': take a branch, tag or"):
            read("a/good", revision="v9")
        with pytest.raises(DownloadError, match="has no folder unet, nor any other: leave it out"):
            read("a/good", subfolder="unet")
        with pytest.raises(DownloadError, match="no folder unet, expected one of text_encoder$"):
            read("a/pipeline", subfolder="unet")


def test_a_folder_here_that_hides_a_repository_is_said(hub, tmp_path):
    clip_jax.load("a/good")
    to_huggingface(VIT, random_parameters(VIT), tmp_path / "a" / "good")
    with pytest.warns(UserWarning, match="a/good is a folder here and a repository.* is taken"):
        clip_jax.load("a/good")
