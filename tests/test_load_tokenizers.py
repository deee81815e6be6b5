"""A folder's own tokenizer: strings are refused where CLIP's would make other ids of them."""

import json

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.cli import main
from clip_jax.convert import to_huggingface
from clip_jax.errors import CheckpointError
from clip_jax.evaluate import ZeroShotClassifier
from clip_jax.nn import parameters
from clip_jax.weights import tokenizers
from tests.models import TINY_VIT, relative_error, small


@pytest.fixture
def folder(tmp_path):
    """A folder of transformers with CLIP's tokenizer."""
    model = small(TINY_VIT)
    (tmp_path / "hf").mkdir()
    to_huggingface(model.config, parameters(model), tmp_path / "hf")
    return tmp_path / "hf"


def test_another_vocabulary_of_the_same_size_is_noticed_wherever_strings_are_taken(
    folder, tmp_path, capsys
):
    path = folder / "vocab.json"
    vocabulary = json.loads(path.read_text())
    vocabulary["cat</w>"], vocabulary["dog</w>"] = vocabulary["dog</w>"], vocabulary["cat</w>"]
    path.write_text(json.dumps(vocabulary))
    model, _ = clip_jax.load(folder)
    with pytest.raises(ValueError, match="not those of CLIP's tokenizer.* of the folder hf"):
        clip_jax.Encoder(model).texts(["a cat"])
    with pytest.raises(ValueError, match="not those of CLIP's tokenizer"):
        ZeroShotClassifier(model, ["cat", "dog"])
    clip_jax.save(model, tmp_path / "native")  # keeps it
    with pytest.raises(ValueError, match="of the folder hf"):
        clip_jax.Encoder(clip_jax.load(tmp_path / "native")[0]).texts(["a cat"])
    (tmp_path / "texts.txt").write_text("a cat\n")
    Image.new("RGB", (48, 48)).save(tmp_path / "a.png")
    for command in (
        ["embed", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "out")],
        ["classify", str(tmp_path / "a.png"), "--labels", "cat", "dog"],
    ):
        assert main([*command, "--model", str(folder)]) in (1, 2)
        said = capsys.readouterr().err
        assert "its tokenizer is another" in said or "of the folder hf" in said
    # Ids of its own are computed as ever.
    tokens = clip_jax.tokenize(["a cat"])
    expected = small(TINY_VIT).encode_text(tokens)
    assert relative_error(np.asarray(model.encode_text(tokens)), expected) < 1e-6


def test_clips_own_vocabulary_takes_strings(folder):
    model, _ = clip_jax.load(folder)
    assert clip_jax.Encoder(model).texts(["a cat"]).shape == (1, TINY_VIT.embed_dim)


@pytest.mark.parametrize(
    "load", [clip_jax.load, clip_jax.load_text_model, clip_jax.load_vision_model]
)
def test_an_unknown_preprocessing_is_refused(load, folder):
    with pytest.raises(ValueError, match="preprocessing.*must be.* Got 'timm'"):
        load(folder, preprocessing="timm")


@pytest.mark.parametrize("load", [clip_jax.load, clip_jax.load_vision_model])
def test_transformers_pixels_are_those_of_its_folders(load, folder, tmp_path):
    assert type(load(folder, preprocessing="huggingface")[1]).__name__ == "HuggingFacePreprocess"
    clip_jax.save(clip_jax.load(folder)[0], tmp_path / "native")
    with pytest.raises(ValueError, match="for folders of Hugging Face's transformers"):
        load(tmp_path / "native", preprocessing="huggingface")


def test_clips_vocabulary_is_known_by_its_digests():
    vocabulary, merges = tokenizers._expected()
    in_order = sorted(vocabulary, key=vocabulary.__getitem__)
    assert tokenizers._digest(in_order) == tokenizers._VOCABULARY_SHA256
    assert tokenizers._digest(merges) == tokenizers._MERGES_SHA256


def test_two_swapped_ids_are_no_vocabulary_of_clips(tmp_path):
    vocabulary, _ = tokenizers._expected()
    swapped = {**vocabulary, "a": vocabulary["b"], "b": vocabulary["a"]}
    with pytest.raises(CheckpointError, match=r"2 tokens of 49,408 differ"):
        tokenizers._check_same(tmp_path, swapped)


def test_the_command_converts_a_folder_together_with_what_its_strings_need(
    folder, tmp_path, capsys
):
    words = json.loads((folder / "vocab.json").read_text())
    words["cat</w>"], words["dog</w>"] = words["dog</w>"], words["cat</w>"]
    (folder / "vocab.json").write_text(json.dumps(words))
    assert main(["convert", str(folder), str(tmp_path / "native")]) == 0
    with pytest.raises(ValueError, match=r"of the folder hf \(vocab.json: is not CLIP's"):
        clip_jax.Encoder(clip_jax.load(tmp_path / "native")[0]).texts(["a cat"])
    assert main(["convert", str(folder), str(tmp_path / "oc"), "--to", "open_clip"]) == 1
    assert "no place for: the options of the tokenizer the folder hf" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_words_that_git_has_not_fetched_are_said_to_whoever_gives_strings(name, folder):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    model, _ = clip_jax.load(folder)  # images are as ever
    with pytest.raises(ValueError, match=rf"\({name}: is a Git LFS pointer.*git lfs pull"):
        clip_jax.Encoder(model).texts(["a cat"])
    with pytest.raises(CheckpointError, match=f"{name}: is a Git LFS pointer"):
        clip_jax.load_tokenizer(folder)


def test_another_class_of_tokenizer_refuses_strings_too(folder):
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    model, _ = clip_jax.load(folder)
    with pytest.raises(ValueError, match="own tokenizer of BertTokenizer of the folder hf"):
        clip_jax.Encoder(model).texts(["a cat"])
