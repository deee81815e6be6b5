"""An exported program pools texts with added tokens as its model does, or it is refused."""

import dataclasses
import runpy
import sys

import numpy as np
import pytest

import clip_jax
from clip_jax import export
from clip_jax.config import TextConfig
from clip_jax.model_tokenizer import AddedToken, Tokenizer
from clip_jax.tokenizer import END
from tests.models import SMALL_VIT, random_parameters, relative_error

ADDED = 49408
TOKENIZER = Tokenizer(77, added=(AddedToken("<toy>", ADDED),))


def model_of(**fields):
    text: TextConfig = dataclasses.replace(SMALL_VIT.text, vocab_size=ADDED + 1, **fields)
    config = dataclasses.replace(SMALL_VIT, text=text)
    return clip_jax.from_parameters(config, random_parameters(config))


MODELS = {
    "pooled at the end token": {"pooling": "eos", "eos_id": END},
    "pooled at the largest id": {"eos_id": 2},
    "unsaid": {},
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an exported folder's program on ids; gives its status, error and embeddings."""

    def call(folder, tokens):
        np.save(tmp_path / "x.npy", tokens)
        out = tmp_path / "y.npy"
        argv = ["run.py", "--texts", str(tmp_path / "x.npy"), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", argv)
        try:
            runpy.run_path(str(folder / "run.py"), run_name="__main__")
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err, out.exists()
        return 0, "", np.load(out)

    return call


@pytest.mark.parametrize("case", list(MODELS))
def test_run_py_pools_a_text_with_an_added_token_as_the_model_or_refuses_it(case, run, tmp_path):
    model = model_of(**MODELS[case])
    export.export(model, tmp_path / "out", platforms=["cpu"])
    tokens, plain = TOKENIZER(["a <toy> on a beach", "a dog"]), TOKENIZER(["a dog"])
    status, _, rows = run(tmp_path / "out", plain)
    assert status == 0 and relative_error(rows, model.encode_text(plain)) < 1e-6
    (tmp_path / "y.npy").unlink()
    status, error, rows = run(tmp_path / "out", tokens)
    if case == "unsaid":
        assert status == 2 and rows is False
        assert "nothing says whether a text ends there" in error
    else:
        assert status == 0 and relative_error(rows, model.encode_text(tokens)) < 1e-6


@pytest.mark.parametrize("write", [export.export, export.export_onnx])
def test_a_model_isnt_exported_with_added_tokens_that_may_be_taken_for_the_end(write, tmp_path):
    with pytest.raises(ValueError, match='pooling="eos" and eos_id=49407'):
        write(model_of(), tmp_path / "out", tokenizer=TOKENIZER)
    assert not (tmp_path / "out").exists()
