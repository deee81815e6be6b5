"""Repositories by name: what is fetched, what is taken from the cache, and what is said instead."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from clip_jax.convert import to_huggingface
from clip_jax.convert.folder import WEIGHTS
from clip_jax.errors import CheckpointError, DownloadError
from clip_jax.weights import load
from clip_jax.weights.hub import hub_cache, is_cached, is_repository_name, repository_folder
from tests.fake_hub import COMMIT, OLD_COMMIT, Hub
from tests.model_files import VIT
from tests.models import random_parameters

pytest.importorskip("huggingface_hub")

NAME = "openai/clip-tiny"
CLIP = {
    "config.json": b'{"model_type": "clip"}',
    "README.md": b"text",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same",
    "flax_model.msgpack": b"the same",
    "preprocessor_config.json": b'{"size": 224}',
    "vocab.json": b'{"!": 0}',
    "merges.txt": b"#version: 0.2",
    "tokenizer.json": b"all of it",
    "tokenizer_config.json": b"{}",
}
NEEDED = {*CLIP} - {"README.md", "pytorch_model.bin", "flax_model.msgpack", "tokenizer.json"}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with one repository, and an empty cache."""
    hub = Hub()
    hub.files[NAME] = dict(CLIP)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    yield hub
    hub.close()


@pytest.fixture
def nothing(monkeypatch):
    """A Hub that can't be reached."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def make_cached(root: Path, name: str, files: dict[str, bytes], revision="main") -> Path:
    """A repository as the Hub's libraries keep it."""
    place = root / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / revision).write_text(COMMIT)
    (place / "blobs").mkdir(exist_ok=True)
    for number, (file, content) in enumerate(files.items()):
        (place / "blobs" / str(number)).write_bytes(content)
        link = place / "snapshots" / COMMIT / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(place / "blobs" / str(number))
    return place / "snapshots" / COMMIT


def refusal(name: str = NAME, **options) -> str:
    with pytest.raises(DownloadError) as caught:
        repository_folder(name, **options)
    message = str(caught.value)
    assert name in message and "\n" not in message and len(message) < 1_500
    return message


# ---- from the Hub -------------------------------------------------------------------------------


def test_only_the_files_that_are_needed_are_fetched(hub, tmp_path):
    folder = repository_folder(NAME)
    assert folder == tmp_path / "hub" / "models--openai--clip-tiny" / "snapshots" / COMMIT
    assert names(folder) == NEEDED == set(hub.fetched)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert (folder.parent.parent / "refs" / "main").read_text() == COMMIT


def test_what_is_cached_is_not_fetched_again(hub):
    repository_folder(NAME)
    hub.fetched.clear()
    assert names(repository_folder(NAME)) == NEEDED and hub.fetched == []


def test_a_commit_that_is_cached_asks_nobody(hub):
    folder = repository_folder(NAME)
    hub.asked.clear()
    assert repository_folder(NAME, revision=COMMIT) == folder and hub.asked == []


def test_a_revision_is_a_folder_of_its_own(hub):
    old = repository_folder(NAME, revision="old")
    assert old.name == OLD_COMMIT and repository_folder(NAME).name == COMMIT
    assert repository_folder(NAME, revision=OLD_COMMIT) == old


def test_an_openclip_repository_gives_openclips_files(hub):
    both = {**CLIP, "open_clip_config.json": b"{}", "open_clip_pytorch_model.bin": b"weights"}
    hub.files["laion/x"] = both
    expected = {"open_clip_config.json", "open_clip_pytorch_model.bin"}
    hub.files["laion/y"] = both | {"open_clip_model.safetensors": b"weights"}
    del hub.files["laion/x"]["model.safetensors"]
    assert names(repository_folder("laion/x")) == expected
    expected = {"open_clip_config.json", "open_clip_model.safetensors"}
    assert names(repository_folder("laion/y")) == expected


def test_weights_without_a_configuration_are_enough_where_that_is_known(hub):
    hub.files["apple/x"] = {"README.md": b"", "open_clip_pytorch_model.bin": b"weights"}
    assert "holds no CLIP model" in refusal("apple/x")
    assert names(repository_folder("apple/x", what="weights")) == {"open_clip_pytorch_model.bin"}


def test_all_shards_of_an_index_are_fetched(hub):
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = json.dumps({"weight_map": places}).encode()
    shards = dict.fromkeys(places.values(), b"shard")
    hub.files[NAME] = {
        "config.json": b"{}",
        "model.safetensors.index.json": index,
        **shards,
        "model-00003-of-00003.safetensors": b"of another index",
    }
    folder = repository_folder(NAME)
    assert names(folder) == {"config.json", "model.safetensors.index.json", *shards}
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert names(repository_folder(NAME)) >= set(shards)
    hub.files["a/b"] = hub.files[NAME] | {
        "model.safetensors.index.json": b'{"weight_map": {"a": "../../../x"}}'
    }
    with pytest.raises(DownloadError, match="'../../../x' is not the name of a file"):
        repository_folder("a/b")


def test_a_folder_of_a_pipeline_is_given_by_its_name(hub):
    pipeline = {f"text_encoder/{name}": data for name, data in CLIP.items()}
    pipeline |= {"model_index.json": b"{}", "tokenizer_2/merges.txt": b"", "unet/x.bin": b""}
    pipeline |= {"tokenizer_2/vocab.json": b"{}", "tokenizer_2/tokenizer_config.json": b"{}"}
    hub.files["stability/sd"] = pipeline
    folder = repository_folder("stability/sd", subfolder="text_encoder")
    assert folder.name == "text_encoder" and names(folder) == NEEDED
    words = repository_folder("stability/sd", subfolder="tokenizer_2", what="tokenizer")
    assert names(words) == {"vocab.json", "merges.txt", "tokenizer_config.json"}
    message = refusal("stability/sd")
    assert "pipeline of several models" in message and "subfolder=, such as text_encoder" in message
    assert "expected one of text_encoder, tokenizer_2, unet" in refusal(
        "stability/sd", subfolder="image_encoder"
    )


def test_a_token_opens_a_private_repository(hub, monkeypatch):
    hub.private.add(NAME)
    assert "if it is private, log in" in refusal()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert names(repository_folder(NAME)) == NEEDED


def test_a_download_that_is_cut_leaves_nothing_to_be_taken_for_the_file(hub):
    hub.files[NAME]["model.safetensors"] = bytes(100_000)
    hub.cut_after = 50_000
    assert "can't be downloaded" in refusal()
    hub.cut_after = None
    folder = repository_folder(NAME)
    assert (folder / "model.safetensors").read_bytes() == bytes(100_000)


# ---- what is said instead -----------------------------------------------------------------------


def test_what_can_not_be_had_is_one_error(hub):
    assert "is no repository that you may read" in refusal("nobody/nothing")
    assert "has no revision 'v9'" in refusal(revision="v9")
    hub.files["a/readme"] = {"README.md": b"", ".gitattributes": b""}
    assert "holds no CLIP model" in refusal("a/readme") and "README.md" in refusal("a/readme")
    hub.files["a/config"] = {"config.json": b"{}", "model.ema.safetensors": b""}
    message = refusal("a/config")
    assert f"has no weights, expected one of {', '.join(WEIGHTS['huggingface'])}" in message
    hub.gated.add(NAME)
    assert "is gated: accept its conditions at" in refusal()
    hub.status = 503
    assert "can't be downloaded" in refusal("nobody/nothing")


@pytest.mark.parametrize(
    "name", ["x", "a/b/c", "../x", "a/..", "/a", "a/", "a/b\n", "a b/c", "", "a--b/c", "é/x"]
)
def test_other_texts_are_no_names(name):
    assert not is_repository_name(name)
    with pytest.raises(ValueError, match="is no name of a repository"):
        repository_folder(name)


@pytest.mark.parametrize("argument", ["revision", "subfolder"])
@pytest.mark.parametrize("value", ["../x", "/etc", "a//b", "a/../b", "a\\b", "a\nb"])
def test_a_revision_and_a_subfolder_stay_inside(argument, value):
    with pytest.raises(ValueError, match=f"^{argument} must be a relative path"):
        repository_folder(NAME, **{argument: value})


# ---- from the cache -----------------------------------------------------------------------------


def test_a_cached_repository_loads_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = make_cached(tmp_path, NAME, CLIP)
    assert repository_folder(NAME) == folder and is_cached(NAME)
    assert repository_folder(NAME, revision=COMMIT) == folder
    message = refusal("other/name")
    assert "isn't in the cache: HF_HUB_OFFLINE forbids the network. By hand: fetch" in message
    assert str(tmp_path) in message and not is_cached("other/name") and not is_cached("x")


def test_a_cached_repository_loads_without_the_network(nothing, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = make_cached(tmp_path, NAME, CLIP)
    assert repository_folder(NAME) == folder
    assert "can't be downloaded" in refusal("other/name")


def test_a_cached_repository_loads_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    folder = make_cached(tmp_path, NAME, CLIP)
    assert repository_folder(NAME) == folder
    assert "to download it, pip install 'clip-jax-flax[hub]'" in refusal("other/name")


def test_a_cut_download_in_the_cache_is_said_to_be_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = make_cached(tmp_path, NAME, CLIP)
    for name in ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack"):
        (folder / name).resolve().unlink()  # the link stays
    assert "is in the cache only in part: HF_HUB_OFFLINE" in refusal()
    (folder.parent.parent / "refs" / "main").write_bytes(b"\xff\xfe nonsense")
    assert "is in the cache only in part" in refusal()


def test_a_cut_download_in_the_cache_is_made_whole_by_the_hub(hub, tmp_path):
    folder = make_cached(tmp_path / "hub", NAME, {**CLIP, "vocab.json": b"mine"})
    (folder / "model.safetensors").resolve().unlink()
    (folder / "pytorch_model.bin").unlink()
    (folder / "flax_model.msgpack").unlink()
    assert (repository_folder(NAME) / "model.safetensors").read_bytes() == b"weights"
    assert hub.fetched == ["model.safetensors"]


def test_a_cut_file_in_the_cache_is_said_to_be_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    to_huggingface(VIT, random_parameters(VIT), tmp_path / "whole")
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    folder = make_cached(tmp_path / "hub", NAME, files)
    load(NAME)
    weights = (folder / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError) as caught:
        load(NAME)
    message = str(caught.value)
    assert "model.safetensors" in message and f"Of {NAME}: it is in the Hub's cache" in message
    shutil.rmtree(message.partition("remove ")[2].partition(" and load")[0])
    assert "isn't in the cache" in refusal()


def test_weights_in_another_format_in_the_cache_are_not_fetched_again(hub, tmp_path):
    files = {name: CLIP[name] for name in ("config.json", "pytorch_model.bin")}
    folder = make_cached(tmp_path / "hub", NAME, files)
    assert repository_folder(NAME) == folder
    assert "model.safetensors" not in hub.fetched and "vocab.json" in hub.fetched


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_hubs_libraries_have_it(monkeypatch, variables, expected):
    for variable in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert str(hub_cache()) == expected and hub_cache("/given") == Path("/given")
