"""SigLIP's tokenizers: SentencePiece, with the cleaning that each library does before it.

SigLIP's vocabulary is a `spiece.model` of the sentencepiece library; SigLIP 2's is Gemma's, a
`tokenizer.model` of the same kind or a `tokenizer.json` of the tokenizers library. Neither is part
of this package: they come with the models. There is no start token, the end token always has id 1,
and rows are always padded to the context, since these models see their padding.
"""

import dataclasses
import functools
import hashlib
import html
import importlib
import json
import operator
import re
import string
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Literal

import numpy as np
from jaxtyping import Int32

from clip_jax.model_tokenizer import Tokenizer
from clip_jax.tokenizer import as_strings, described, shortened

# How a text is cleaned: as transformers does for SigLIP and for SigLIP 2, or as OpenCLIP for both.
Cleaning = Literal["siglip", "siglip2", "open_clip"]
END = 1
# The file that says how texts are cleaned, in a native folder.
RULES = "tokenizer_rules.json"
# The files that hold a vocabulary, the one of tokenizers last.
VOCABULARIES = ("spiece.model", "tokenizer.model", "tokenizer.json")

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer:
    """Turns texts into rows of token ids, and back, as `Tokenizer` does for CLIP.

    Attributes:
        context_length: the length of a row.
        file: the vocabulary's file, by its name.
        vocabulary: the content of that file.
        cleaning: what is done to a text before: "siglip", to lower case, without ASCII punctuation
            and with single spaces; "siglip2", to lower case, one character at a time; "open_clip",
            as "siglip" with repairs by ftfy, HTML's entities resolved, and spaces for underscores.
        pad_id: what comes after the end token.
        literals: what stands for a token where a text says it, with its id; what the vocabulary has
            besides are those of its control tokens.
    """

    context_length: int
    file: str
    vocabulary: bytes = dataclasses.field(repr=False)
    cleaning: Cleaning
    pad_id: int
    literals: tuple[tuple[str, int], ...] = ()

    missing: str | None = dataclasses.field(default=None, init=False)  # as `Tokenizer` has it

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return self._words.size

    def fits(self, vocab_size: int) -> bool:
        """Whether it may be the tokenizer of a model of that many ids."""
        # The i18n models lack the last rows of mT5's vocabulary, which no text has.
        return vocab_size <= self.vocab_size <= vocab_size + 100

    def __call__(
        self, texts: str | Iterable[str], truncate: bool = False
    ) -> Int32[np.ndarray, "b l"]:
        """Turns texts into rows of ids: the text's ids, the end, then padding to the context.

        Args:
            texts: one text or any number of them.
            truncate: whether to cut texts that are too long, keeping the end token; otherwise they
                are an error.

        Raises:
            ValueError: a text has too many tokens.
            TypeError: something is not a string.
            ModuleNotFoundError: the library that reads the vocabulary is not installed.
        """
        flat, lengths = array("i"), array("q")
        for position, text in enumerate(as_strings(texts)):
            if not isinstance(text, str):
                raise TypeError(f"texts[{position}] must be a string, got {described(text)}")
            ids = self._ids(text)
            if len(ids) >= self.context_length and not truncate:
                raise ValueError(
                    f"{shortened(text)} has {len(ids) + 1} tokens with its end, more than the "
                    f"context length of {self.context_length}; its tokenizer, called with "
                    "truncate=True, cuts it"
                )
            ids = ids[: self.context_length - 1]
            flat.extend(ids)
            flat.append(END)
            lengths.append(len(ids) + 1)
        tokens = np.full((len(lengths), self.context_length), self.pad_id, np.int32)
        tokens[np.arange(self.context_length) < np.asarray(lengths, np.int64)[:, None]] = flat
        return tokens

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of a row of ids, up to its end.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        known: list[int] = []
        for number in map(operator.index, ids):
            if number == END:
                break
            if not 0 <= number < self.vocab_size:
                raise ValueError(f"token ids must lie in 0..{self.vocab_size - 1}. Got {number}.")
            known.append(number)
        return self._words.decode(known)

    def files(self) -> dict[str, bytes]:
        """Returns the files by which a native folder carries the tokenizer, by their names."""
        rules = {"cleaning": self.cleaning, "pad_id": self.pad_id, "literals": dict(self.literals)}
        return {
            self.file: self.vocabulary,
            RULES: (json.dumps(rules, indent=2) + "\n").encode(),
        }

    @property
    def digest(self) -> str:
        """The SHA-256 of all that determines the ids of a text."""
        files = sorted(self.files().items())
        return hashlib.sha256(b"".join(hashlib.sha256(x).digest() for _, x in files)).hexdigest()

    def check(self) -> None:
        """Reads the vocabulary, which otherwise happens when the first text comes.

        Raises:
            ValueError: it is damaged.
            ModuleNotFoundError: the library that reads it is not installed.
        """
        _ = self._words

    @functools.cached_property
    def _words(self) -> "_Words":
        if self.file.endswith(".json"):
            return _with_tokenizers(self.vocabulary, lowers=self.cleaning == "siglip2")
        return _with_sentencepiece(
            self.vocabulary, self.literals, has_all=self.cleaning == "siglip2"
        )

    def _ids(self, text: str) -> list[int]:
        # Unpaired surrogates are no Unicode text; both libraries refuse them.
        text = _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
        if self.cleaning == "open_clip":
            return self._words.encode(_cleaned_by_open_clip(text))
        if self._words.splits:
            return self._words.encode(text)
        if self.cleaning == "siglip2":
            parts = _parts(text, self._words.literals)
            encoded = (
                [x] if isinstance(x, int) else self._words.encode(_lowered(x)) for x in parts
            )
            return list(chain.from_iterable(encoded))
        first, *others = _parts(text.replace("▁", " "), self._words.literals)
        assert isinstance(first, str)
        found = self._after_word(f" {_cleaned(first)}")
        for part in others:
            found += [part] if isinstance(part, int) else self._after_word(_cleaned(part))
        return found

    def _after_word(self, text: str) -> list[int]:
        """Returns the ids of a text to which SentencePiece must not add a space.

        A word before it takes the space, as in transformers; sums of scores, which decide between
        two ways to split a text that are as likely, then are the same as there, too.
        """
        word = "<unk>"
        return self._words.encode(word + text)[len(self._words.encode(word)) :]


# What `load_tokenizer` returns.
AnyTokenizer = Tokenizer | SentencePieceTokenizer


def check_belongs(tokenizer: AnyTokenizer | None, vocab_size: int) -> None:
    """Checks that a tokenizer, if there is one, may be written beside a model of that many ids.

    Raises:
        TypeError: it is no tokenizer.
        ValueError: it is another model's.
    """
    if tokenizer is None:
        return
    if not isinstance(tokenizer, Tokenizer | SentencePieceTokenizer):
        raise TypeError(
            f"tokenizer must be one that clip_jax.load_tokenizer returns. "
            f"Got {type(tokenizer).__name__}."
        )
    if isinstance(tokenizer, SentencePieceTokenizer) and not tokenizer.fits(vocab_size):
        raise ValueError(
            f"the tokenizer in {tokenizer.file} has {tokenizer.vocab_size:,} ids, expected the "
            f"{vocab_size:,} of the model: it belongs to another; give that of the model's folder."
        )


@dataclasses.dataclass(frozen=True)
class _Words:
    """A vocabulary as its library has it.

    Attributes:
        size: the number of its ids.
        encode: returns the ids of a text.
        decode: returns the text of ids.
        literals: what stands for a token in a text.
        splits: whether `encode` finds those and makes lower case itself.
    """

    size: int
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    literals: tuple[tuple[str, int], ...]
    splits: bool


def _with_sentencepiece(
    content: bytes, literals: tuple[tuple[str, int], ...], *, has_all: bool
) -> _Words:
    processor = _library("sentencepiece").SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
        size = processor.get_piece_size()
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"sentencepiece can't read it ({str(error).strip() or 'damaged'})"
        ) from None
    # Transformers' tokenizer of SigLIP has the end as its padding, so no literal for that.
    special = {
        number
        for number in range(size)
        if processor.is_unknown(number)
        or (processor.is_control(number) and (has_all or number == END))
    }
    own = {processor.id_to_piece(number): number for number in sorted(special)}
    every = tuple({**own, **dict(literals)}.items())
    return _Words(size, processor.encode, processor.decode, every, splits=False)


def _with_tokenizers(content: bytes, *, lowers: bool) -> _Words:
    library = _library("tokenizers")
    try:
        tokenizer = library.Tokenizer.from_str(content.decode())
    except Exception as error:  # of the library's own kind, which is a plain Exception
        raise ValueError(f"tokenizers can't read it ({error})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    own = tokenizer.normalizer
    if lowers and "Lowercase" not in str(own):
        lower = library.normalizers.Lowercase()
        parts = [lower] if own is None else [lower, own]
        tokenizer.normalizer = library.normalizers.Sequence(parts)
    added = tokenizer.get_added_tokens_decoder().items()
    return _Words(
        tokenizer.get_vocab_size(),
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        tuple((token.content, number) for number, token in added),
        splits=lowers,
    )


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"SigLIP's tokenizer is read with {name}: pip install 'clip-jax-flax[siglip]'",
            name=name,
        ) from None


def _parts(text: str, literals: tuple[tuple[str, int], ...]) -> Iterator[str | int]:
    """Yields the ids of tokens that a text says, and what is between them."""
    place, known = 0, dict(literals)
    if known:
        for match in _any_of(tuple(known)).finditer(text):
            yield text[place : match.start()]
            yield known[match[0]]
            place = match.end()
    yield text[place:]


@functools.lru_cache(8)
def _any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def _cleaned(text: str) -> str:
    return _single_spaced(text.lower().translate(_NO_PUNCTUATION))


def _lowered(text: str) -> str:
    return "".join(map(str.lower, text))


def _cleaned_by_open_clip(text: str) -> str:
    import ftfy  # here, so that `import clip_jax` stays fast

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _single_spaced(text.replace("_", " ").translate(_NO_PUNCTUATION).lower())


def _single_spaced(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
