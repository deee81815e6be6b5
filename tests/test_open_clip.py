"""OpenCLIP's checkpoints, against OpenCLIP on small random models."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import clip_jax
from clip_jax.config import CLIPConfig
from clip_jax.convert import from_open_clip, to_open_clip
from clip_jax.convert.open_clip import from_arrays
from clip_jax.encoder import Encoder
from clip_jax.nn import flatten, from_parameters
from clip_jax.nn.clip import computing
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
    given = features(ours, jnp.asarray(images), jnp.asarray(tokens))
    assert relative_error(given[0], image) < TOLERANCE
    assert relative_error(given[1], text) < TOLERANCE
    if "init_logit_bias" in cfg:
        assert relative_error(ours(images, tokens)[0], logits) < TOLERANCE


@jax.jit
def features(model, images, tokens):
    """Both towers in one program, which is compiled sooner than two."""
    with computing("highest"):
        return model.image_features(images), model.text_features(tokens, model.dtype)


def written(folder, cfg, model, preprocess=None):
    """A folder as OpenCLIP writes one for the Hub."""
    folder.mkdir()
    document = {"model_cfg": cfg, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    save_file(arrays_of(model), folder / "open_clip_model.safetensors")
    return folder


def same(one, other):
    """Whether two parameter trees are the same to the bit."""
    one, other = flatten(one), flatten(other)
    return one.keys() == other.keys() and all(
        one[path].dtype == other[path].dtype and one[path].tobytes() == other[path].tobytes()
        for path in one
    )


def test_folder_training_checkpoint_and_both_spellings_give_the_same_parameters(tmp_path):
    cfg = model_cfg({"init_logit_bias": -3.0}, {}, {})
    model = build(cfg)
    config, params = from_open_clip(written(tmp_path / "folder", cfg, model))
    state = model.state_dict()
    text = ("positional_embedding", "text_projection", "token_embedding", "transformer", "ln_final")
    prefixed = {f"text.{k}" if k.startswith(text) else k: v for k, v in state.items()}
    torch = reference.torch()
    training = {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"module.{name}": array for name, array in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
    }
    for name, content in {"flat": state, "prefixed": prefixed, "training": training}.items():
        torch.save(content, tmp_path / f"{name}.pt")
        document = {"model_cfg": cfg}
        given = from_open_clip(tmp_path / f"{name}.pt", model=document)
        assert given[0] == config
        assert same(given[1], params), name


@pytest.mark.parametrize(
    "name",
    [
        "quick_gelu",
        "tanh in the vision tower",
        "epsilons",
        "eos",
        "no projection",
        "head width 104",
        "ResNet",
        "text. names, bias, last, no mask",
    ],
)
def test_openclip_loads_a_folder_of_ours_with_the_same_features(name, tmp_path):
    open_clip = peer("open_clip")
    root, vision, text = SWITCHES[name]
    cfg = model_cfg(root, vision, text)
    # Written with half of the tower's pixels changed, which must come back as well.
    pixels = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.5, 0.2], "interpolation": "bilinear"}
    pixels["resize_mode"] = "squash"
    model = build(cfg)
    folder = written(tmp_path / "theirs", cfg, model, pixels)
    config, params = from_open_clip(folder)
    to_open_clip(config, params, tmp_path / "ours")
    again = from_open_clip(tmp_path / "ours")
    assert again[0] == config and same(again[1], params)
    with quiet():
        loaded, _, preprocess = open_clip.create_model_and_transforms(
            f"local-dir:{tmp_path / 'ours'}"
        )
    images, tokens = random_images(2, config.vision.image_size), some_tokens()
    expected = theirs(model, images, tokens)
    for given, wanted in zip(theirs(loaded.eval(), images, tokens), expected, strict=True):
        assert relative_error(given, wanted) < TOLERANCE
    told = str(preprocess)
    assert "bilinear" in told and "0.25" in told and "(32, 32)" in told.replace("64", "32")


def test_load_takes_such_a_folder_and_normalises_pixels_by_its_statistics(tmp_path):
    cfg = model_cfg({}, {}, {})
    plain = written(tmp_path / "plain", cfg, build(cfg))
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    other = written(tmp_path / "half", cfg, build(cfg), half)
    pixels = random_images(2, 32)
    floats = (pixels / 255 - 0.5).astype(np.float32) / np.float32(0.5)
    expected = clip_jax.load(plain)[0].encode_image(floats)
    given = clip_jax.load(other)[0].encode_image(pixels)
    assert relative_error(given, expected) < TOLERANCE


def test_an_encoder_pads_and_cuts_only_where_that_is_exact():
    cfg = model_cfg({}, {}, {"no_causal_mask": True, "pool_type": "last"})
    ours = from_parameters(*from_arrays(arrays_of(build(cfg)), {"model_cfg": cfg}))
    tokens, encoder = some_tokens(), Encoder(ours)
    assert not ours.config.text.can_be_cut
    np.testing.assert_allclose(encoder.texts(tokens), ours.encode_text(tokens), atol=1e-5)
    for call in (encoder.texts, ours.encode_text):
        with pytest.raises(ValueError, match=r"\(batch, 13\), padding included.*Got \(4, 12\)"):
            call(tokens[:, :-1])
    with pytest.raises(ValueError, match="not those of CLIP's tokenizer"):
        encoder.texts(["a cat"])


def test_the_end_that_is_pooled_is_the_one_that_rows_are_cut_at():
    cfg = model_cfg({}, {"pool_type": "avg"}, {"pool_type": "eos", "eos_id": 7})
    ours = from_parameters(*from_arrays(arrays_of(build(cfg)), {"model_cfg": cfg}))
    tokens, encoder = some_tokens()[:2], Encoder(ours)
    np.testing.assert_allclose(encoder.texts(tokens), ours.encode_text(tokens), atol=1e-5)
    images = random_images(3, 32)
    np.testing.assert_allclose(encoder.images(images), ours.encode_image(images), atol=1e-5)
    with pytest.raises(ValueError, match="end token, 7. Rows without: 1"):
        encoder.texts(some_tokens()[1:3])
