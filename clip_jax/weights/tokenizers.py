"""`load_tokenizer`: returns the tokenizer of a model, given its name or its folder."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from clip_jax.catalog import CATALOG, suggestion
from clip_jax.config import SENTENCE_PIECE, CLIPConfig, TextConfig
from clip_jax.convert.archive import MAX_INDEX_BYTES, shown
from clip_jax.convert.checks import LFS_BEGINNING, LFS_POINTER
from clip_jax.convert.families import CONFIG, OPEN_CLIP_CONFIG, SIGLIP
from clip_jax.convert.fields import Fields, raise_problems
from clip_jax.convert.huggingface_siglip import text_config as siglip_text_config
from clip_jax.convert.huggingface_tokenizer import tokenizer_files
from clip_jax.convert.json_file import read_json
from clip_jax.convert.open_clip_config import from_document
from clip_jax.errors import CheckpointError
from clip_jax.messages import counted, some
from clip_jax.model_tokenizer import SETTINGS, VOCAB_SIZE, AddedToken, Rules, Tokenizer
from clip_jax.open_clip_catalog import lookup_tag
from clip_jax.sentence_piece import AnyTokenizer
from clip_jax.tokenizer import END
from clip_jax.weights.finding import no_subfolder, without_scheme
from clip_jax.weights.hub import is_repository_name, repository_folder
from clip_jax.weights.sentence_pieces import sentence_piece_of

Preprocessing = Literal["openai", "huggingface"]

# The files of transformers: vocabulary and merges in two, or all in one; and settings.
_VOCABULARY, _MERGES, _ALL = "vocab.json", "merges.txt", "tokenizer.json"
_SPECIAL, _ADDED = "special_tokens_map.json", "added_tokens.json"
# Of CLIP's tokens in the order of their ids, and of its merges; each as a list in JSON. To build
# both for a comparison takes as long as a fifth of a load.
_VOCABULARY_SHA256 = "1b471dc4527418e5992de992b19032daebf4b3a052ffb1332375b3edb22e5ca9"
_MERGES_SHA256 = "db4be3aed6ab645b3e8e0f8a1d07627ad2b916f200cbd559be97478771fd0efd"
_LONGEST_CONTEXT = 1 << 16  # transformers writes 10^30 where there is no limit


def load_tokenizer(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    preprocessing: Preprocessing = "openai",
) -> AnyTokenizer:
    """Loads the tokenizer of a model: context length, padding, literals and added tokens.

    The byte pairs of CLIP are always those of this package; a folder's own are compared with them.
    SigLIP's vocabulary is the folder's, and its texts are cleaned as the folder's library does.

    Args:
        name_or_path: as for `clip_jax.load`: a name, a folder, or a repository of the Hub. A folder
            of transformers needs no weights, such as `tokenizer` of a diffusion pipeline.
        revision: of a repository, as for `load`.
        subfolder: of a repository, as for `load`.
        preprocessing: how CLIP's texts are cleaned: "openai", as in training, which repairs them
            and resolves HTML's entities; or "huggingface", as transformers' fast tokenizers do.

    Returns:
        The tokenizer. If its vocabulary is neither CLIP's nor at hand, it refuses texts, naming
        what is needed.

    Raises:
        ValueError: there is no model of that name and nothing at that path, or no such cleaning.
        CheckpointError: the folder's files can't be read, or are another tokenizer's; says how they
            differ.
        DownloadError: they can't be downloaded; the message says how to put them there by hand.
        ModuleNotFoundError: the extra `siglip`, for SigLIP's vocabularies, isn't installed.

    Example:
        >>> load_tokenizer("ViT-H-14/dfn5b")("a diagram")[0, :5]
        array([49406,   320, 22697, 49407,     0], dtype=int32)
    """
    if preprocessing not in ("openai", "huggingface"):
        raise ValueError(f"preprocessing must be 'openai' or 'huggingface'. Got {preprocessing!r}.")
    cleaning: Rules = preprocessing
    name = without_scheme(os.fspath(name_or_path))
    if name in CATALOG:
        return tokenizer_of(CATALOG[name].config.text, cleaning)
    path = Path(name) / (subfolder or "")
    if subfolder and os.path.isdir(name) and not os.path.exists(path):
        raise ValueError(no_subfolder(name, subfolder))
    if not os.path.exists(path):
        tag = lookup_tag(name)
        if tag is not None:
            return _of_open_clip(from_document(tag.open_clip_config()).text, cleaning)
        if not is_repository_name(name):
            raise ValueError(
                f"{name!r} is neither the name of a model nor a folder that exists: "
                f"{suggestion(name)}"
            )
        path = repository_folder(
            name,
            revision=revision,
            subfolder=subfolder,
            what="tokenizer",
        )
    if not path.is_dir():
        raise ValueError(
            f"{name!r} is a file, which says nothing about its tokenizer: for OpenAI's, give the "
            f"name of a model, such as 'ViT-B/32'; of others the folder"
        )
    return _of_folder(path, cleaning)


def with_tokenizer_of(folder: Path, config: CLIPConfig) -> CLIPConfig:
    """Returns the configuration of transformers' folder, which says so if its words aren't CLIP's.

    Strings are refused then wherever CLIP's own tokenizer would make their ids.
    """
    if config.text.pooling == "last":  # SigLIP's, whose vocabulary is never CLIP's
        return config
    try:
        other = load_tokenizer(folder).missing
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{folder}{os.sep}")
        other = f"the folder {folder.name} ({reason})"
    try:
        config.text.check_strings()
    except ValueError:  # it says why
        return config
    if other is None:
        return config
    return dataclasses.replace(config, text=dataclasses.replace(config.text, tokenizer=other))


def tokenizer_beside(folder: Path, config: CLIPConfig) -> AnyTokenizer:
    """Returns the tokenizer whose files lie in a folder, of a model of that configuration.

    Raises:
        CheckpointError: the files are damaged, or another model's.
        ModuleNotFoundError: the library that reads it isn't installed.
    """
    names = set(os.listdir(folder))
    found = sentence_piece_of(folder, names, json.loads(config.to_json()))
    return found or _of_native(folder, names, config.text, "openai")


def _of_folder(folder: Path, cleaning: Rules) -> AnyTokenizer:
    names = set(os.listdir(folder))
    config = read_json(folder / CONFIG) if CONFIG in names else {}
    if (sentences := sentence_piece_of(folder, names, config)) is not None:
        return sentences
    if "vision" in config:
        try:
            text = CLIPConfig.from_json(json.dumps(config)).text
        except ValueError as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}") from None
        return _of_native(folder, names, text, cleaning)
    if OPEN_CLIP_CONFIG in names:
        try:
            text = from_document(read_json(folder / OPEN_CLIP_CONFIG)).text
        except CheckpointError as error:
            raise CheckpointError(f"{folder / OPEN_CLIP_CONFIG}: {error}") from None
        return _of_open_clip(text, cleaning)
    if not names & {CONFIG, _VOCABULARY, _ALL, SETTINGS}:
        raise CheckpointError(
            f"{folder}: has no tokenizer, expected {_VOCABULARY} with {_MERGES}, {_ALL}, or the "
            f"{CONFIG} of a model; it has {some(sorted(names)) or 'no files'}"
        )
    return _of_hugging_face(folder, names, config, cleaning)


def tokenizer_of(text: TextConfig, cleaning: Rules) -> Tokenizer:
    """Returns the tokenizer of a text tower; one that refuses texts if it isn't CLIP's."""
    missing = None
    try:
        text.check_strings()
    except ValueError:
        file = SENTENCE_PIECE.get(text.vocab_size, "that it was trained with")
        missing = text.tokenizer or f"{file} ({text.vocab_size:,} ids)"
    return Tokenizer(text.context_length, cleaning, missing=missing)


def _of_open_clip(text: TextConfig, cleaning: Rules) -> Tokenizer:
    return tokenizer_of(text, "open_clip" if cleaning == "openai" else cleaning)


def _of_native(folder: Path, names: set[str], text: TextConfig, cleaning: Rules) -> Tokenizer:
    """Returns the tokenizer of a folder of ours, with the tokens that were added to CLIP's."""
    own = tokenizer_of(text, cleaning)
    if SETTINGS not in names:
        return own
    settings = read_json(folder / SETTINGS, MAX_INDEX_BYTES)
    added = _decoder(settings)
    if not _beyond(added):
        return own
    pad_id = _pad_id(settings.get("pad_token"), {"!": 0}, added.values(), 0)
    return dataclasses.replace(own, pad_id=pad_id, added=_beyond(added), missing=text.tokenizer)


def _of_hugging_face(
    folder: Path, names: set[str], config: dict[str, Any], cleaning: Rules
) -> Tokenizer:
    settings, special = (
        read_json(folder / file, MAX_INDEX_BYTES) if file in names else {}
        for file in (SETTINGS, _SPECIAL)
    )
    if str(config.get("model_type")).startswith(SIGLIP):
        return _of_siglip(folder, config, cleaning)
    inner = config.get("text_config")
    model = inner if isinstance(inner, Mapping) else config
    length = model.get("max_position_embeddings", settings.get("model_max_length", 77))
    if not isinstance(length, int) or not 2 <= length <= _LONGEST_CONTEXT:
        length = 77
    kind = settings.get("tokenizer_class")
    if isinstance(kind, str) and not kind.startswith("CLIP"):
        return Tokenizer(length, cleaning, missing=f"{shown(kind)} of the folder {folder.name}")
    vocabulary, added = _vocabulary(folder, names, settings)
    if vocabulary is None and (size := model.get("vocab_size", VOCAB_SIZE)) != VOCAB_SIZE:
        return Tokenizer(
            length, cleaning, missing=f"that it was trained with ({shown(str(size))} ids)"
        )
    pad = settings.get("pad_token", special.get("pad_token"))
    pad_id = _pad_id(pad, vocabulary or {"!": 0}, added.values(), END)
    return Tokenizer(length, cleaning, pad_id, _beyond(added))


def _of_siglip(folder: Path, config: dict[str, Any], cleaning: Rules) -> Tokenizer:
    problems: list[str] = []
    root = Fields(config, CONFIG, problems)
    text = siglip_text_config(root.inner("text_config", {}) if "text_config" in config else root)
    try:
        raise_problems(problems)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    assert text is not None
    return tokenizer_of(text, cleaning)


def _vocabulary(
    folder: Path, names: set[str], settings: dict[str, Any]
) -> tuple[dict[str, int] | None, dict[int, AddedToken]]:
    """Returns a folder's vocabulary, if it has one, and the tokens that it names by their ids.

    Raises:
        CheckpointError: they aren't CLIP's.
    """
    found: dict[str, int] | None = None
    added: dict[int, AddedToken] = {}
    if _VOCABULARY in names:
        found = read_json(folder / _VOCABULARY, MAX_INDEX_BYTES)
        _check_same(folder / _VOCABULARY, found)
        if _MERGES in names:
            _check_merges(folder / _MERGES, _lines(folder / _MERGES))
    if _ALL in names:  # transformers 5 names added tokens there alone
        document = read_json(folder / _ALL, MAX_INDEX_BYTES)
        added |= _added(document.get("added_tokens"))
        if found is None:
            found = _vocabulary_of(folder / _ALL, document.get("model"))
    added |= _decoder(settings)
    if _ADDED in names:
        more = read_json(folder / _ADDED, MAX_INDEX_BYTES)
        listed = [
            {"content": text, "id": number, "normalized": True} for text, number in more.items()
        ]
        added = _added(listed) | added
    beyond = {number: text for text, number in (found or {}).items() if number >= VOCAB_SIZE}
    added = {number: AddedToken(text, number, True) for number, text in beyond.items()} | added
    return found, added


def _vocabulary_of(path: Path, model: Any) -> dict[str, int]:
    """Returns the vocabulary of transformers' `tokenizer.json`; raises if it isn't CLIP's."""
    found = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path}: has no model.vocab of names and ids, expected CLIP's byte pairs"
        )
    _check_same(path, found)
    _check_merges(path, list(map(_pair, model.get("merges") or ())))
    return found


def _decoder(settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Returns the tokens that `tokenizer_config.json` names, by their ids."""
    decoder = settings.get("added_tokens_decoder")
    return _added(
        [
            {**token, "id": int(number)}
            for number, token in (decoder.items() if isinstance(decoder, Mapping) else ())
            if isinstance(token, Mapping) and number.isdecimal() and len(number) < 12
        ]
    )


def _beyond(added: Mapping[int, AddedToken]) -> tuple[AddedToken, ...]:
    """Returns the tokens beyond CLIP's own, in the order of their ids."""
    return tuple(added[number] for number in sorted(added) if number >= VOCAB_SIZE)


def _pad_id(
    token: Any, vocabulary: Mapping[str, int], added: Iterable[AddedToken], default: int
) -> int:
    """Returns the id of a padding token, as text or as transformers' object."""
    ids = {**vocabulary, "<|endoftext|>": END, **{token.text: token.id for token in added}}
    return ids.get(_text_of(token) or "", default)


def _added(tokens: Any) -> dict[int, AddedToken]:
    found = {}
    for token in tokens if isinstance(tokens, list) else ():
        match token:
            case {"content": str(text), "id": int(number)} if text and 0 <= number < 1 << 31:
                found[number] = AddedToken(text, number, bool(token.get("normalized", False)))
    return found


def _check_same(path: Path, found: dict[str, Any]) -> None:
    """Raises CheckpointError if a vocabulary isn't CLIP's; tokens may follow it."""
    numbers = {number: text for text, number in found.items() if type(number) is int}
    own = [numbers.get(number, "") for number in range(VOCAB_SIZE)]
    beyond = sum(number >= VOCAB_SIZE for number in numbers)
    if len(found) == VOCAB_SIZE + beyond and _digest(own) == _VOCABULARY_SHA256:
        return
    expected = _expected()[0]
    wrong = [text for text, number in expected.items() if found.get(text) != number]
    bad = [
        text for text, number in found.items() if text not in expected and not _is_beyond(number)
    ]
    if wrong or bad:
        first = (wrong or bad)[0]
        raise CheckpointError(
            f"{path}: is not CLIP's vocabulary: {counted(len(wrong), 'token')} of {VOCAB_SIZE:,} "
            f"differ and {counted(len(bad), 'token')} more are below {VOCAB_SIZE:,}, such as "
            f"{shown(repr(first))} with {shown(repr(found.get(first)))}, expected "
            f"{expected.get(first, 'none')}: its tokenizer is another, which is not supported"
        )


def _is_beyond(number: Any) -> bool:
    return type(number) is int and VOCAB_SIZE <= number < 1 << 31


def _check_merges(path: Path, found: list[str]) -> None:
    if _digest(found) == _MERGES_SHA256:
        return
    expected = _expected()[1]
    pairs = enumerate(zip(found, expected, strict=False))
    place = next((i for i, (theirs, ours) in pairs if theirs != ours), None)
    what = (
        f"has {len(found):,} merges"
        if place is None
        else f"merges {shown(repr(found[place]))} at rank {place:,}, not {expected[place]!r}"
    )
    raise CheckpointError(
        f"{path}: {what}, expected the {len(expected):,} of CLIP: its tokenizer is another, which "
        f"is not supported"
    )


def _lines(path: Path) -> list[str]:
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointError(f"{path}: has more than {MAX_INDEX_BYTES:,} bytes, expected CLIP's")
    content = path.read_bytes()
    if content.startswith(LFS_BEGINNING):
        raise CheckpointError(f"{path}: {LFS_POINTER}")
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is not UTF-8 ({error.reason})") from None
    return [line for line in lines[lines[:1] != [] and lines[0].startswith("#version") :] if line]


def _pair(merge: Any) -> str:
    if isinstance(merge, list) and len(merge) == 2:
        return f"{merge[0]} {merge[1]}"
    return merge if isinstance(merge, str) else ""


def _text_of(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


@functools.cache
def _expected() -> tuple[dict[str, int], list[str]]:
    files = tokenizer_files(TextConfig(width=64, num_layers=1, num_heads=1))
    merges = files[_MERGES].decode().split("\n")[1:-1]
    return json.loads(files[_VOCABULARY]), merges
