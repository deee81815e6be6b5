"""CLIP's tokenizer as different libraries have it: the same byte pairs, another cleaning before.

OpenAI's repairs and unescapes texts, as the training did. OpenCLIP's does too, but has other
literals for the start and the end. Hugging Face's only composes characters, and knows the tokens
that its users have added.
"""

import dataclasses
import functools
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from clip_jax.tokenizer import END, START, decode, encode_word, first_ids, rows

Rules = Literal["openai", "open_clip", "huggingface"]

VOCAB_SIZE = 49408
# The file of transformers that says which tokens were added.
SETTINGS = "tokenizer_config.json"

_HUGGING_FACES = {"<|startoftext|>": START, "<|endoftext|>": END}
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that somebody has added to CLIP's vocabulary.

    Attributes:
        text: what stands for it in a text.
        id: its id, at least 49,408.
        is_normalized: whether it is looked for in the cleaned text, so in any case of letters.
    """

    text: str
    id: int
    is_normalized: bool = False

    def document(self) -> dict[str, Any]:
        """Returns what the files of transformers say of it beside its id."""
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "special"), False)
        return {"content": self.text, "normalized": self.is_normalized, **flags}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Turns texts into rows of token ids, and back.

    Attributes:
        context_length: the length of a row.
        rules: whose cleaning and literals.
        pad_id: what comes after the end token.
        added: tokens beyond CLIP's own.
        missing: the tokenizer that is needed instead, which isn't at hand; texts are then refused.

    Example:
        >>> Tokenizer(6, "huggingface", pad_id=49407)("a diagram")
        array([[49406,   320, 22697, 49407, 49407, 49407]], dtype=int32)
    """

    context_length: int = 77
    rules: Rules = "openai"
    pad_id: int = 0
    added: tuple[AddedToken, ...] = ()
    missing: str | None = None

    @property
    def vocab_size(self) -> int:
        """The number of ids, those of added tokens included."""
        return max([VOCAB_SIZE, *(token.id + 1 for token in self.added)])

    def __call__(
        self, texts: str | Iterable[str], truncate: bool = False
    ) -> Int32[np.ndarray, "b l"]:
        """Turns texts into rows of ids: start, the text's ids, end, then padding.

        Args:
            texts: one text or any number of them.
            truncate: whether to cut texts that are too long, keeping the end token; otherwise they
                are an error.

        Raises:
            ValueError: a text has too many tokens, or the tokenizer isn't at hand.
            TypeError: something is not a string.
        """
        self._check_at_hand("texts")
        return rows(texts, self._find, self.context_length, truncate, self.pad_id)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of a row of ids, as `clip_jax.tokenizer.decode` does.

        Raises:
            ValueError: an id is not in the vocabulary, or the tokenizer isn't at hand.
        """
        self._check_at_hand("ids")
        names = {token.id: token.text for token in self.added}
        texts: list[str] = []
        known: list[int] = []
        for position, number in enumerate(map(int, ids)):
            if number == END:
                break
            if number in names:
                texts += [decode(known), names[number]]
                known = []
            elif number != START or position > 0:
                known.append(number)
        return " ".join(text for text in [*texts, decode(known)] if text)

    def files(self) -> dict[str, bytes]:
        """Returns the files by which a folder carries the added tokens, by their names.

        They are in transformers' form. There are none for a tokenizer without such tokens.
        """
        if not self.added:
            return {}
        names = {0: "!", END: "<|endoftext|>", **{token.id: token.text for token in self.added}}
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.context_length,
            **({"pad_token": names[self.pad_id]} if self.pad_id in names else {}),
            "added_tokens_decoder": {str(token.id): token.document() for token in self.added},
        }
        return {SETTINGS: (json.dumps(settings, indent=2) + "\n").encode()}

    def _check_at_hand(self, what: str) -> None:
        if self.missing is not None:
            raise ValueError(
                f"this model's {what} are those of the tokenizer {self.missing}, which isn't at "
                f"hand, expected CLIP's own: make ids (b, {self.context_length}) with that "
                f"tokenizer and give those to the model instead of strings."
            )

    def _find(self, text: str, count: int | None) -> Iterable[int]:
        if self.rules == "huggingface":
            return _parts(text, _raw(self.added), self._clean_ids)
        if self.added:
            added = tuple((token.text, token.id) for token in self.added)
            return _parts(text, added, lambda part: first_ids(part, count, self.rules))
        return first_ids(text, count, self.rules)

    def _clean_ids(self, text: str) -> Iterable[int]:
        cleaned = _spaces().sub(" ", unicodedata.normalize("NFC", text))
        cleaned = "".join(map(str.lower, cleaned))
        words = tuple((_lower(t.text), t.id) for t in self.added if t.is_normalized)
        return _parts(cleaned, words, _hugging_face_ids)


def _parts(
    text: str, tokens: tuple[tuple[str, int], ...], find: Callable[[str], Iterable[int]]
) -> Iterator[int]:
    """Yields the ids of tokens that a text says, and what `find` gives for what is between them."""
    if not tokens:
        yield from find(text)
        return
    known, place = dict(tokens), 0
    for match in _any_of(tuple(known)).finditer(text):
        yield from find(text[place : match.start()])
        yield known[match[0]]
        place = match.end()
    yield from find(text[place:])


def _raw(added: tuple[AddedToken, ...]) -> tuple[tuple[str, int], ...]:
    others = ((token.text, token.id) for token in added if not token.is_normalized)
    return (*_HUGGING_FACES.items(), *others)


def _lower(text: str) -> str:
    return "".join(map(str.lower, unicodedata.normalize("NFC", text)))


def _hugging_face_ids(text: str) -> Iterator[int]:
    return chain.from_iterable(map(encode_word, _pieces(text)))


def _pieces(text: str) -> Iterator[str]:
    for match in _pattern().finditer(text):
        if match[0] in _HUGGING_FACES:  # the literal was in capitals, and is split once more
            yield from ("<|", match[0][2:-2], "|>")
        else:
            yield match[0]


@functools.lru_cache(8)
def _any_of(texts: tuple[str, ...]):
    import regex

    return regex.compile("|".join(map(regex.escape, sorted(texts, key=len, reverse=True))))


@functools.cache
def _spaces():
    import regex

    return regex.compile(r"\s+")


@functools.cache
def _pattern():
    import regex  # here, so that `import clip_jax` stays fast for those who don't tokenize

    return regex.compile(PIECES)
