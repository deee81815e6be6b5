"""Only a model's own tokenizer is written beside it, by whichever writer."""

import pytest

import clip_jax
from clip_jax import export
from clip_jax.convert import to_huggingface
from clip_jax.sentence_piece import SentencePieceTokenizer
from tests.models import small
from tests.sentence_pieces import siglip_model
from tests.siglip import SIGLIP

WRITERS = {
    "save": lambda model, out, tokenizer: clip_jax.save(model, out, tokenizer=tokenizer),
    "export": lambda model, out, tokenizer: export.export(model, out, tokenizer=tokenizer),
    "huggingface": lambda model, out, tokenizer: to_huggingface(
        model.config, clip_jax.parameters(model), out, tokenizer=tokenizer
    ),
}


@pytest.fixture(scope="module")
def model():
    return small(SIGLIP)


@pytest.mark.parametrize("writer", WRITERS)
def test_another_models_tokenizer_is_refused_before_anything_is_written(writer, model, tmp_path):
    pytest.importorskip("sentencepiece")
    other = SentencePieceTokenizer(SIGLIP.text.context_length, "x", siglip_model(), "siglip", 1)
    assert not other.fits(SIGLIP.text.vocab_size)
    with pytest.raises(ValueError, match=f"expected the {SIGLIP.text.vocab_size} of the model"):
        WRITERS[writer](model, tmp_path / "out", other)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_no_tokenizer_is_refused(writer, model, tmp_path):
    with pytest.raises(TypeError, match=r"that clip_jax.load_tokenizer returns. Got function"):
        WRITERS[writer](model, tmp_path / "out", clip_jax.tokenize)
    assert not (tmp_path / "out").exists()
