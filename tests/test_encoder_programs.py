"""The encoder compiles few programs, and texts in programs only as long as they are."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax import Encoder, tokenize
from clip_jax.encoder import TEXT_LENGTHS
from tests.encoders import END, TOLERANCE, captions, shared_encoder
from tests.models import relative_error

# --- programs


def test_bulk_images_of_any_number_are_one_program(model, programs):
    encoder = Encoder(model)
    for count in (33, 65, 32, 100, 40):
        encoder.images(np.zeros((count, 32, 32, 3), np.uint8))
    assert encoder.num_compilations == len(programs) == 1
    assert programs[0][:2] == ((32, 32, 32, 3), "uint8")


def test_small_calls_of_images_are_two_programs_more(model, programs):
    encoder = Encoder(model)
    for count in (*range(70), *range(70)):
        encoder.images(np.zeros((count, 32, 32, 3), np.uint8))
    assert [shape[0] for shape, *_ in programs] == [1, 8, 32]
    assert encoder.num_compilations == 3


def test_bulk_texts_are_one_program_a_length(model, programs):
    encoder = Encoder(model)
    for seed in range(3):
        encoder.texts(captions(np.tile(np.arange(2, 78), 40 + seed), seed))
    assert [shape for shape, *_ in programs] == [(32, n) for n in (*TEXT_LENGTHS, 77)]
    assert encoder.num_compilations == 7


def test_texts_are_at_most_one_program_a_length_and_size(model, programs):
    encoder = Encoder(model)
    for count in (1, 2, 8, 9, 31, 32, 33):
        for length in (2, *TEXT_LENGTHS, 77):
            encoder.texts(captions([length] * count))
    shapes = [shape for shape, *_ in programs]
    assert sorted(shapes) == [(b, n) for b in (1, 8, 32) for n in (*TEXT_LENGTHS, 77)]
    assert encoder.num_compilations == 21


# --- texts only as long as they are


def test_every_length_equals_the_whole_context(model, one_device):
    rows = captions(range(2, 78))
    expected = np.asarray(model.encode_text(rows))
    order = np.random.default_rng(0).permutation(len(rows))
    for given_, wanted in zip(one_device.texts(rows[order]), expected[order], strict=True):
        assert relative_error(given_, wanted) < TOLERANCE["same"]


@pytest.mark.parametrize("columns", [2, 23])
def test_the_model_takes_fewer_columns(model, columns):
    rows = captions([2, columns, (columns + 2) // 2])
    expected = model.encode_text(rows)
    assert relative_error(model.encode_text(rows[:, :columns]), expected) < TOLERANCE["same"]


def test_tokens_may_have_any_columns_and_anything_after_the_end(one_device, tokens):
    expected = one_device.texts(tokens[:9])
    assert np.array_equal(one_device.texts(tokens[:9, :8]), expected)
    assert np.array_equal(one_device.texts(jnp.asarray(tokens[:9])), expected)
    assert np.array_equal(one_device.texts(tokens[:9].astype(np.uint16)), expected)
    noisy = tokens[:9].copy()
    for row in noisy:
        row[row.argmax() + 1 :] = 1234
        row[-1] = END  # the first end token counts
    assert relative_error(one_device.texts(noisy), expected) < TOLERANCE["same"]


def test_texts_come_as_strings_of_every_kind(model, one_device):
    strings = ["a dog", "", "a photo of a cat.", "!"]
    expected = model.encode_text(tokenize(strings))
    for texts in (
        strings,
        tuple(strings),
        iter(strings),
        np.array(strings),
        np.array(strings, object),
        np.array(strings, np.dtypes.StringDType()),
    ):
        assert relative_error(one_device.texts(texts), expected) < TOLERANCE["same"]
    for text in (strings[2], np.str_(strings[2])):
        result = one_device.texts(text)
        assert result.shape == (1, 16)
        assert relative_error(result[0], expected[2]) < TOLERANCE["same"]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(2, 12), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_permuted_texts_give_permuted_embeddings_to_the_bit(lengths, random):
    encoder, rows = shared_encoder(), captions(lengths)
    order = random.sample(range(len(rows)), len(rows))
    result = encoder.texts(rows)
    assert np.array_equal(encoder.texts(rows[order]), result[order])
    # Neither does the number of rows matter beyond the choice of a program.
    whole = encoder.texts(np.concatenate([rows, rows]))
    assert relative_error(result, whole[: len(rows)]) < TOLERANCE["same"]
