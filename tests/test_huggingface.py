"""Hugging Face's CLIP folders, against transformers on small random models."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from clip_jax.config import CLIPConfig
from clip_jax.convert import from_huggingface, to_huggingface
from clip_jax.nn import from_parameters
from clip_jax.parity.reference import quiet
from tests import reference
from tests.models import random_images, relative_error
from tests.peers import TOLERANCE, ids, nchw, peer, randomized

pytestmark = pytest.mark.torch

TEXT = {
    "hidden_size": 60,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 13,
    "vocab_size": 61,
    "eos_token_id": 59,
    "bos_token_id": 58,
    "pad_token_id": 1,
}
VISION = {
    "hidden_size": 70,
    "intermediate_size": 99,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "image_size": 32,
    "patch_size": 8,
}


def build(text=(), vision=(), seed=0):
    """Transformers' model with these changes of its configuration, and random weights."""
    transformers = peer("transformers")
    with quiet():
        config = transformers.CLIPConfig(
            projection_dim=24,
            text_config={**TEXT, **dict(text)},
            vision_config={**VISION, **dict(vision)},
        )
        return randomized(transformers.CLIPModel(config), seed)


def saved(model, folder):
    """The folder that transformers writes."""
    with quiet():
        model.save_pretrained(folder)
    return folder


def some_tokens(end=59):
    """Rows of ids: ordinary ones, one with an id above the end, one without an end."""
    tokens = np.random.default_rng(0).integers(0, 57, (4, 13), np.int32)
    tokens[:3, 5] = end
    tokens[1, 3], tokens[1, 9], tokens[2, 9] = 60, 60, end
    return tokens


def features(model, images, tokens):
    """Transformers' features, not normalised."""
    with reference.torch().inference_mode(), quiet():
        image = model.get_image_features(pixel_values=nchw(images))
        text = model.get_text_features(input_ids=ids(tokens))
        return tuple(getattr(x, "pooler_output", x).numpy() for x in (image, text))


CASES = {
    "as it is": ({}, {}),
    "gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "gelu_new": ({"hidden_act": "gelu_new"}, {"hidden_act": "gelu_pytorch_tanh"}),
    "towers of different activations": ({"hidden_act": "gelu"}, {}),
    "epsilons": ({"layer_norm_eps": 1e-3}, {"layer_norm_eps": 0.1}),
    "largest id": ({"eos_token_id": 2}, {}),
    "end 0": ({"eos_token_id": 0}, {}),
    "end that is in no row": ({"eos_token_id": 57}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_folder_gives_transformers_features(name, tmp_path):
    theirs = build(*CASES[name])
    config, params = from_huggingface(saved(theirs, tmp_path / "theirs"))
    assert CLIPConfig.from_json(config.to_json()) == config
    ours = from_parameters(config, params)
    images, tokens = random_images(3, 32), some_tokens()
    image, text = features(theirs, images, tokens)
    assert relative_error(ours.encode_image(images), image) < TOLERANCE
    assert relative_error(ours.encode_text(tokens), text) < TOLERANCE


def test_a_folder_of_ours_is_theirs_with_nothing_missing_and_nothing_unexpected(tmp_path):
    transformers = peer("transformers")
    folder = saved(build({"hidden_act": "gelu", "eos_token_id": 2}), tmp_path / "theirs")
    to_huggingface(*from_huggingface(folder), tmp_path / "ours")
    there, back = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "ours"))
    assert there.keys() == back.keys()
    assert all(there[name].tobytes() == back[name].tobytes() for name in there)
    kinds = ("CLIPModel", "CLIPTextModel", "CLIPVisionModel")
    projecting = ("CLIPTextModelWithProjection", "CLIPVisionModelWithProjection")
    for kind in kinds + projecting:
        with quiet():
            model, info = getattr(transformers, kind).from_pretrained(
                tmp_path / "ours", output_loading_info=True
            )
        assert not info["missing_keys"] and not info["mismatched_keys"], kind
        if kind == "CLIPModel":
            assert not info["unexpected_keys"]
            images, tokens = random_images(2, 32), some_tokens()
            for one, other in zip(
                features(model, images, tokens),
                features(build({"hidden_act": "gelu", "eos_token_id": 2}), images, tokens),
                strict=True,
            ):
                assert relative_error(one, other) < TOLERANCE
