"""SentencePiece vocabularies trained on the settings of SigLIP's, and odd texts for them."""

import functools
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from clip_jax.parity.reference import import_library, quiet

# Whatever the vocabularies are trained on: words, numbers, several scripts.
WORDS = (
    "a the photo of picture drawing red blue small large dog cats running jumped over lazy fox "
    "white black house tree in on with 12 345 6789 naïve café straße Москва на столе 寿司 の 写真 "
    "こんにちは αβγ ΣΙΣ 🍣 🐶 don't it's e-mail O'Neill U.S.A. half-baked semi;colon snake_case x=1"
).split()
SYLLABLES = "ba co di fe gu la mo ni pe ra so ti un ver wil yo zen ing er ly st".split()
LITERALS = (
    *("</s>", "<unk>", "<pad>", "<eos>", "<bos>", "<mask>", "<start_of_turn>", "</S>", "<EOS>"),
    *("\n\n", "▁", "  ", "\t", "\n", " ", "\u3000", "\u200b", "&amp;", "&amp;lt;", "\ufeff"),
)


@functools.cache
def siglip_model() -> bytes:
    """A `spiece.model` as of C4: unigram, end 1, no start, Unicode normalised."""
    return _train(
        model_type="unigram",
        vocab_size=400,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )


@functools.cache
def siglip2_model() -> bytes:
    """A `tokenizer.model` as Gemma's: byte pairs with fallback to bytes, nothing normalised."""
    return _train(
        model_type="bpe",
        vocab_size=700,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<mask>", "<start_of_turn>", "\n\n", "[multimodal]"],
    )


def transformers_folders(root: Path, length: int) -> dict[str, tuple[Path, Any]]:
    """Folders of both tokenizers as transformers writes them, each with transformers' own."""
    transformers, source = import_library("transformers"), root / "source"
    source.mkdir()
    (source / "spiece.model").write_bytes(siglip_model())
    (source / "tokenizer.model").write_bytes(siglip2_model())
    with quiet():
        first = transformers.SiglipTokenizer(vocab_file=str(source / "spiece.model"))
        (source / "spiece.model").rename(root / "spiece.model")
        first.model_max_length = length
        settings = {"tokenizer_class": "GemmaTokenizer", "add_eos_token": True}
        settings |= {"padding_side": "right", "model_max_length": length}
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        second = transformers.Siglip2Tokenizer.from_pretrained(source, local_files_only=True)
        (root / "spiece.model").rename(source / "spiece.model")
        first.save_pretrained(root / "siglip")
        second.save_pretrained(root / "siglip2")
    return {"siglip": (root / "siglip", first), "siglip2": (root / "siglip2", second)}


def _train(**options) -> bytes:
    library = pytest.importorskip("sentencepiece")
    rng = random.Random(0)
    made_up = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(800)]
    words = [*WORDS * 4, *made_up]
    sentences = (" ".join(rng.choices(words, k=rng.randint(3, 12))) for _ in range(3000))
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_writer=model,
        pad_piece="<pad>",
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return model.getvalue()


def odd_texts(count: int, seed: int = 0) -> list[str]:
    """Words, literals, other scripts, any code points, in any order and with any spaces."""
    rng = random.Random(seed)

    def part() -> str:
        kind = rng.random()
        if kind < 0.35:
            return rng.choice(WORDS)
        if kind < 0.5:
            return rng.choice(LITERALS)
        if kind < 0.6:
            return rng.choice(WORDS).upper()
        if kind < 0.8:
            return "".join(chr(rng.randint(32, 0x2FF)) for _ in range(rng.randint(1, 5)))
        if kind < 0.9:
            point = rng.randint(1, 0x10FFFF)
            return "?" if 0xD800 <= point < 0xE000 else chr(point)
        return str(rng.randint(0, 99999))

    return [
        "".join(part() + rng.choice(["", " ", " ", ", ", "_"]) for _ in range(rng.randint(0, 12)))
        for _ in range(count)
    ]
