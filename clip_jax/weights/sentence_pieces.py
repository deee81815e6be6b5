"""Reads the SentencePiece tokenizer of a SigLIP folder, in whichever library's form it is."""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from clip_jax.config import CLIP_VOCAB_SIZE
from clip_jax.convert.archive import shown
from clip_jax.convert.checks import naming
from clip_jax.convert.families import OPEN_CLIP_CONFIG
from clip_jax.convert.json_file import read_json
from clip_jax.errors import CheckpointError
from clip_jax.model_tokenizer import Tokenizer
from clip_jax.sentence_piece import END, RULES, VOCABULARIES, Cleaning, SentencePieceTokenizer

SETTINGS = "tokenizer_config.json"
CONTEXT, VOCAB_SIZE = 64, 32000  # transformers' defaults
GEMMA_VOCAB_SIZE = 256000  # of SigLIP 2
# Gemma's tokenizer.json has 34 MB.
MAX_BYTES = 128 << 20

_KIND = re.compile(rb'"type"\s*:\s*"(Unigram|BPE)"')


class _Text(NamedTuple):
    """What a folder's configuration says of its texts."""

    library: str
    context_length: int
    vocab_size: int | None


def sentence_piece_of(
    folder: Path, names: set[str], config: Mapping[str, Any]
) -> SentencePieceTokenizer | Tokenizer | None:
    """Returns the tokenizer of a SigLIP folder; None for other folders.

    Args:
        folder: native, of transformers or of OpenCLIP; or a tokenizer's alone.
        names: the names of its files.
        config: the content of its `config.json`, if it has one.

    Returns:
        The tokenizer; or, where its file isn't in the folder, one that refuses texts by naming it.

    Raises:
        CheckpointError: the file is damaged, or another model's; says what was expected.
        ModuleNotFoundError: the library that reads it isn't installed.
    """
    text = _text(folder, names, config)
    if text is None:
        return None
    file = next((name for name in ("spiece.model", *VOCABULARIES[::-1]) if name in names), None)
    if file is None and text.library == "native" and text.vocab_size == CLIP_VOCAB_SIZE:
        return None  # trained here, with CLIP's tokenizer
    if file is None:
        expected = "tokenizer.json" if text.vocab_size == GEMMA_VOCAB_SIZE else "spiece.model"
        missing = f"in {expected}, a file that belongs in {folder}"
        return Tokenizer(text.context_length, missing=missing)
    path = folder / file
    with naming(path):
        content = _content(path)
    rules = _rules(folder, names, text, _is_second(file, content, text.vocab_size))
    tokenizer = SentencePieceTokenizer(text.context_length, file, content, **rules)
    try:
        tokenizer.check()
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {shown(str(error), 300)}, expected SigLIP's SentencePiece vocabulary: get it "
            f"again from where the model comes from"
        ) from None
    _check_fits(path, tokenizer, text.vocab_size)
    return tokenizer


def _text(folder: Path, names: set[str], config: Mapping[str, Any]) -> _Text | None:
    """Returns what a configuration says; None if it isn't SigLIP's."""
    if "vision" in config:
        text = config.get("text")
        if not isinstance(text, Mapping) or (config.get("type") != "siglip" and RULES not in names):
            return None
        return _numbers("native", text, "context_length", "vocab_size")
    if OPEN_CLIP_CONFIG in names:
        model = read_json(folder / OPEN_CLIP_CONFIG).get("model_cfg")
        towers = [model.get(f"{name}_cfg") for name in ("text", "vision")] if model else []
        if not all(isinstance(tower, Mapping) for tower in towers) or not towers:
            return None
        text, vision = towers
        if "siglip" not in str(vision.get("timm_model_name")):
            return None
        return _numbers("open_clip", text, "context_length", "vocab_size")
    if "model_type" in config:
        if not str(config["model_type"]).startswith("siglip"):
            return None
        text = config.get("text_config", config)
        text = text if isinstance(text, Mapping) else {}
        text = {"max_position_embeddings": CONTEXT, "vocab_size": VOCAB_SIZE, **text}
        return _numbers("huggingface", text, "max_position_embeddings", "vocab_size")
    if SETTINGS not in names:
        return None
    settings = read_json(folder / SETTINGS, MAX_BYTES)
    if not str(settings.get("tokenizer_class")).startswith(("Siglip", "Gemma")):
        return None
    return _numbers("huggingface", settings, "model_max_length", "")


def _numbers(library: str, fields: Mapping[str, Any], length: str, size: str) -> _Text:
    context, vocabulary = fields.get(length), fields.get(size)
    if not isinstance(context, int) or not 2 <= context < 1 << 16:
        context = CONTEXT  # where there is no limit, transformers writes 10^30
    is_size = isinstance(vocabulary, int) and 0 < vocabulary < 1 << 31
    return _Text(library, context, vocabulary if is_size else None)


def _content(path: Path) -> bytes:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError("is no file, expected SigLIP's SentencePiece vocabulary")
    if status.st_size > MAX_BYTES:
        raise CheckpointError(f"has {status.st_size:,} bytes, expected at most {MAX_BYTES:,}")
    return path.read_bytes()


def _is_second(file: str, content: bytes, vocab_size: int | None) -> bool:
    """Whether it is SigLIP 2's tokenizer, which is Gemma's."""
    if file.endswith(".json"):
        found = _KIND.search(content)
        return found is not None and found[1] == b"BPE"
    return file == "tokenizer.model" or vocab_size == GEMMA_VOCAB_SIZE


def _rules(folder: Path, names: set[str], text: _Text, is_second: bool) -> dict[str, Any]:
    """Returns how texts are cleaned, padded and searched for literals."""
    cleaning: Cleaning = "siglip2" if is_second else "siglip"
    rules = {"cleaning": cleaning, "pad_id": 0 if is_second else END, "literals": ()}
    if RULES in names:
        found = read_json(folder / RULES)
        literals = found.get("literals", {})
        if (
            found.get("cleaning") not in get_args(Cleaning)
            or not _is_id(found.get("pad_id"))
            or not isinstance(literals, Mapping)
            or not all(name and _is_id(number) for name, number in literals.items())
        ):
            raise CheckpointError(
                f"{folder / RULES}: expected cleaning (one of {', '.join(get_args(Cleaning))}), "
                f"pad_id and literals, as clip_jax.save writes them: save the model again"
            )
        return {
            "cleaning": found["cleaning"],
            "pad_id": found["pad_id"],
            "literals": tuple(literals.items()),
        }
    if text.library == "open_clip":
        return rules | {"cleaning": "open_clip"}
    if SETTINGS in names:
        added = read_json(folder / SETTINGS, MAX_BYTES).get("added_tokens_decoder")
        rules["literals"] = tuple(
            (token["content"], int(number))
            for number, token in (added.items() if isinstance(added, Mapping) else ())
            if number.isascii() and number.isdecimal() and len(number) < 10
            if isinstance(token, Mapping) and isinstance(token.get("content"), str)
            if token["content"]
        )
    return rules


def _is_id(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 31


def _check_fits(path: Path, tokenizer: SentencePieceTokenizer, vocab_size: int | None) -> None:
    """Checks that a vocabulary is the model's.

    Raises:
        CheckpointError: it has another number of ids.
    """
    if vocab_size is None or tokenizer.fits(vocab_size):
        return
    raise CheckpointError(
        f"{path}: has {tokenizer.vocab_size:,} ids, expected the {vocab_size:,} of the model: "
        f"it belongs to another; put there the file that comes with this one"
    )
