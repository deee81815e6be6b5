"""`tokenizer.json`, by which programs in other languages make a model's ids."""

import json

import numpy as np
import pytest

import clip_jax
from clip_jax.config import TextConfig
from clip_jax.convert.huggingface_tokenizer import tokenizer_files
from clip_jax.model_tokenizer import AddedToken, Tokenizer
from clip_jax.tokenizer import END
from tests.models import TINY_VIT
from tests.peers import peer
from tests.texts import ODD, random_texts

TEXTS = [text for text in (*ODD, *random_texts(500)) if "\0" not in text]
ADDED = (AddedToken("<cat-toy>", 49408), AddedToken("Foo", 49409, is_normalized=True))


def ids_of(content: bytes, texts):
    tokenizer = peer("tokenizers").Tokenizer.from_str(content.decode())
    return [found.ids for found in tokenizer.encode_batch(list(texts))]


@pytest.mark.torch
@pytest.mark.parametrize("added", [(), ADDED], ids=["clip", "added"])
def test_its_ids_are_those_of_the_tokenizer_that_wrote_it(added):
    tokenizer = Tokenizer(1000, "huggingface", pad_id=END, added=added)
    texts = [*TEXTS, "a <cat-toy> of FOO and food"]
    content = tokenizer_files(TINY_VIT.text, tokenizer)["tokenizer.json"]
    rows = tokenizer(texts)
    for text, found, expected in zip(texts, ids_of(content, texts), rows, strict=True):
        assert found == expected[: len(found)].tolist() and set(expected[len(found) :]) <= {END}, (
            text
        )


@pytest.mark.torch
def test_it_says_what_transformers_says(tmp_path):
    peer("tokenizers")
    for name, content in tokenizer_files(TINY_VIT.text).items():
        if name != "tokenizer.json":
            (tmp_path / name).write_bytes(content)
    peer("transformers").CLIPTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "new")
    theirs = json.loads((tmp_path / "new" / "tokenizer.json").read_text())
    ours = json.loads(tokenizer_files(TINY_VIT.text)["tokenizer.json"])
    theirs["model"]["merges"] = [" ".join(pair) for pair in theirs["model"]["merges"]]
    for document in (ours, theirs):  # one class of characters, written in two ways
        split = document["pre_tokenizer"]["pretokenizers"][0]["pattern"]
        split["Regex"] = split["Regex"].replace(r"[\p{L}]", r"\p{L}").replace(r"[\p{N}]", r"\p{N}")
    assert ours == theirs


def test_a_folder_that_has_it_alone_is_read(tmp_path):
    text: TextConfig = TINY_VIT.text
    files = tokenizer_files(text, Tokenizer(77, added=ADDED))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(files[name])
    tokenizer = clip_jax.load_tokenizer(tmp_path)
    assert isinstance(tokenizer, Tokenizer) and tokenizer.added == ADDED
    np.testing.assert_array_equal(tokenizer(["a <cat-toy>"])[0, :4], [49406, 320, 49408, END])
