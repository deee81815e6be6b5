"""Tokenizers in the files of Hugging Face's transformers: CLIP's, and a SigLIP model's own."""

import functools
import json
from collections.abc import Sequence
from importlib import resources

import numpy as np

from clip_jax.config import TextConfig
from clip_jax.errors import CheckpointError
from clip_jax.model_tokenizer import PIECES, SETTINGS, AddedToken, Tokenizer
from clip_jax.sentence_piece import END as SIGLIP_END
from clip_jax.sentence_piece import AnyTokenizer, SentencePieceTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
# In these files each byte is a character: itself if printable, else one of those from 256 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]


def tokenizer_files(text: TextConfig, tokenizer: Tokenizer | None = None) -> dict[str, bytes]:
    """Returns the content of a folder's tokenizer files by name.

    There are none for a model whose ids aren't those of CLIP's tokenizer.

    Args:
        text: the model's text tower.
        tokenizer: one with tokens that were added to CLIP's; None for CLIP's own.
    """
    own = tokenizer.files() if tokenizer is not None else {}
    try:
        text.check_strings()
    except ValueError:
        if not own:
            return {}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": text.context_length,
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
        **SPECIAL,
        **(json.loads(own[SETTINGS]) if own else {}),
    }
    vocabulary, merges = _tables()
    added = () if tokenizer is None else tokenizer.added
    return {
        "vocab.json": vocabulary,
        "merges.txt": merges,
        "tokenizer.json": _all_in_one(added),  # for readers in other languages than Python
        SETTINGS: (json.dumps(config, indent=2) + "\n").encode(),
        "special_tokens_map.json": (json.dumps(SPECIAL, indent=2) + "\n").encode(),
    }


def folder_files(text: TextConfig, tokenizer: AnyTokenizer | None) -> dict[str, bytes]:
    """Returns the content of a folder's tokenizer files by name, for this package to read too.

    Args:
        text: the model's text tower.
        tokenizer: the model's own; None for CLIP's, if that makes its ids.
    """
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer_files(text, tokenizer)
    is_theirs = tokenizer.cleaning != "open_clip"
    return {**(siglip_tokenizer_files(tokenizer) if is_theirs else {}), **tokenizer.files()}


def siglip_tokenizer_files(tokenizer: SentencePieceTokenizer) -> dict[str, bytes]:
    """Returns the content of a folder's tokenizer files by name.

    Raises:
        CheckpointError: texts are cleaned as transformers doesn't.
    """
    if tokenizer.cleaning == "open_clip":
        raise CheckpointError(
            "Hugging Face's tokenizers don't clean texts as OpenCLIP does: its ids would be others"
        )
    end, pad, unknown = "</s>", "</s>", "<unk>"
    config: dict[str, object] = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True}
    if tokenizer.cleaning == "siglip2":
        end, pad = "<eos>", "<pad>"
        config = {"tokenizer_class": "Siglip2Tokenizer", "bos_token": "<bos>"}
    if tokenizer.cleaning == "siglip":
        known = {SIGLIP_END: end} | {number: text for text, number in tokenizer.literals}
        config["added_tokens_decoder"] = {
            str(number): {"content": text, "normalized": False, "special": True}
            for number, text in sorted(known.items())
        }
    config |= {
        "model_max_length": tokenizer.context_length,
        "padding_side": "right",
        "eos_token": end,
        "pad_token": pad,
        "unk_token": unknown,
    }
    return {
        tokenizer.file: tokenizer.vocabulary,
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }


def _all_in_one(added: Sequence[AddedToken]) -> bytes:
    """Returns the content of `tokenizer.json`, from which the library tokenizers makes the ids."""
    vocabulary, merges = _tables()
    ids = json.loads(vocabulary)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    own = [{"id": ids[text], "content": text, **flags, "special": True} for text in (START, END)]
    words = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [*own, *({"id": token.id, **token.document()} for token in added)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": PIECES},
                    "behavior": "Removed",
                    "invert": True,
                },
                {"type": "ByteLevel", **words},
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, ids[END]],
            "cls": [START, ids[START]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", **words, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges.decode().splitlines()[1:],
        },
    }
    return (json.dumps(document, ensure_ascii=False) + "\n").encode()


@functools.cache
def _tables() -> tuple[bytes, bytes]:
    """Returns the content of `vocab.json` and of `merges.txt`."""
    with resources.files("clip_jax.data").joinpath("bpe_merges.npy").open("rb") as file:
        pairs = np.load(file, allow_pickle=False).tolist()
    tokens = [chr(byte) for byte in PRINTABLE]
    tokens += [chr(256 + i) for i in range(256 - len(PRINTABLE))]
    tokens += [f"{token}</w>" for token in tokens]
    merges = ["#version: 0.2"]
    for left, right in pairs:
        merges.append(f"{tokens[left]} {tokens[right]}")
        tokens.append(tokens[left] + tokens[right])
    tokens += [START, END]
    vocabulary = json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False)
    return vocabulary.encode(), ("\n".join(merges) + "\n").encode()
