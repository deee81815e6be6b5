"""Tokens added to CLIP's are kept with the model, and never taken for the end of a text."""

import dataclasses
import json

import numpy as np
import pytest

import clip_jax
from clip_jax.config import TextConfig
from clip_jax.convert import to_huggingface
from clip_jax.evaluate import ZeroShotClassifier
from clip_jax.model_tokenizer import AddedToken, Tokenizer
from clip_jax.nn import from_parameters
from clip_jax.tokenizer import END
from tests.calls import runner
from tests.models import SMALL_VIT, random_parameters, relative_error
from tests.reference import requires_reference

TOY, SKS = AddedToken("<cat-toy>", 49408, True), AddedToken("<sks>", 49409)
WORDS = ["a <cat-toy> on <sks>", "a cat"]
TEXT: TextConfig = dataclasses.replace(SMALL_VIT.text, vocab_size=49410, pooling="eos", eos_id=END)
CONFIG = dataclasses.replace(SMALL_VIT, text=TEXT)


@pytest.fixture(scope="module")
def params():
    return random_parameters(CONFIG)


@pytest.fixture(scope="module")
def hugging_face(params, tmp_path_factory):
    """A folder of transformers, with the tokens in the file that transformers 5 writes."""
    folder = tmp_path_factory.mktemp("added") / "hf"
    to_huggingface(CONFIG, params, folder)
    tokens = [{"content": t.text, "id": t.id, "normalized": t.is_normalized} for t in (TOY, SKS)]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    return folder


def test_tokens_added_in_tokenizer_json_are_known_beside_an_older_vocabulary(hugging_face):
    assert (hugging_face / "vocab.json").exists()
    tokenizer = clip_jax.load_tokenizer(hugging_face)
    assert isinstance(tokenizer, Tokenizer) and tokenizer.added == (TOY, SKS)
    assert tokenizer(WORDS)[0, :6].tolist() == [49406, 320, 49408, 525, 49409, END]


@pytest.mark.parametrize("to", ["native", "huggingface"])
def test_a_converted_model_keeps_added_tokens(hugging_face, tmp_path, capsys, to):
    assert runner(capsys)("convert", hugging_face, tmp_path / "new", "--to", to)[0] == 0
    ids = clip_jax.load_tokenizer(hugging_face)(WORDS)
    np.testing.assert_array_equal(clip_jax.load_tokenizer(tmp_path / "new")(WORDS), ids)


@pytest.mark.filterwarnings("default")
def test_a_format_without_place_for_added_tokens_says_so(hugging_face, tmp_path, capsys):
    run = runner(capsys)
    status, _, (said,) = run("convert", hugging_face, tmp_path / "new", "--to", "open_clip")
    assert status == 0
    assert "no place for the tokens that were added to CLIP's (<cat-toy>, <sks>)" in said


def test_a_saved_model_keeps_added_tokens_and_can_be_replaced(hugging_face, tmp_path):
    model, _ = clip_jax.load(hugging_face)
    tokenizer = clip_jax.load_tokenizer(hugging_face)
    for _ in range(2):
        clip_jax.save(model, tmp_path / "model", tokenizer=tokenizer)
    assert clip_jax.load_tokenizer(tmp_path / "model") == tokenizer
    clip_jax.save(model, tmp_path / "plain", tokenizer=clip_jax.load_tokenizer("ViT-B/32"))
    assert sorted(p.name for p in (tmp_path / "plain").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_padding_token_is_kept_with_the_added_ones():
    for pad in (0, END, TOY.id):
        files = Tokenizer(77, pad_id=pad, added=(TOY,)).files()
        assert ("pad_token" in json.loads(files["tokenizer_config.json"])) and len(files) == 1
    assert Tokenizer(77).files() == {}


@requires_reference
def test_transformers_reads_the_added_tokens_of_a_converted_folder(hugging_face, tmp_path, capsys):
    from transformers import CLIPTokenizer

    runner(capsys)("convert", hugging_face, tmp_path / "new", "--to", "huggingface")
    theirs = CLIPTokenizer.from_pretrained(tmp_path / "new")("a <sks> cat")["input_ids"]
    assert theirs == [49406, 320, 49409, 2368, END]


def test_an_exported_model_keeps_added_tokens(hugging_face, tmp_path, capsys):
    command = ("export", hugging_face, tmp_path / "new", "--platforms", "cpu")
    assert runner(capsys)(*command)[0] == 0
    model, _ = clip_jax.load(hugging_face)
    ids = clip_jax.load_tokenizer(hugging_face)(WORDS)
    exported = clip_jax.export.load(tmp_path / "new")
    assert relative_error(exported.texts(WORDS), model.encode_text(ids)) < 1e-6
    np.testing.assert_array_equal(clip_jax.load_tokenizer(tmp_path / "new")(WORDS), ids)


def unsaid():
    """A model with ids behind CLIP's end token, of which nothing says what they are."""
    text = dataclasses.replace(TEXT, pooling="argmax", eos_id=None)
    return dataclasses.replace(CONFIG, text=text)


def test_a_classifier_doesnt_take_an_added_token_for_the_end(params):
    model = from_parameters(unsaid(), params)
    tokenizer = Tokenizer(77, pad_id=END, added=(TOY, SKS))
    ZeroShotClassifier(model, ["cat", "dog"], tokenizer=tokenizer)
    with pytest.raises(ValueError, match="nothing says whether a text ends there"):
        ZeroShotClassifier(model, ["<sks>", "dog"], tokenizer=tokenizer)


def test_training_doesnt_take_an_added_token_for_the_end(hugging_face, params):
    from clip_jax.weights.opened import Opened

    model, preprocess = clip_jax.load(hugging_face)
    tokenizer = clip_jax.load_tokenizer(hugging_face)
    Opened(model, preprocess, tokenizer).check_ends()
    other = from_parameters(unsaid(), params)
    Opened(other, preprocess, None).check_ends()
    with pytest.raises(ValueError, match='pooling="eos" and eos_id=49407'):
        Opened(other, preprocess, tokenizer).check_ends()
