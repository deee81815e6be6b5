"""What a newcomer is told when a checkpoint is unclear, incomplete or named wrongly."""

import copy
import json
import shutil

import pytest

from clip_jax.convert import to_huggingface, to_open_clip
from clip_jax.convert.open_clip_config import from_document
from clip_jax.errors import CheckpointError, DownloadError
from clip_jax.open_clip_catalog import lookup_tag
from clip_jax.weights import load, read_model
from clip_jax.weights.tokenizers import load_tokenizer
from tests.models import SMALL_VIT, random_parameters


def described(**text):
    """OpenCLIP's configuration of ViT-B-32 with these changes of the text tower."""
    tag = lookup_tag("ViT-B-32/openai")
    assert tag is not None
    document = copy.deepcopy(tag.open_clip_config())
    document["model_cfg"]["text_cfg"] |= text
    return document


@pytest.mark.parametrize(
    "options", [{"clean": "canonicalize"}, {"clean": "whitespace"}, {"strip_sep_token": True}]
)
def test_options_that_change_openclips_ids_are_another_tokenizer(options, tmp_path):
    document = described(tokenizer_kwargs=options)
    text = from_document(document).text
    with pytest.raises(ValueError, match=f"tokenizer of open_clip with .*{next(iter(options))}"):
        text.check_strings()
    (tmp_path / "open_clip_config.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"tokenizer open_clip with .*, which isn't at hand"):
        load_tokenizer(tmp_path)("a photo")


@pytest.mark.parametrize("options", [None, {}, {"clean": "lower"}, {"context_length": 77}])
def test_options_that_change_no_ids_leave_openclips_tokenizer(options):
    text = from_document(described(tokenizer_kwargs=options)).text
    assert text.tokenizer is None
    text.check_strings()


def test_options_of_a_tokenizer_must_be_an_object():
    with pytest.raises(CheckpointError, match="tokenizer_kwargs: expected an object"):
        from_document(described(tokenizer_kwargs="canonicalize"))


@pytest.fixture
def folder(tmp_path):
    """A folder of transformers."""
    to_huggingface(SMALL_VIT, random_parameters(SMALL_VIT), tmp_path / "hf")
    return tmp_path / "hf"


def test_a_float16_variant_is_read_where_it_is_the_only_weights(folder):
    weights = folder / "model.safetensors"
    weights.rename(folder / "model.fp16.safetensors")
    assert read_model(folder)[0] == "huggingface"
    (folder / "model.bf16.safetensors").write_bytes(b"")
    advice = r"rename the ones that are meant \(model.bf16.*, model.fp16.*\) to model.safetensors"
    with pytest.raises(CheckpointError, match=advice):
        read_model(folder)


def test_shards_without_an_index_say_that_it_is_missing(folder):
    weights = folder / "model.safetensors"
    weights.rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"not their index, expected model.safetensors.index"):
        read_model(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "cl', "config.json: is not valid JSON.*it was cut or damaged"),
        ("{}", "config.json: holds an empty object"),
        ("", "config.json: is empty"),
        ("version https://git-lfs.github.com/spec/v1", "config.json: is a Git LFS pointer"),
    ],
)
def test_a_broken_configuration_is_named_as_what_is_wrong(content, message, folder):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_model(folder)
    assert "weights' file" not in str(caught.value)


def test_weights_of_openclip_without_their_configuration_say_that_it_is_missing(tmp_path):
    to_open_clip(SMALL_VIT, random_parameters(SMALL_VIT), tmp_path / "oc")
    (tmp_path / "oc" / "open_clip_config.json").unlink()
    advice = "no open_clip_config.json.*`clip-jax convert FILE DST --model NAME --activation A`"
    with pytest.raises(CheckpointError, match=f"open_clip_model.safetensors, but {advice}"):
        read_model(tmp_path / "oc")


COMMIT = "c" * 40


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """The folder of a repository's files in the Hub's cache, without the network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    return repository / "snapshots" / COMMIT


def test_a_wrong_subfolder_is_named_with_those_that_are_there(folder, snapshot):
    (folder / "tokenizer").mkdir()
    for wrong in (load, load_tokenizer):
        with pytest.raises(ValueError, match="no folder 'tokeniser', expected one of tokenizer"):
            wrong(folder, subfolder="tokeniser")
    shutil.copytree(folder, snapshot)
    for wrong in (load, load_tokenizer):
        with pytest.raises(DownloadError, match="has no folder tokeniser of it, .* tokenizer"):
            wrong("owner/name", subfolder="tokeniser")


def test_a_missing_shard_in_the_cache_is_named_with_what_is_there(folder, snapshot):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copytree(folder, snapshot)
    with pytest.raises(DownloadError, match=r"has no b.safetensors, of its files a.safetensors"):
        load("owner/name")
    (snapshot / "model.safetensors.index.json").unlink()
    (snapshot / "a.safetensors").unlink()
    with pytest.raises(DownloadError, match=r"has no weights of it, of its files config.json"):
        load("owner/name")


def test_names_may_have_openclips_prefixes(folder, snapshot):
    shutil.copytree(folder, snapshot)
    for name in ("hf-hub:owner/name", f"local-dir:{folder}"):
        assert load(name)[0].config.embed_dim == SMALL_VIT.embed_dim
        assert load_tokenizer(name) == load_tokenizer(folder)
    with pytest.raises(ValueError, match="there is no folder owner/name"):
        load("local-dir:owner/name")


@pytest.mark.parametrize("take", [load, load_tokenizer])
def test_an_unknown_architecture_before_a_tag_is_said(take, snapshot):
    with pytest.raises(ValueError, match="no architecture 'ViT-B-99'.*did you mean ViT-B-"):
        take("ViT-B-99/openai")


def test_a_misspelt_name_that_looks_like_a_repositorys_is_told_what_was_meant(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="^ViT-B/33: did you mean 'ViT-B/32'[?] As a "):
        load("ViT-B/33")
    with pytest.raises(DownloadError, match="^someone/a-model isn't in the cache"):
        load("someone/a-model")
