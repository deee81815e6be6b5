"""What a finished run saves: all that it has trained, and the tokenizer that it was given."""

import dataclasses

import numpy as np
import pytest

import clip_jax
from clip_jax.train.config import read_config
from clip_jax.train.run import train
from tests import training
from tests.models import SMALL_VIT, small

pytest.importorskip("grain")
pytest.importorskip("orbax.checkpoint")


@pytest.fixture(autouse=True)
def quick_steps(monkeypatch):
    """Steps that compute next to nothing."""
    monkeypatch.setattr("clip_jax.train.run.make_step", training.make_step)
    monkeypatch.setattr("clip_jax.train.run.compiler_options", lambda platform: {})


def finished(folder, pairs, *settings):
    toml = training.write_toml(folder, pairs)
    return train(read_config(toml, ("optimizer.total_steps=2", *settings)), progress=False)


def test_a_run_with_the_sigmoid_loss_ends_with_its_bias_in_the_model(tmp_path, data):
    model, _ = clip_jax.load(finished(tmp_path, data, 'step.loss="sigmoid"'))
    assert model.config.logit_bias == -10.0
    assert np.isfinite(model.logit_bias[...])


def test_a_fine_tuned_siglip_keeps_its_tokenizer(tmp_path, data):
    pytest.importorskip("sentencepiece")
    from clip_jax.sentence_piece import SentencePieceTokenizer
    from tests.sentence_pieces import siglip_model

    text = dataclasses.replace(
        SMALL_VIT.text, context_length=16, vocab_size=400, pooling="last", is_causal=False
    )
    own = SentencePieceTokenizer(16, "spiece.model", siglip_model(), "siglip", 1)
    start = small(dataclasses.replace(SMALL_VIT, text=text))
    clip_jax.save(start, tmp_path / "start", tokenizer=own)
    toml = training.write_toml(tmp_path, data)
    lines = toml.read_text()
    begin, end = lines.index("[model]"), lines.index("[data]")
    model = f'[model]\nfrom = "{tmp_path / "start"}"\n'
    toml.write_text(lines[:begin] + model + lines[end:])
    settings = ("optimizer.total_steps=2", "data.text_length=16")
    out = train(read_config(toml, settings), progress=False)
    tokenizer = clip_jax.load_tokenizer(out)
    assert np.array_equal(tokenizer(["a small dog"]), own(["a small dog"]))
