"""OpenCLIP's checkpoints, against OpenCLIP on small random models."""

import numpy as np
import pytest

from clip_jax.config import CLIPConfig
from clip_jax.convert.open_clip import from_arrays
from clip_jax.nn import from_parameters
from clip_jax.parity.reference import quiet
from tests import reference
from tests.models import random_images, relative_error
from tests.peers import TOLERANCE, arrays_of, ids, nchw, peer, randomized

pytestmark = pytest.mark.torch

VISION = {"image_size": 32, "layers": 2, "width": 96, "patch_size": 8, "head_width": 32}
TEXT = {"context_length": 13, "vocab_size": 61, "width": 48, "heads": 3, "layers": 2}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32}

SWITCHES = {
    "none": ({}, {}, {}),
    "quick_gelu": ({"quick_gelu": True}, {}, {}),
    "tanh in the text tower": ({}, {}, {"act_kwargs": {"approximate": "tanh"}}),
    "tanh in the vision tower": ({}, {"act_kwargs": {"approximate": "tanh"}}, {}),
    "epsilons": ({}, {"norm_kwargs": {"eps": 1e-3}}, {"norm_kwargs": {"eps": 0.1}}),
    "mlp_ratio": ({}, {"mlp_ratio": 3.33}, {"mlp_ratio": 2.71}),
    "layer scale": ({}, {"ls_init_value": 0.1}, {"ls_init_value": 0.2}),
    "no ln_pre": ({}, {"no_ln_pre": True}, {}),
    "mean, norm before": ({}, {"pool_type": "avg"}, {}),
    "mean, norm after": ({}, {"pool_type": "avg", "final_ln_after_pool": True}, {}),
    "class token, norm after": ({}, {"final_ln_after_pool": True}, {}),
    "no mask": ({}, {}, {"no_causal_mask": True}),
    "last": ({}, {}, {"pool_type": "last"}),
    "first, without a mask": ({}, {}, {"pool_type": "first", "no_causal_mask": True}),
    "eos": ({}, {}, {"pool_type": "eos", "eos_id": 7}),
    "projection with bias": ({}, {}, {"proj_bias": True}),
    "no projection": ({"embed_dim": 48}, {}, {"proj_type": "none"}),
    "logit bias": ({"init_logit_bias": -3.0}, {}, {}),
    "text. names": ({"custom_text": True}, {}, {}),
    "text. names, bias, last, no mask": (
        {"custom_text": True, "init_logit_bias": -10},
        {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        {"proj_bias": True, "no_causal_mask": True, "pool_type": "last"},
    ),
    "scalars of one element": ({"nonscalar_logit_scale": True, "init_logit_bias": -1.5}, {}, {}),
    "ResNet": ({}, None, {}),
    "head width 80": ({}, {"width": 160, "head_width": 80}, {}),
    "head width 88": ({}, {"width": 176, "head_width": 88, "mlp_ratio": 4.3637}, {}),
    "head width 104": ({}, {"width": 208, "head_width": 104, "mlp_ratio": 4.9231}, {}),
}


def model_cfg(root, vision, text):
    """A small `model_cfg` with these changes."""
    vision = RESNET if vision is None else {**VISION, **vision}
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": {**TEXT, **text}, **root}


def build(cfg):
    """OpenCLIP's model of a `model_cfg`, with random weights."""
    open_clip = peer("open_clip")
    cfg = dict(cfg)
    kind = open_clip.CustomTextCLIP if cfg.pop("custom_text", False) else open_clip.CLIP
    with quiet():
        return randomized(kind(**cfg))


def some_tokens(n=4):
    """Rows of ids: with the largest id before the end, and with the id of "eos" or without it."""
    tokens = np.random.default_rng(0).integers(0, 60, (n, 13), np.int32)
    tokens[0, 5], tokens[1, 3], tokens[2, 12] = 60, 60, 60
    tokens[tokens == 7] = 8
    tokens[0, 4], tokens[0, 9], tokens[1, 11] = 7, 7, 7
    return tokens


def theirs(model, images, tokens):
    """OpenCLIP's features, and its logits."""
    with reference.torch().inference_mode(), quiet():
        images, tokens = nchw(images), ids(tokens)
        return (
            model.encode_image(images).numpy(),
            model.encode_text(tokens).numpy(),
            model.get_logits(images, tokens)[0].numpy(),
        )


@pytest.mark.parametrize("name", SWITCHES)
def test_a_model_with_this_switch_gives_openclips_features_and_logits(name):
    cfg = model_cfg(*SWITCHES[name])
    model = build(cfg)
    config, params = from_arrays(arrays_of(model), {"model_cfg": cfg})
    assert CLIPConfig.from_json(config.to_json()) == config
    ours = from_parameters(config, params)
    images, tokens = random_images(3, config.vision.image_size), some_tokens()
    image, text, logits = theirs(model, images, tokens)
    assert relative_error(ours.encode_image(images), image) < TOLERANCE
    assert relative_error(ours.encode_text(tokens), text) < TOLERANCE
    assert relative_error(ours(images, tokens)[0], logits) < TOLERANCE
