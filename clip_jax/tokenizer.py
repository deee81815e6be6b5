"""Text to token ids: CLIP's byte-level BPE, equal to the reference's on any Unicode text.

The merge table `data/bpe_merges.npy` is OpenAI's (MIT, `data/LICENSE-bpe`): uint16 (48894, 2), row
r the ids of the pair that merges at rank r into id 512 + r. It was made from lines 2 to 48,895 of
`bpe_simple_vocab_16e6.txt.gz` (SHA-256 924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a)
in the PyPI package clip-anytorch 2.6.0; `tests/test_tokenizer.py` rebuilds and compares it.
"""  # noqa: E501

import functools
import html
import operator
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import chain, islice, pairwise

import numpy as np
from jaxtyping import Int32, UInt16

from clip_jax.byte_pairs import END
from clip_jax.byte_pairs import merge_beginning as _merge_beginning
from clip_jax.byte_pairs import merge_long as _merge_long

START = 49406
# What stands for the start and the end where a text says it, by the name of the rules.
LITERALS = {
    "openai": ("<|startoftext|>", "<|endoftext|>"),
    "open_clip": ("<start_of_text>", "<end_of_text>"),
}

# Ids 0..255 are these bytes, in this order; ids 256..511 are the same bytes at the end of a word.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = bytes(_PRINTABLE + [b for b in range(256) if b not in _PRINTABLE])
_BYTE_TO_ID = bytes(_BYTES.index(byte) for byte in range(256))  # for bytes.translate
_END_OF_WORD = 256

# On text without a match, ftfy and html.unescape only straighten curly quotes; skipping them saves
# four fifths of the work. "&" may begin an entity, and ftfy deletes vertical tabs. The characters
# listed beyond ASCII are never mojibake to ftfy, whatever their neighbours, except for quotes next
# to accented letters. A test goes through all their triples.
_MAY_NEED_REPAIR = re.compile(
    r"[^\t\n\f\r -~à-öø-ÿ–—‘’“”]|&(?! )|[à-öø-ÿ][‘“”]|[‘“”][à-öø-ÿ]"
).search

# A text, word or piece of this many characters is read only as far as its ids are needed.
LONG = 4096

# Characters at the cut end of a text that may belong to entities that are cut too.
UNSURE = 256
# Characters of the longest literal, plus one.
LOOKAHEAD = 16

# Matching ignores case, with case folding: "'ſ" is a suffix just as "'s" is.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def tokenize(
    texts: str | Iterable[str], context_length: int = 77, truncate: bool = False
) -> Int32[np.ndarray, "b l"]:
    """Turns texts into rows of token ids: start, the text's ids, end, then zeros.

    Args:
        texts: one text or any number of them (a list, tuple, 1-D array of strings, ...).
        context_length: the length of a row, at least 2.
        truncate: whether to cut texts that are too long, keeping the end token; otherwise they are
            an error.

    Returns:
        One row per text, also for a single string; no rows for an empty list.

    Raises:
        ValueError: a text has too many tokens, or `context_length` is below 2.
        TypeError: something is not a string.

    Example:
        >>> tokenize("a diagram", context_length=6)
        array([[49406,   320, 22697, 49407,     0,     0]], dtype=int32)
    """
    return rows(texts, first_ids, context_length, truncate)


def rows(
    texts: str | Iterable[str],
    find: Callable[[str, int | None], Iterable[int]],
    context_length: int,
    truncate: bool,
    pad_id: int = 0,
) -> Int32[np.ndarray, "b l"]:
    """Makes rows of token ids as `tokenize` does, given what finds the ids of a text.

    Args:
        texts: one text or any number of them.
        find: returns the ids of a text, of which no more than the given number are used.
        context_length: the length of a row.
        truncate: whether to cut texts that are too long.
        pad_id: what comes after the end token.

    Raises:
        ValueError, TypeError: as `tokenize`.
    """
    context_length = operator.index(context_length)
    if context_length < 2:
        raise ValueError(
            f"context_length must be at least 2, for the start and end tokens; got {context_length}"
        )
    room = context_length - 2
    flat = array("i")  # 4 bytes per id, as there may be many texts
    lengths = array("q")
    for position, text in enumerate(as_strings(texts)):
        if not isinstance(text, str):
            raise TypeError(f"texts[{position}] must be a string, got {described(text)}")
        ids = islice(find(text, room), room) if truncate else find(text, None)
        row = [START, *ids, END]
        if len(row) > context_length:
            raise ValueError(
                f"{shortened(text)} has {len(row)} tokens with its start and end, more than the "
                f"context length of {context_length}; its tokenizer, called with truncate=True, "
                "cuts it"
            )
        flat.extend(row)
        lengths.append(len(row))
    tokens = np.full((len(lengths), context_length), pad_id, np.int32)
    tokens[np.arange(context_length) < np.asarray(lengths)[:, None]] = flat
    return tokens


def first_ids(text: str, count: int | None, rules: str = "openai") -> Iterable[int]:
    """Returns the ids of a text without start and end, at least the first `count` if it has them.

    Args:
        text: the text.
        count: how many are used; None for all.
        rules: a key of `LITERALS`.
    """
    words = _words() if rules == "openai" else _words(rules)  # else it would be made twice
    if count is None or len(text) < LONG:
        return _ids(text, words)
    return _first_ids(text, count, words)


def encode(text: str) -> list[int]:
    """Returns the ids of one text of any length, without start, end and padding.

    Example:
        >>> encode("a photo of a cat.")
        [320, 1125, 539, 320, 2368, 269]
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {described(text)}")
    return list(_ids(text))


def encode_word(piece: str) -> tuple[int, ...]:
    """Returns the ids of a piece of a text that is clean and split already."""
    return _words()[piece]


def decode(ids: Iterable[int]) -> str:
    """Returns the text of a row of ids: lower-cased, with a space after every piece.

    A leading start token is left out, and so is everything from the first end token on. Bytes that
    are not complete UTF-8 characters become U+FFFD.

    Raises:
        ValueError: an id is not in the vocabulary.

    Example:
        >>> decode(tokenize("A photo of a CAT.")[0])
        'a photo of a cat .'
    """
    vocabulary = _words().vocabulary
    joined = bytearray()
    for position, number in enumerate(ids):
        number = operator.index(number)
        if not 0 <= number < len(vocabulary):
            raise ValueError(f"ids[{position}] must be in 0..{len(vocabulary) - 1}, got {number}")
        if number == END:
            break
        if number != START or position > 0:
            joined += vocabulary[number]
    return joined.decode(errors="replace").strip()


def as_strings(texts: object) -> Iterable[object]:
    """Returns what an argument `texts` holds; raises TypeError for what can't hold strings."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, np.ndarray):
        texts = texts.tolist()
        return texts if isinstance(texts, list) else [texts]
    if isinstance(texts, bytes | bytearray | Mapping) or not isinstance(texts, Iterable):
        raise TypeError(f"texts must be a string or a list of strings, got {described(texts)}")
    return texts


def described(value: object) -> str:
    """Formats a value that should have been a string, for a message."""
    hint = "; decode it first" if isinstance(value, (bytes, bytearray)) else ""
    return f"{type(value).__name__} {shortened(value)}{hint}"


def shortened(value: object) -> str:
    """Formats a value of any size for a message."""
    # Cut before quoting too: the text may be a gigabyte.
    quoted = repr(value[:200] if isinstance(value, (str, bytes, bytearray)) else value)
    whole = not isinstance(value, (str, bytes, bytearray)) or len(value) <= 200
    return quoted if whole and len(quoted) <= 200 else f"{quoted[:200]}..."


def _ids(text: str, words: "_Words | None" = None) -> Iterable[int]:
    words = _words() if words is None else words
    return chain.from_iterable(map(words.__getitem__, _split(text, words)))


def _split(text: str, words: "_Words") -> list[str]:
    """Splits a text into words, repaired and in lower case."""
    if _MAY_NEED_REPAIR(text):
        spaced = words.spaces.sub(" ", words.repair(text).strip()).strip()
        return spaced.lower().split(" ")
    if not text.isascii():
        text = text.replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')
    return text.lower().split()


def _first_ids(text: str, count: int, words: "_Words | None" = None) -> list[int]:
    """Returns the first ids of a text, reading no more of it than needed."""
    words, ids = _words() if words is None else words, []
    for end in _ends(text):
        ids = []
        *found, last = _split(text[:end], words) or [""]
        for word in found:
            ids += words.first(word, count - len(ids))
            if len(ids) >= count:
                return ids[:count]
        if end == len(text):
            ids += words.first(last, count - len(ids))
        elif "Σ" not in text[:end]:  # its lower case depends on the rest of the word
            ids += words.first(last[:-UNSURE], count - len(ids), goes_on=True)
        if len(ids) >= count:
            break
    return ids[:count]


def _ends(text: str) -> Iterator[int]:
    """Yields the places where a text may be cut without changing how ftfy repairs its beginning.

    ftfy repairs line by line, and longer lines in segments: so after a line or a segment.
    """
    place, wanted = 0, LONG
    while place < len(text):
        end = text.find("\n", place) + 1 or len(text)
        place = min(end, place + _words().longest_line)
        if place >= wanted:
            yield place
            wanted = 2 * place
    if wanted != 2 * place:
        yield place


class _Words(dict[str, tuple[int, ...]]):
    """A cache of the ids of recent words; a missing word is computed on access.

    A word is the text between spaces. Threads may share the cache: at worst, a race computes a word
    twice.
    """

    MAX_WORDS: int = 1 << 16
    MAX_LENGTH: int = 64  # characters; longer words are rare and could fill the memory
    MAX_QUADRATIC: int = 48  # bytes; above it a heap is faster than scanning all pairs

    def __init__(self, merges: UInt16[np.ndarray, "r 2"], rules: str = "openai") -> None:
        # Imported here, so that `import clip_jax` stays fast for those who don't tokenize.
        import ftfy
        import regex

        self._fix_text = ftfy.fix_text
        self.longest_line = ftfy.TextFixerConfig().max_decode_length
        self._literals = dict(zip(LITERALS[rules], (START, END), strict=True))
        literals = "|".join(map(regex.escape, self._literals))
        pieces = regex.compile(f"{literals}|{_PIECES}", regex.IGNORECASE)
        self._pieces, self._pieces_one_by_one = pieces.findall, pieces.finditer
        self.spaces = regex.compile(r"\s+")
        pairs = zip(*merges.T.tolist(), strict=True)
        self._merged = dict(zip(pairs, range(512, START), strict=True))
        # For each token the merges of which it is the left part, by rank.
        self._lefts: dict[int, list[int]] = {}
        for (left, _), merge in self._merged.items():
            self._lefts.setdefault(left, []).append(merge)
        self.vocabulary = [_BYTES[i : i + 1] for i in range(256)]
        self.vocabulary += [byte + b" " for byte in self.vocabulary]
        for a, b in merges.tolist():
            self.vocabulary.append(self.vocabulary[a] + self.vocabulary[b])
        # A word that is a token merges into that token: a test checks all 34,483.
        whole = enumerate(self.vocabulary[_END_OF_WORD:], _END_OF_WORD)
        self._whole = {word: (i,) for i, word in whole if word.endswith(b" ")}
        self.vocabulary += [literal.encode() for literal in self._literals]

    def repair(self, text: str) -> str:
        return html.unescape(html.unescape(self._fix_text(text)))

    def __missing__(self, word: str) -> tuple[int, ...]:
        if (word.isascii() and word.isalpha()) or (pieces := self._pieces(word)) == [word]:
            ids = self._piece(word)
        else:  # a piece by itself is one piece again, so this goes no deeper
            ids = tuple(chain.from_iterable(map(self.__getitem__, pieces)))
        if len(word) <= self.MAX_LENGTH:
            if len(self) >= self.MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def first(self, word: str, count: int, *, goes_on: bool = False) -> list[int]:
        """Returns the first ids of a word; if it goes on beyond `word`, only the certain ones."""
        if len(word) < LONG:
            return [] if goes_on else list(self[word][:count])
        ids: list[int] = []
        known = len(word) - LOOKAHEAD if goes_on else len(word)
        for match in self._pieces_one_by_one(word):
            if len(ids) >= count:
                break
            if match.end() > known:
                ids += self._first_of_piece(word[match.start() : known], count - len(ids), True)
                break
            ids += self._first_of_piece(match[0], count - len(ids), False)
        return ids[:count]

    def _first_of_piece(self, piece: str, count: int, goes_on: bool) -> Sequence[int]:
        length, ids = LONG, []
        while length < len(piece):
            begin = list(piece[:length].encode().translate(_BYTE_TO_ID))
            if len(ids := _merge_beginning(begin, self._merged, self._lefts)) >= count:
                return ids
            length *= 4
        return ids if goes_on else self[piece]

    def _piece(self, piece: str) -> tuple[int, ...]:
        if piece in self._literals:
            return (self._literals[piece],)
        encoded = piece.encode()
        return self._whole.get(encoded + b" ") or tuple(self._merge(encoded))

    def _merge(self, piece: bytes) -> list[int]:
        ids = list(piece.translate(_BYTE_TO_ID))
        ids[-1] += _END_OF_WORD
        if len(ids) > self.MAX_QUADRATIC:
            return _merge_long(ids, self._merged)
        # Ids of merges ascend with their ranks: the lowest id is merged first, and the pairs that
        # this creates have higher ids.
        merged = self._merged.get
        found = [merged(pair, END) for pair in pairwise(ids)]
        while found and (best := min(found)) != END:
            i = found.index(best)
            ids[i] = best
            del ids[i + 1], found[i]
            if i > 0:
                found[i - 1] = merged((ids[i - 1], best), END)
            if i < len(found):
                found[i] = merged((best, ids[i + 1]), END)
        return ids


@functools.cache
def _words(rules: str = "openai") -> _Words:
    with resources.files("clip_jax.data").joinpath("bpe_merges.npy").open("rb") as file:
        return _Words(np.load(file, allow_pickle=False), rules)
