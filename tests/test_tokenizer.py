"""Token ids are the reference's, whatever the text; mistakes are named."""

import gzip
import hashlib
import html
import importlib.util
import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import ftfy
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import clip_jax.tokenizer as tokenizer
from clip_jax.tokenizer import decode, encode, tokenize
from tests import reference
from tests.reference import requires_reference

GOLDEN = Path(__file__).parent / "golden" / "tokenizer.json"

# From section 9 of the specification, with start and end tokens.
EXAMPLES = {
    "a diagram": [49406, 320, 22697, 49407],
    "a photo of a cat.": [49406, 320, 1125, 539, 320, 2368, 269, 49407],
    "!%": [49406, 0, 260, 49407],
    "it's  a DOG's\n life &amp;amp; more": [
        *(49406, 585, 568, 320, 1929, 568, 970, 261, 750, 49407),
    ],
    "naïve café ½ ²": [49406, 1097, 35689, 563, 15304, 33613, 41175, 49407],
    "<|startoftext|>hello<|endoftext|>": [49406, 49406, 3306, 49407, 49407],
}

# Characters and fragments on which tokenizers have differed.
AWKWARD = [
    *("<|startoftext|>", "<|EndOfText|>", "<|\u017ftartoftext|>", "!<|endoftext|>", "<|endoftext"),
    *("'s", "'S", "'\u017f", "n't", "'ll", "\u2019ve", "''d", "</w>", "<b>", "&amp;amp;amp;"),
    *("&lt;|startoftext|&gt;", "&EACUTE;", "&#133;", "&#11;", "&#xD800;", "&", "& ", "&notit;"),
    *("\xc3\xa9", "\xc3 ", "l\xe2\u20ac\u2122", "\u201d\xe0", "\xe9\u201da", "\u2013", "\u2026"),
    *("\u0130", "I\u0307", "\u017f", "\u212a", "\xdf", "\u1e9e", "\u03a3", "\u01c5", "\ufb01"),
    *("\uff21", "\u2167", "\u0663", "\xbd", "e\u0301", "\ud800", "\udc00", "\ud83d\ude00"),
    *("\x00", "\x0b", "\x0c", "\x1c", "\x1b[31m", "\x7f", "\x85", "\xa0", "\u2028", "\u200b"),
    *("\ufeff", "\ufffd", "\ufdd0", "\U000e0001", "\U0001f468\u200d\U0001f469", "1234", "a" * 70),
]
fragments = st.sampled_from(AWKWARD) | st.text(st.characters(), max_size=4)
texts = st.lists(fragments | st.sampled_from([" ", "\n", "cat", "é"]), max_size=8).map("".join)


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_of_the_specification(text):
    row = tokenize(text)
    assert row.shape == (1, 77) and row.dtype == np.int32
    assert np.trim_zeros(row[0], "b").tolist() == EXAMPLES[text]
    assert [49406, *encode(text), 49407] == EXAMPLES[text]


def test_golden_ids_of_the_reference():
    golden = json.loads(GOLDEN.read_text())
    wrong = {text: encode(text) for text, ids in golden["ids"].items() if encode(text) != ids}
    assert not wrong


def test_golden_hash_of_thousands_of_characters():
    golden = json.loads(GOLDEN.read_text())
    assert _hash_of_characters(tokenize) == golden["sha256_of_characters"]


def _hash_of_characters(function) -> str:
    # Blocks to which newer Unicode versions, which come with newer Pythons, add nothing.
    blocks = ((0, 0x580), (0x2000, 0x20C0), (0x2100, 0x218C), (0x3000, 0x3100), (0xD7F0, 0xE010))
    characters = [chr(code) for block in blocks for code in range(*block)]
    rows = np.asarray(function([f"x{c}y {c} {c}{c}" for c in characters], truncate=True))
    return hashlib.sha256(rows.astype("<i4").tobytes()).hexdigest()


def write_golden():
    """Write the golden file from the reference: python -m tests.test_tokenizer."""
    model = reference.clip().clip._tokenizer
    golden_texts = [*EXAMPLES, *AWKWARD, *(f"a {a}b{a}" for a in AWKWARD), "", "  ", "x" * 300]
    head = {
        "made_by": "python -m tests.test_tokenizer, with clip-anytorch 2.6.0 and ftfy 6.3.1",
        "sha256_of_characters": _hash_of_characters(reference.clip().tokenize),
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    ids = [f"{json.dumps(text)}: {model.encode(text)}" for text in golden_texts]
    ids = ",\n".join(ids)
    GOLDEN.write_text("{\n" + ",\n".join([*lines, f'"ids": {{\n{ids}\n}}']) + "\n}\n")


@requires_reference
@settings(max_examples=1000, deadline=None)
@given(texts)
@example("")
@example("ſ'ſ <|ſtartoftext|>")
def test_equals_reference_on_any_text(text):
    theirs = reference.clip().tokenize(text, truncate=True).numpy()
    np.testing.assert_array_equal(tokenize(text, truncate=True), theirs)


@requires_reference
@given(st.text(st.sampled_from("abcdehlot'!&<|; 1é"), min_size=20, max_size=400))
@settings(max_examples=100, deadline=None)
def test_long_words_merge_as_in_the_reference(text):
    assert encode(text) == reference.clip().clip._tokenizer.encode(text)


@requires_reference
@pytest.mark.parametrize("context_length", [2, 3, 5, 77, 200])
def test_truncation_equals_reference(context_length):
    text = "one two three four five " * 60
    theirs = reference.clip().tokenize(text, context_length, truncate=True).numpy()
    np.testing.assert_array_equal(tokenize(text, context_length, truncate=True), theirs)


def test_data_file_is_the_reference_table():
    package = importlib.util.find_spec("clip")
    if package is None or not package.submodule_search_locations:
        pytest.skip("clip-anytorch, where the table comes from, is not installed")
    source = Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    packed = source.read_bytes()
    assert hashlib.sha256(packed).hexdigest() == (
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    )
    lines = gzip.decompress(packed).decode().split("\n")[1 : 1 + 48_894]
    merges = np.load(Path(tokenizer.__file__).parent / "data" / "bpe_merges.npy")
    np.testing.assert_array_equal(merges, _merges(lines))


def _merges(lines: list[str]) -> np.ndarray:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(68)]
    ids = {name: i for i, name in enumerate(names + [f"{name}</w>" for name in names])}
    rows = np.empty((len(lines), 2), np.uint16)
    for rank, line in enumerate(lines):
        left, right = line.split(" ")
        rows[rank] = ids[left], ids[right]
        ids[left + right] = 512 + rank
    return rows


def test_every_whole_word_merges_into_its_own_token():
    words = tokenizer._words()
    assert len(words._whole) == 34_483
    assert all(tuple(words._merge(word[:-1])) == ids for word, ids in words._whole.items())


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=120))
def test_heap_and_scan_merge_alike(piece):
    words = tokenizer._words()
    ids = list(piece.translate(tokenizer._BYTE_TO_ID))
    ids[-1] += 256
    limit, words.MAX_QUADRATIC = words.MAX_QUADRATIC, 1000
    try:
        assert tokenizer._merge_long(ids, words._merged) == words._merge(piece)
    finally:
        words.MAX_QUADRATIC = limit


def test_text_that_skips_repair_needs_none():
    alphabet = "àéöøÿ–—‘’“”aZ0'\"&<;#\n~\r "
    for triple in map("".join, itertools.product(alphabet, repeat=3)):
        text = f"x {triple}b"
        if not tokenizer._MAY_NEED_REPAIR(text):
            repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
            straight = text.translate(str.maketrans("‘’“”", "''\"\""))
            assert repaired.split() == straight.split()


@settings(max_examples=300, deadline=None)
@given(st.text("".join(map(chr, [9, 10, 12, 13, *range(32, 127)])).replace("&", "") + "àçéîñöøüÿ"))
def test_plain_text_is_not_repaired(text):
    assert not tokenizer._MAY_NEED_REPAIR(text)
    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    assert repaired.split() == text.split()


def test_empty_text_is_start_and_end():
    assert tokenize("", 4).tolist() == tokenize(" \n", 4).tolist() == [[49406, 49407, 0, 0]]


def test_no_texts_give_no_rows():
    assert tokenize([]).shape == (0, 77) and tokenize([]).dtype == np.int32


def test_lists_tuples_arrays_and_generators_of_texts_are_alike():
    texts = ["a dog", "a cat"]
    expected = tokenize(texts)
    for other in (tuple(texts), np.array(texts), np.array(texts, object), (t for t in texts)):
        np.testing.assert_array_equal(tokenize(other), expected)
    np.testing.assert_array_equal(tokenize(np.str_("a dog")), expected[:1])
    np.testing.assert_array_equal(tokenize(np.array("a dog")), expected[:1])


def test_a_row_may_be_full():
    assert tokenize("a b c", context_length=5).tolist() == [[49406, 320, 321, 322, 49407]]


def test_too_long_is_an_error_that_says_how_to_go_on():
    with pytest.raises(
        ValueError,
        match=r"'hi hi .*\.\.\. has 102 tokens.* 77; its tokenizer, called with truncate=True",
    ):
        tokenize(["fine", "hi " * 100])
    with pytest.raises(ValueError, match=r"'a b c' has 5 tokens .* context length of 4;"):
        tokenize("a b c", context_length=4)


def test_error_about_a_huge_text_is_short():
    with pytest.raises(ValueError) as caught:
        tokenize("word " * 100_000)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("context_length", [1, 0, -3])
def test_context_needs_room_for_start_and_end(context_length):
    with pytest.raises(ValueError, match=f"at least 2.*got {context_length}"):
        tokenize("a", context_length)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, "texts must be a string or a list of strings, got NoneType"),
        (b"a", "got bytes b'a'; decode it first"),
        (3, "got int 3"),
        (["a", None], r"texts\[1\] must be a string, got NoneType"),
        (["a", b"a"], r"texts\[1\] must be a string, got bytes b'a'; decode it first"),
        ([["a"]], r"texts\[0\] must be a string, got list \['a'\]"),
        (np.array([["a"]]), r"texts\[0\] must be a string, got list"),
        (np.array([1.5]), r"texts\[0\] must be a string, got float 1.5"),
    ],
)
def test_what_is_not_text_is_named(texts, message):
    with pytest.raises(TypeError, match=message):
        tokenize(texts)


def test_decode_gives_the_words_back():
    assert decode(tokenize("A photo of a CAT.")[0]) == "a photo of a cat ."
    assert decode(encode("naïve café")) == "naïve café"


@settings(deadline=None)
@given(st.lists(st.from_regex(r"[a-zàéñ]{1,12}", fullmatch=True), min_size=1, max_size=6))
def test_decode_inverts_encode_on_lower_case_words(words):
    assert decode(encode(" ".join(words))) == " ".join(words)


def test_decode_refuses_ids_beyond_the_vocabulary():
    with pytest.raises(ValueError, match=r"ids\[1\] must be in 0..49407, got 49408"):
        decode([320, 49408])


def test_a_word_of_200_000_letters_takes_seconds_not_hours():
    start = time.perf_counter()
    ids = encode("abcdefghij" * 20_000)
    assert len(ids) > 10_000
    assert time.perf_counter() - start < 10


def test_the_cache_of_words_is_bounded(monkeypatch):
    words = tokenizer._Words(np.load(Path(tokenizer.__file__).parent / "data" / "bpe_merges.npy"))
    monkeypatch.setattr(tokenizer._Words, "MAX_WORDS", 10)
    for number in range(100):
        assert words[f"w{number}"]
    assert words["y" * 1000] and "y" * 1000 not in words
    assert len(words) <= 10


def test_threads_may_tokenize_at_once(monkeypatch):
    monkeypatch.setattr(tokenizer._Words, "MAX_WORDS", 50)
    captions = [f"{a}{b} it's {b}{a}" for a, b in itertools.product("abcdefgh", repeat=2)]
    expected, results = tokenize(captions), []
    threads = [
        threading.Thread(target=lambda: results.append(tokenize(captions * 5))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result, np.tile(expected, (5, 1)))


def test_importing_loads_neither_ftfy_nor_the_table():
    code = (
        "import sys, clip_jax.tokenizer as t; assert not t._words.cache_info().currsize;"
        "assert not {'ftfy', 'regex', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    write_golden()
