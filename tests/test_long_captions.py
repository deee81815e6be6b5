"""Texts of any length are cut before they are tokenised, and have the ids that they had before."""

import functools
import time
from itertools import islice

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax import tokenizer
from clip_jax.tokenizer import tokenize

PIECES = (
    *(
        "a",
        "e",
        "th",
        "the",
        "ing",
        "an",
        "aa",
        "zz",
        "é",
        "ß",
        "Σ",
        "σ",
        "日",
        "x1",
        "9",
        "!",
        "--",
    ),
    *("'s", "<|endoftext|>", "<", "&amp;", "&#32;", "&", "\u00a0", "\u2003", "â€™", "Ã©", "\r"),
    *("ﬁ", "Ａ", "\x07", "“", "’", "&lt;b&gt;", "\u0301", " ", "\n", "  ", "\t"),
)


@st.composite
def long_texts(draw) -> str:
    some = draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6))
    seed = draw(st.randoms(use_true_random=False))
    return "".join(seed.choices(some, k=draw(st.integers(20, 900))))


@settings(max_examples=300, deadline=None)
@given(text=long_texts(), count=st.sampled_from([1, 5, 75]), line=st.sampled_from([20, 300, 10**6]))
def test_a_cut_text_has_the_first_ids_of_the_whole(text, count, line):
    words = tokenizer._words()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "LONG", 32)  # so that short texts are long
        config = ftfy.TextFixerConfig(max_decode_length=line)
        patch.setattr(words, "longest_line", line)
        patch.setattr(words, "_fix_text", functools.partial(ftfy.fix_text, config=config))
        assert tokenizer._first_ids(text, count) == list(islice(tokenizer._ids(text), count))


@pytest.mark.parametrize("text", ["thethe", "abcabd", "aa", "!?-", "xzq", "ſɒɟ"])
def test_the_beginning_of_a_piece_is_merged_as_in_the_whole(text):
    words = tokenizer._words()
    for length in (3, 50, 400, 9000):
        whole = list((text * 4500)[:length].encode().translate(tokenizer._BYTE_TO_ID))
        for cut in {1, length // 2, len(whole) - 1}:
            found = tokenizer._merge_beginning(whole[:cut], words._merged, words._lefts)
            ends = [*whole[:-1], whole[-1] + tokenizer._END_OF_WORD]
            assert found == tokenizer._merge_long(ends, words._merged)[: len(found)]
            assert cut < tokenizer.LONG or len(found) > 75  # what it gives up is not too much


@pytest.mark.parametrize("text", ["a dog ", "a", "a1", "naïve € ", "☃", "Ã©"])
def test_ten_megabytes_take_seconds(text):
    begin = time.monotonic()
    tokens = tokenize(text * (10_000_000 // len(text)), truncate=True)
    assert tokens.shape == (1, 77) and tokens[0, -1] == tokenizer.END and tokens[0, 75] != 0
    assert time.monotonic() - begin < 20  # a minute before
