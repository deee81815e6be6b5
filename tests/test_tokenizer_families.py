"""Ids as other libraries make them, and the files in folders that say so."""

import dataclasses
import functools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_jax.catalog import CATALOG
from clip_jax.config import TextConfig
from clip_jax.convert.huggingface_tokenizer import tokenizer_files
from clip_jax.encoder import Encoder
from clip_jax.errors import CheckpointError
from clip_jax.model_tokenizer import AddedToken, Tokenizer
from clip_jax.open_clip_catalog import lookup_tag
from clip_jax.parity.reference import quiet
from clip_jax.preprocess_huggingface import HuggingFacePreprocess
from clip_jax.tokenizer import tokenize
from clip_jax.weights.tokenizers import load_tokenizer
from tests.checkpoint_mutations import json_text, mutated_json
from tests.peers import peer
from tests.reference import requires_reference
from tests.texts import ODD, random_texts


@pytest.fixture
def folder(tmp_path):
    """The tokenizer's files of an old folder of transformers 4."""
    for name, content in tokenizer_files(TextConfig(64, 1, 1)).items():
        if name != "tokenizer.json":
            (tmp_path / name).write_bytes(content)
    return tmp_path


def hugging_faces(folder: Path) -> Any:
    with quiet():
        return peer("transformers").CLIPTokenizer.from_pretrained(folder)


def their_ids(tokenizer: Any, texts: list[str]) -> np.ndarray:
    options = {"padding": "max_length", "truncation": True, "max_length": 77}
    return np.array(tokenizer(texts, **options)["input_ids"], np.int32)


def change(folder: Path, name: str, **entries: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


# ---- ids ----------------------------------------------------------------------------------------


@requires_reference
def test_open_clips_ids_are_those_of_its_tokenizer():
    theirs = peer("open_clip").get_tokenizer("ViT-B-32")
    ours = load_tokenizer("ViT-B-32/laion2b_e16")
    assert ours == Tokenizer(77, "open_clip")
    for text in [*ODD, *random_texts(500)]:
        assert np.array_equal(ours(text, truncate=True), theirs(text).numpy()), repr(text)


def test_open_clips_literals_are_not_openais():
    theirs, ours = Tokenizer(9, "open_clip"), Tokenizer(9)
    assert theirs("<start_of_text>a<end_of_text>")[0].tolist()[:5] == [
        49406,
        49406,
        320,
        49407,
        49407,
    ]
    assert np.array_equal(ours("<|startoftext|>a"), theirs("<start_of_text>a"))
    assert 49406 not in theirs("<|startoftext|>")[0, 1:]
    assert 49406 not in Tokenizer(20)("<start_of_text>")[0, 1:]


def test_by_default_a_tokenizer_is_openais():
    texts = [*ODD, *random_texts(200)]
    assert np.array_equal(Tokenizer()(texts, truncate=True), tokenize(texts, truncate=True))


@requires_reference
def test_hugging_faces_ids_are_those_of_its_tokenizer(folder):
    theirs = hugging_faces(folder)
    ours = load_tokenizer(folder, preprocessing="huggingface")
    assert ours == Tokenizer(77, "huggingface", pad_id=49407)
    texts = [*ODD, *random_texts(4_000)]
    found, expected = ours(texts, truncate=True), their_ids(theirs, texts)
    wrong = [text for text, a, b in zip(texts, found, expected, strict=True) if (a != b).any()]
    assert not wrong, wrong[:3]


@requires_reference
@pytest.mark.parametrize("is_saved_anew", [True, False])
def test_added_tokens_are_hugging_faces(folder, is_saved_anew):
    tokenizer = hugging_faces(folder)
    if is_saved_anew:
        special = peer("tokenizers").AddedToken("[X]", normalized=False, special=True)
        tokenizer.add_tokens(["<cat-toy>", "Foo"])
        tokenizer.add_tokens([special])
        for path in folder.iterdir():
            path.unlink()
        tokenizer.save_pretrained(folder)
        assert not (folder / "vocab.json").exists()
    else:  # as transformers 4 did
        added = {"<cat-toy>": 49408, "Foo": 49409, "[X]": 49410}
        (folder / "added_tokens.json").write_text(json.dumps(added))
    theirs = hugging_faces(folder)
    ours = load_tokenizer(folder, preprocessing="huggingface")
    texts = ["a <cat-toy> here<cat-toy>x", "foo Foo food FOOD [X] [x] a[X]b", "<CAT-TOY>", "plain"]
    assert np.array_equal(ours(texts, truncate=True), their_ids(theirs, texts))
    assert ours.vocab_size == 49411
    assert "<cat-toy> here" in ours.decode(ours("a <cat-toy> here")[0])


def test_added_tokens_are_found_in_openais_texts_too():
    tokenizer = Tokenizer(8, added=(AddedToken("<cat-toy>", 49408),))
    assert tokenizer("a <cat-toy> &amp; b")[0].tolist() == [
        49406,
        320,
        49408,
        261,
        321,
        49407,
        0,
        0,
    ]
    assert tokenizer.decode(tokenizer("a <cat-toy> b")[0]) == "a <cat-toy> b"
    with pytest.raises(ValueError, match="must be in"):
        tokenizer.decode([49409])


def test_too_long_a_text_is_an_error_unless_it_may_be_cut():
    for rules in ("openai", "open_clip", "huggingface"):
        tokenizer = Tokenizer(5, rules)
        with pytest.raises(ValueError, match="6 tokens with its start and end"):
            tokenizer("a b c d")
        assert tokenizer("a b c d", truncate=True)[0].tolist() == [49406, 320, 321, 322, 49407]
        assert tokenizer("a " * 100_000, truncate=True)[0, -1] == 49407


def test_an_encoder_takes_texts_by_the_tokenizer_that_it_is_given(model):
    texts = ["a <start_of_text> b", "a dog’s &amp; a cat"]
    assert model.config.text.vocab_size == 49408
    length = model.config.text.context_length
    padded_by_end = Tokenizer(length, "huggingface", pad_id=49407)
    for tokenizer in (Tokenizer(length), Tokenizer(length, "open_clip"), padded_by_end):
        cutting = functools.partial(tokenizer, truncate=True)
        found = Encoder(model, batch_size=2, tokenizer=cutting).texts(texts)
        tokens = dataclasses.replace(tokenizer, pad_id=0)(texts, truncate=True)
        np.testing.assert_array_equal(found, Encoder(model, batch_size=2).texts(tokens))
    with pytest.raises(ValueError, match="every row of tokens must have the end token"):
        Encoder(model, tokenizer=lambda texts: np.ones((len(texts), 3), np.int32)).texts(texts)


# ---- folders and names --------------------------------------------------------------------------


def test_a_model_with_a_name_has_openais_tokenizer():
    assert load_tokenizer("ViT-B/32") == Tokenizer()
    assert load_tokenizer("emoji").context_length == CATALOG["emoji"].config.text.context_length
    assert load_tokenizer("ViT-L/14", preprocessing="huggingface").rules == "huggingface"


def test_a_native_folder_has_the_tokenizer_of_its_model(model_folder):
    config = json.loads((model_folder / "config.json").read_text())
    config["text"] |= {"vocab_size": 49408, "context_length": 12}
    (model_folder / "config.json").write_text(json.dumps(config))
    assert load_tokenizer(model_folder) == Tokenizer(12)
    config["text"]["vocab_size"] = 61
    (model_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trained with .61 ids., which isn't at hand"):
        load_tokenizer(model_folder)("a")


def test_a_tokenizer_that_is_not_at_hand_is_named_when_texts_are_given(tmp_path):
    tag = lookup_tag("ViT-H-14-CLIPA/datacomp1b")
    assert tag is not None
    (tmp_path / "open_clip_config.json").write_text(json.dumps(tag.open_clip_config()))
    for name in (tmp_path, "ViT-H-14-CLIPA/datacomp1b"):
        tokenizer = load_tokenizer(name)
        assert tokenizer.context_length == 32
        with pytest.raises(ValueError, match="tokenizer bert-base-uncased, which isn't at hand"):
            tokenizer("a cat")
        with pytest.raises(ValueError, match="bert-base-uncased"):
            tokenizer.decode([1, 2])


def test_a_folder_of_openclips_has_its_literals(tmp_path):
    tag = lookup_tag("ViT-B-32/openai")
    assert tag is not None
    config = tag.open_clip_config()
    config["model_cfg"]["text_cfg"] = {**config["model_cfg"]["text_cfg"], "context_length": 16}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path) == Tokenizer(16, "open_clip")
    assert load_tokenizer(tmp_path, preprocessing="huggingface").rules == "huggingface"


@pytest.mark.parametrize("pad, expected", [("!", 0), ("<|endoftext|>", 49407), (None, 49407)])
def test_padding_is_the_folders(folder, pad, expected):
    change(folder, "tokenizer_config.json", pad_token=pad, model_max_length=10**30)
    (folder / "special_tokens_map.json").unlink()
    tokenizer = load_tokenizer(folder)
    assert tokenizer == Tokenizer(77, "openai", expected)
    assert tokenizer("a")[0].tolist() == [49406, 320, 49407, *[expected] * 74]
    change(folder, "tokenizer_config.json", pad_token={"content": "!", "__type": "AddedToken"})
    assert load_tokenizer(folder).pad_id == 0


def test_a_folder_with_nothing_but_its_model_has_clips_tokenizer(tmp_path):
    config = {"model_type": "clip", "text_config": {"max_position_embeddings": 20}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path) == Tokenizer(20, pad_id=49407)
    config["text_config"]["vocab_size"] = 1000
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trained with .1000 ids."):
        load_tokenizer(tmp_path)("a")


def test_another_kind_of_tokenizer_is_named(folder):
    change(folder, "tokenizer_config.json", tokenizer_class="T5Tokenizer")
    with pytest.raises(ValueError, match="T5Tokenizer of .* isn't at hand"):
        load_tokenizer(folder)("a")


def test_another_vocabulary_is_refused_with_what_differs(folder):
    change(folder, "vocab.json", **{"cat</w>": 7, "dog</w>": 2368})
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder)
    message = str(caught.value)
    assert (
        "2 tokens of 49,408 differ and 0 tokens more" in message
        and "'dog</w>' with 2368" in message
    )
    (folder / "vocab.json").write_text('{"a": 0, "b": "x", "c": [1]}')
    with pytest.raises(CheckpointError, match="is not CLIP's vocabulary"):
        load_tokenizer(folder)
    for bad in ("[]", "[" * 100_000, "{"):
        (folder / "vocab.json").write_text(bad)
        with pytest.raises(CheckpointError, match="vocab.json: "):
            load_tokenizer(folder)


def test_other_merges_are_refused_with_the_first_that_differs(folder):
    lines = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join(lines[1:]))  # without the version
    load_tokenizer(folder)
    lines[1], lines[2] = lines[2], lines[1]
    (folder / "merges.txt").write_text("\n".join(lines))
    with pytest.raises(CheckpointError, match="merges 't h' at rank 0, not 'i n'"):
        load_tokenizer(folder)
    (folder / "merges.txt").write_text("#version: 0.2\ni n\n")
    with pytest.raises(CheckpointError, match="has 1 merges, expected the 48,894"):
        load_tokenizer(folder)
    (folder / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="is not UTF-8"):
        load_tokenizer(folder)


@pytest.mark.parametrize("document", [{}, {"model": []}, {"model": {"vocab": []}}])
def test_a_tokenizer_json_without_a_vocabulary_is_refused(tmp_path, document):
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="has no model.vocab"):
        load_tokenizer(tmp_path)


def test_what_has_no_tokenizer_is_said(tmp_path, model_folder):
    with pytest.raises(ValueError, match="is a file, which says nothing about its tokenizer"):
        load_tokenizer(model_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="has no tokenizer, expected vocab.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="neither the name of a model nor a folder"):
        load_tokenizer("no such name")
    with pytest.raises(ValueError, match="preprocessing must be"):
        load_tokenizer("ViT-B/32", preprocessing="x")  # pyright: ignore


def test_changed_settings_are_read_or_refused(tmp_path):
    documents: dict[str, Any] = {
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "pad_token": "!",
            "added_tokens_decoder": {"49408": {"content": "<x>", "normalized": True}},
        },
        "special_tokens_map.json": {"pad_token": {"content": "!"}, "eos_token": "<|endoftext|>"},
        "added_tokens.json": {"<y>": 49409},
        "config.json": {"model_type": "clip", "text_config": {"max_position_embeddings": 77}},
        "preprocessor_config.json": {
            "size": {"shortest_edge": 24},
            "crop_size": {"height": 24, "width": 24},
            "image_mean": [0.5, 0.5, 0.5],
        },
    }
    counts = {"read": 0, "refused": 0}
    for seed in range(250):
        rng = random.Random(seed)
        changed = rng.choice(sorted(documents))
        for name, document in documents.items():
            (tmp_path / name).write_text(json.dumps(document))
        text = json_text(mutated_json(documents[changed], rng), rng)
        (tmp_path / changed).write_bytes(text)
        try:
            if changed == "preprocessor_config.json":
                HuggingFacePreprocess.from_folder(tmp_path, 24)
            elif (tokenizer := load_tokenizer(tmp_path)).missing is None:
                tokenizer.decode(tokenizer("a <x> <y> b", truncate=True)[0])
            counts["read"] += 1
        except CheckpointError as error:
            counts["refused"] += 1
            assert len(str(error)) < 3_000
    assert counts["read"] > 100 and counts["refused"] > 40
