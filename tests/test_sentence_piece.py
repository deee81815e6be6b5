"""SigLIP's tokenizers, against transformers' and OpenCLIP's on vocabularies trained here."""

import dataclasses
import json
import string

import numpy as np
import pytest

import clip_jax
from clip_jax.cli import main
from clip_jax.convert import to_huggingface
from clip_jax.encoder import Encoder
from clip_jax.errors import CheckpointError
from clip_jax.parity.reference import quiet
from clip_jax.sentence_piece import SentencePieceTokenizer
from clip_jax.weights import load_tokenizer
from tests.models import SMALL_VIT, random_parameters, small
from tests.peers import peer
from tests.sentence_pieces import (
    odd_texts,
    siglip2_model,
    siglip_model,
    transformers_folders,
)
from tests.siglip import SIGLIP

pytest.importorskip("sentencepiece")
pytest.importorskip("tokenizers")

LENGTH = 16


def siglip(**changes):
    options = {"cleaning": "siglip", "pad_id": 1, **changes}
    return SentencePieceTokenizer(LENGTH, "spiece.model", siglip_model(), **options)


def siglip2(**changes):
    options = {"cleaning": "siglip2", "pad_id": 0, **changes}
    return SentencePieceTokenizer(LENGTH, "tokenizer.model", siglip2_model(), **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tokenizers' folders as transformers writes them, and their own tokenizers."""
    peer("transformers")
    return transformers_folders(tmp_path_factory.mktemp("tokenizers"), LENGTH)


def theirs(tokenizer, texts):
    options = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    with quiet():
        return [tokenizer(text, **options)["input_ids"] for text in texts]


@pytest.mark.torch
@pytest.mark.parametrize(
    "count", [1000, pytest.param(20_000, marks=pytest.mark.slow)], ids=["short", "long"]
)
@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_ids_equal_those_of_transformers(folders, name, count):
    folder, peer_tokenizer = folders[name]
    texts = odd_texts(count, seed=count)
    expected = np.array(theirs(peer_tokenizer, texts))
    for ours in (load_tokenizer(folder), siglip() if name == "siglip" else siglip2()):
        wrong = np.flatnonzero((ours(texts, truncate=True) != expected).any(axis=1))
        assert not len(wrong), (ours.file, texts[wrong[0]], len(wrong))


@pytest.mark.torch
@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_transformers_reads_the_tokenizer_of_a_folder_that_is_written(folders, name, tmp_path):
    tokenizer = load_tokenizer(folders[name][0])
    text = dataclasses.replace(SIGLIP.text, vocab_size=tokenizer.vocab_size, context_length=LENGTH)
    config = dataclasses.replace(SIGLIP, text=text)
    to_huggingface(config, random_parameters(config), tmp_path / "model", tokenizer=tokenizer)
    with quiet():
        auto = peer("transformers").AutoTokenizer
        written = auto.from_pretrained(tmp_path / "model", local_files_only=True)
    assert written.model_max_length == LENGTH
    texts = odd_texts(300, seed=5)
    assert theirs(written, texts) == theirs(folders[name][1], texts)
    np.testing.assert_array_equal(
        load_tokenizer(tmp_path / "model")(texts, truncate=True), tokenizer(texts, truncate=True)
    )


def test_the_command_writes_the_models_own_tokenizer_for_transformers(tmp_path):
    text = dataclasses.replace(SIGLIP.text, vocab_size=400, context_length=LENGTH)
    model = small(dataclasses.replace(SIGLIP, text=text))
    clip_jax.save(model, tmp_path / "model", tokenizer=siglip())
    command = ["convert", str(tmp_path / "model"), str(tmp_path / "there"), "--to", "huggingface"]
    assert main(command) == 0
    texts = odd_texts(50)
    ids = load_tokenizer(tmp_path / "there")(texts, truncate=True)
    np.testing.assert_array_equal(ids, siglip()(texts, truncate=True))


def test_a_cleaning_that_transformers_doesnt_do_is_refused(tmp_path):
    tokenizer = siglip(cleaning="open_clip")
    text = dataclasses.replace(SIGLIP.text, vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(SIGLIP, text=text)
    with pytest.raises(CheckpointError, match="as OpenCLIP does"):
        to_huggingface(config, random_parameters(config), tmp_path / "model", tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


def by_hand(text):
    """OpenCLIP's cleaning for texts that need no repair."""
    text = text.replace("_", " ")
    text = "".join(c for c in text if c not in string.punctuation)
    return " ".join(text.lower().split())


@pytest.mark.torch
def test_ids_equal_openclips(folders):
    tokenizers = peer("open_clip").tokenizer
    for folder, _ in folders.values():
        with quiet():
            their = tokenizers.HFTokenizer(str(folder), context_length=LENGTH, clean="canonicalize")
        found = load_tokenizer(folder)
        assert isinstance(found, SentencePieceTokenizer)
        ours = SentencePieceTokenizer(
            LENGTH, found.file, found.vocabulary, "open_clip", found.pad_id
        )
        texts = [text for text in odd_texts(500) if by_hand(text)]
        with quiet():
            expected = np.array(their(texts))
        wrong = np.flatnonzero((ours(texts, truncate=True) != expected).any(axis=1))
        assert not len(wrong), (folder.name, texts[wrong[0]], len(wrong))


def test_texts_are_always_padded_to_the_context_and_end_with_1():
    for tokenizer in (siglip(), siglip2()):
        rows = tokenizer(["", "a dog", "a dog " * 20], truncate=True)
        assert rows.shape == (3, LENGTH) and rows.dtype == np.int32
        assert rows[0].tolist() == [1, *[tokenizer.pad_id] * (LENGTH - 1)]
        assert rows[2, -1] == 1 and (rows[2, :-1] > 1).all()
        length = int((rows[1] == 1).argmax())
        assert 0 < length < 8 and (rows[1, length + 1 :] == tokenizer.pad_id).all()
        assert tokenizer([]).shape == (0, LENGTH)
        np.testing.assert_array_equal(tokenizer("a dog"), rows[1:2])
        with pytest.raises(
            ValueError,
            match="more than the context length of 16; its tokenizer, called with truncate",
        ):
            tokenizer("a dog " * 20)


def test_cleaning_is_the_librarys():
    text = "A_b  C!\n&amp;"
    assert siglip().decode(siglip()(text)[0]) == "ab c amp"
    assert siglip2().decode(siglip2()(text)[0]) == "a_b  c!\n&amp;"
    assert siglip(cleaning="open_clip").decode(siglip(cleaning="open_clip")(text)[0]) == "a b c"


def test_surrogates_and_other_inputs():
    for tokenizer in (siglip(), siglip2()):
        np.testing.assert_array_equal(tokenizer("a\ud800b"), tokenizer("a\ufffdb"))
        with pytest.raises(TypeError, match=r"texts\[1\] must be a string, got int 3"):
            tokenizer(["a", 3])
        with pytest.raises(TypeError, match="must be a string or a list of strings"):
            tokenizer(3)
        with pytest.raises(ValueError, match="token ids must lie in"):
            tokenizer.decode([tokenizer.vocab_size])
        assert hash(tokenizer) == hash(type(tokenizer)(**_fields(tokenizer)))


def _fields(tokenizer):
    names = ("context_length", "file", "vocabulary", "cleaning", "pad_id", "literals")
    return {name: getattr(tokenizer, name) for name in names}


SIGLIP_CONFIG = {
    "model_type": "siglip",
    "text_config": {"max_position_embeddings": LENGTH, "vocab_size": 400},
    "vision_config": {},
}


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(content)
    return folder


OPEN_CLIP = {
    "model_cfg": {
        "vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"},
        "text_cfg": {"context_length": LENGTH, "vocab_size": 400},
    }
}
NATIVE = {"type": "siglip", "vision": {}, "text": {"context_length": LENGTH, "vocab_size": 700}}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.json": SIGLIP_CONFIG, "spiece.model": siglip_model}, ("siglip", 1)),
        (
            {"open_clip_config.json": OPEN_CLIP, "config.json": {}, "spiece.model": siglip_model},
            ("open_clip", 1),
        ),
        ({"config.json": NATIVE, "tokenizer.model": siglip2_model}, ("siglip2", 0)),
        (
            {
                "tokenizer_config.json": {
                    "tokenizer_class": "SiglipTokenizer",
                    "model_max_length": LENGTH,
                },
                "spiece.model": siglip_model,
            },
            ("siglip", 1),
        ),
    ],
    ids=["transformers", "open_clip", "native", "a tokenizer alone"],
)
def test_every_kind_of_folder_has_its_rules(tmp_path, files, expected):
    files = {name: made() if callable(made) else made for name, made in files.items()}
    tokenizer = load_tokenizer(write(tmp_path / "folder", files))
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert (tokenizer.cleaning, tokenizer.pad_id) == expected
    assert tokenizer("a dog").shape == (1, LENGTH)


def test_a_missing_file_is_named_when_strings_come(tmp_path):
    folder = write(tmp_path / "siglip", {"config.json": SIGLIP_CONFIG})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.context_length == LENGTH
    with pytest.raises(ValueError, match=r"spiece.model, a file that belongs in .*siglip"):
        tokenizer("a dog")
    second = {**SIGLIP_CONFIG, "text_config": {"vocab_size": 256000}}
    with pytest.raises(ValueError, match="tokenizer.json, a file that belongs in"):
        load_tokenizer(write(tmp_path / "siglip2", {"config.json": second}))("a dog")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"spiece.model": b""}, "spiece.model: sentencepiece can't read it .*get it again"),
        ({"spiece.model": b"version https://git-lfs.github.com/spec/v1"}, "can't read it"),
        ({"spiece.model": siglip2_model}, "has 700 ids, expected the 400 of the model"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json: tokenizers can't read it"),
        ({"tokenizer.json": b"\xff\xfe"}, "tokenizers can't read it"),
        (
            {"spiece.model": siglip_model, "tokenizer_rules.json": {"cleaning": "none"}},
            "tokenizer_rules.json: expected cleaning",
        ),
    ],
)
def test_wrong_and_damaged_files_are_told(tmp_path, files, message):
    files = {name: made() if callable(made) else made for name, made in files.items()}
    folder = write(tmp_path / "siglip", {"config.json": SIGLIP_CONFIG, **files})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)


def test_without_the_library_the_extra_is_named(monkeypatch):
    import sys

    for name, tokenizer in (("sentencepiece", siglip()), ("tokenizers", None)):
        monkeypatch.setitem(sys.modules, name, None)
        if tokenizer is None:
            tokenizer = SentencePieceTokenizer(LENGTH, "tokenizer.json", b"{}", "siglip2", 0)
        with pytest.raises(ModuleNotFoundError, match=rf"{name}: pip install .*\[siglip\]"):
            tokenizer("a dog")


def test_a_saved_model_carries_its_tokenizer(tmp_path):
    text = dataclasses.replace(SMALL_VIT.text, context_length=LENGTH, vocab_size=400)
    model = small(dataclasses.replace(SMALL_VIT, text=text))
    added = (("<extra>", 5),)
    for number, tokenizer in enumerate((siglip(literals=added), siglip(cleaning="open_clip"))):
        for _ in range(2):  # the second replaces the first
            clip_jax.save(model, tmp_path / str(number), tokenizer=tokenizer)
        files = {path.name for path in (tmp_path / str(number)).iterdir()}
        assert files == {
            *("config.json", "model.safetensors", "spiece.model", "tokenizer_rules.json")
        }
        assert load_tokenizer(tmp_path / str(number)) == tokenizer
    clip_jax.save(model, tmp_path / "0")  # without a tokenizer, none is left behind
    assert len(list((tmp_path / "0").iterdir())) == 2


def test_the_encoder_takes_it():
    text = dataclasses.replace(
        SMALL_VIT.text,
        context_length=LENGTH,
        vocab_size=400,
        pooling="last",
        is_causal=False,
    )
    model = small(dataclasses.replace(SMALL_VIT, text=text))
    texts, tokenizer = ["a dog", "", "small cats"], siglip()
    given = Encoder(model, batch_size=2, tokenizer=tokenizer).texts(texts)
    np.testing.assert_allclose(given, model.encode_text(tokenizer(texts)), atol=1e-5)
    with pytest.raises(ValueError, match="padding included"):
        model.encode_text(tokenizer(texts)[:, :8])
    with pytest.raises(ValueError, match="400 ids"):
        Encoder(model, batch_size=2).texts(texts)
