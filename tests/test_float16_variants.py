"""Weights of which only diffusers' float16 variant is in a folder or repository."""

import json

import pytest
from safetensors.numpy import load_file, save_file

from clip_jax.convert import to_huggingface
from clip_jax.convert.folder import weights_among
from clip_jax.errors import CheckpointError
from clip_jax.weights import read_model
from clip_jax.weights.hub import repository_folder
from tests.fake_hub import Hub
from tests.model_files import VIT, same
from tests.models import random_parameters

INDEX = "model.safetensors.index.fp16.json"
# Diffusers has put the variant before the number of the shard, and earlier behind it.
NEW = ("model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors")
OLD = ("model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors")


@pytest.fixture(params=[NEW, OLD], ids=["new", "old"])
def shards(request):
    """The names of two shards."""
    return request.param


@pytest.fixture
def folder(tmp_path, shards):
    """A folder of transformers whose only weights are these shards and their index."""
    to_huggingface(VIT, random_parameters(VIT), tmp_path / "hf")
    whole = tmp_path / "hf" / "model.safetensors"
    arrays = load_file(whole)
    whole.unlink()
    places = {name: shards[i % 2] for i, name in enumerate(arrays)}
    for shard in shards:
        save_file({n: a for n, a in arrays.items() if places[n] == shard}, tmp_path / "hf" / shard)
    (tmp_path / "hf" / INDEX).write_text(json.dumps({"weight_map": places}))
    return tmp_path / "hf"


def test_float16_shards_are_read_by_their_own_index(folder):
    assert same(read_model(folder)[2], random_parameters(VIT))


def test_float16_shards_without_their_index_say_its_name(folder):
    (folder / INDEX).unlink()
    with pytest.raises(CheckpointError, match=f"not their index, expected {INDEX}"):
        read_model(folder)


def test_another_precision_beside_them_is_taken_first_or_asked_for(shards):
    names = [*shards, INDEX]
    assert weights_among(names, "huggingface") == INDEX
    assert weights_among([*names, "model.safetensors"], "huggingface") == "model.safetensors"
    assert weights_among([*names, "model.bf16.safetensors"], "huggingface") is None


def test_all_float16_shards_of_a_repository_are_fetched(folder, shards, monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    hub = Hub()
    try:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(variable, raising=False)
        hub.files["some/one"] = {path.name: path.read_bytes() for path in folder.iterdir()}
        fetched = repository_folder("some/one")
    finally:
        hub.close()
    assert {*shards, INDEX} <= {path.name for path in fetched.iterdir()}
    assert same(read_model(fetched)[2], random_parameters(VIT))
