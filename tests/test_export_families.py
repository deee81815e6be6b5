"""Exported programs of models whose images aren't square, and of SigLIP."""

import dataclasses

import numpy as np
import pytest

from clip_jax import export
from clip_jax.image_size import sides_of
from clip_jax.sentence_piece import SentencePieceTokenizer
from tests.models import SMALL_VIT, relative_error, small
from tests.sentence_pieces import siglip_model
from tests.siglip import SIGLIP

EXPORTED = 1e-6  # relative, in float32
NOT_SQUARE = dataclasses.replace(
    SMALL_VIT, vision=dataclasses.replace(SMALL_VIT.vision, image_size=(32, 48))
)


@pytest.mark.parametrize("config", [SIGLIP, NOT_SQUARE], ids=["siglip", "not square"])
def test_embeddings_are_the_models(config, tmp_path):
    model, rng = small(config), np.random.default_rng(0)
    export.export(model, tmp_path / "out", platforms=["cpu"])
    exported = export.load(tmp_path / "out")
    pixels = rng.integers(0, 256, (2, *sides_of(config.vision.image_size), 3), np.uint8)
    assert relative_error(exported.images(pixels), model.encode_image(pixels)) < EXPORTED
    text = config.text
    tokens = rng.integers(0, text.vocab_size, (3, text.context_length), np.int32)
    assert relative_error(exported.texts(tokens), model.encode_text(tokens)) < EXPORTED


@pytest.mark.parametrize("cleaning", ["siglip", "open_clip"])
def test_a_tokenizer_travels_with_its_model(cleaning, tmp_path):
    pytest.importorskip("sentencepiece")
    length, content = SIGLIP.text.context_length, siglip_model()
    tokenizer = SentencePieceTokenizer(length, "spiece.model", content, cleaning, pad_id=1)
    text = dataclasses.replace(SIGLIP.text, vocab_size=tokenizer.vocab_size)
    model = small(dataclasses.replace(SIGLIP, text=text))
    export.export(model, tmp_path / "with", platforms=["cpu"], tokenizer=tokenizer)
    texts = ["A pear", "two cats!"]
    exported = export.load(tmp_path / "with")
    assert relative_error(exported.texts(texts), model.encode_text(tokenizer(texts))) < EXPORTED
    export.export(model, tmp_path / "without", platforms=["cpu"])
    with pytest.raises(ValueError, match="spiece.model, a file that belongs in"):
        export.load(tmp_path / "without").texts(texts)
