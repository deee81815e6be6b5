"""Text towers inside single files of Stable Diffusion."""

import functools
from typing import Any

import numpy as np
import pytest

import clip_jax
from clip_jax.convert.rules import HUGGING_FACE, OPEN_CLIP
from clip_jax.errors import CheckpointError
from clip_jax.nn import flatten, parameters
from tests import single_files
from tests.single_files import named, tower

L = tower(768, 12, 2)
H = tower(1024, 16, 2, 1024)
BIG_G = tower(1280, 20, 1, 1280)


def holds(model, arrays):
    found = flatten(parameters(model))
    assert found.keys() == arrays.keys()
    for path, array in found.items():
        assert np.array_equal(np.asarray(array), arrays[path].astype(np.float32)), path


@pytest.fixture
def write(tmp_path):
    """Writes a file of these arrays; gives its path."""
    return functools.partial(single_files.write, tmp_path)


def test_the_tower_of_stable_diffusion_1(write):
    arrays = named(L, HUGGING_FACE, "cond_stage_model.transformer.")
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    text, tokenizer = clip_jax.load_text_model(write(arrays, {ids: np.arange(11)[None]}))
    holds(text, L)
    assert (text.config.num_heads, text.config.activation) == (12, "quick_gelu")
    assert text.embed_dim is None and tokenizer.pad_id == 49407
    assert text(np.full((1, 11), 7)).last_hidden_state.shape == (1, 11, 768)


def test_the_tower_of_stable_diffusion_2_lacks_its_last_block_and_projection(write):
    prefix = "cond_stage_model.model."
    arrays = named(H, OPEN_CLIP, prefix)
    path = write(arrays, {prefix + "logit_scale": np.zeros((), np.float16)})
    text, tokenizer = clip_jax.load_text_model(path)
    used = {p: a for p, a in H.items() if "resblocks/1/" not in p and p != "text_projection"}
    holds(text, used)
    assert (text.config.num_heads, text.config.activation) == (16, "gelu")
    assert tokenizer.pad_id == 0


def test_the_two_towers_of_sdxl_and_the_one_of_its_refiner(write):
    first = named(L, HUGGING_FACE, "conditioner.embedders.0.transformer.")
    path = write(first, named(BIG_G, OPEN_CLIP, "conditioner.embedders.1.model."))
    holds(clip_jax.load_text_model(path, subfolder="text_encoder")[0], L)
    text = clip_jax.load_text_model(path, subfolder="text_encoder_2")[0]
    holds(text, BIG_G)
    assert text.embed_dim == 1280 and text.config.num_heads == 20
    with pytest.raises(CheckpointError, match='two text towers: give subfolder="text_encoder" or'):
        clip_jax.load_text_model(path)
    with pytest.raises(CheckpointError, match="has no text_encoder_3, expected"):
        clip_jax.load_text_model(path, subfolder="text_encoder_3")
    refiner = write(named(BIG_G, OPEN_CLIP, "conditioner.embedders.0.model."))
    holds(clip_jax.load_text_model(refiner)[0], BIG_G)


def test_another_width_is_refused_as_its_heads_are_not_known(write):
    path = write(named(tower(64, 1, 1), HUGGING_FACE, "cond_stage_model.transformer."))
    cases: list[dict[str, Any]] = [{}, {"num_heads": 2}, {"activation": "gelu"}]
    for told in cases:
        with pytest.raises(CheckpointError, match="width 64, expected one of 768.* num_heads= and"):
            clip_jax.load_text_model(path, **told)


@pytest.mark.parametrize("prefix", ["cond_stage_model.transformer.", "cond_stage_model.model."])
@pytest.mark.parametrize("num_heads", [4, (3, 4)])
def test_the_heads_and_the_activation_of_another_width_may_be_said(write, prefix, num_heads):
    arrays = tower(64, 4, 2)
    table = HUGGING_FACE if "transformer" in prefix else OPEN_CLIP
    path = write(named(arrays, table, prefix))
    text, _ = clip_jax.load_text_model(path, num_heads=num_heads, activation="gelu_tanh")
    assert (text.config.num_heads, text.config.activation) == (4, "gelu_tanh")
    with pytest.raises(CheckpointError, match="num_heads must divide the width. Got 7 and 64"):
        clip_jax.load_text_model(path, num_heads=7, activation="gelu")


def test_missing_arrays_are_listed_and_a_whole_model_is_not_made_of_it(write):
    arrays = named(L, HUGGING_FACE, "cond_stage_model.transformer.")
    del arrays["cond_stage_model.transformer.text_model.final_layer_norm.bias"]
    path = write(arrays)
    with pytest.raises(CheckpointError, match="- text_model.final_layer_norm.bias: missing"):
        clip_jax.load_text_model(path)
    with pytest.raises(CheckpointError, match="Stable Diffusion.*load_text_model"):
        clip_jax.load(path)
