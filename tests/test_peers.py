"""Two more independent CLIPs, as black boxes: transformers' CLIPModel and open_clip."""

import importlib
import importlib.util
import re

import numpy as np
import pytest

from clip_jax.config import CLIPConfig
from clip_jax.convert import from_pytorch
from clip_jax.nn import from_parameters
from clip_jax.parity.reference import quiet
from tests import reference
from tests.models import SMALL_VIT, TINY_VIT, random_images, random_tokens, relative_error, to_float

TOLERANCE = 1e-5  # float32 sums in another order; measured 1e-6

pytestmark = pytest.mark.torch


def peer(name):
    if importlib.util.find_spec(name) is None or not reference.available():
        pytest.skip(f"{name} is not installed")
    reference.clip()  # also puts torchvision on its feet, which both import
    with quiet():
        return importlib.import_module(name)


def randomized(model):
    """Larger than the usual start, so that every array counts."""
    torch = reference.torch()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, array in model.named_parameters():
            noise = torch.empty_like(array).normal_(0, 0.1, generator=generator)
            array.copy_(1 + noise if re.search(r"(ln|norm)\w*\.weight$", name) else 0.5 * noise)
    return model.eval()


def features(model, images, tokens):
    torch = reference.torch()
    nchw = torch.from_numpy(np.array(to_float(images)).transpose(0, 3, 1, 2))
    with torch.inference_mode():
        return model(nchw, torch.from_numpy(tokens).long())


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_open_clip_gives_the_same_features(activation):
    open_clip = peer("open_clip")
    config = TINY_VIT
    vision = {
        "image_size": config.vision.image_size,
        "patch_size": config.vision.patch_size,
        "width": config.vision.width,
        "layers": config.vision.num_layers,
        "head_width": 64,
    }
    text = {
        "context_length": 77,
        "vocab_size": config.text.vocab_size,
        "width": config.text.width,
        "heads": config.text.num_heads,
        "layers": config.text.num_layers,
    }
    with quiet():
        theirs = open_clip.CLIP(
            config.embed_dim, vision, text, quick_gelu=activation == "quick_gelu"
        )
    theirs = randomized(theirs)
    arrays = {name: array.numpy() for name, array in theirs.state_dict().items()}
    ours = from_parameters(*from_pytorch(arrays, activation=activation))
    assert ours.config == CLIPConfig(config.embed_dim, config.vision, config.text, activation)
    images, tokens = random_images(3, config.vision.image_size), random_tokens(4)
    image, text = features(
        lambda x, t: (theirs.encode_image(x), theirs.encode_text(t)), images, tokens
    )
    assert relative_error(ours.encode_image(images), image) < TOLERANCE
    assert relative_error(ours.encode_text(tokens), text) < TOLERANCE


def official_names(arrays):
    """Transformers' names and split projections in OpenAI's spelling."""
    renamed = {}
    for name, array in arrays.items():
        name = name.replace("vision_model.", "visual.").replace("text_model.", "")
        for pattern, official in (
            ("pre_layrnorm", "ln_pre"),
            ("post_layernorm", "ln_post"),
            ("final_layer_norm", "ln_final"),
            ("encoder.layers", "transformer.resblocks"),
            ("layer_norm", "ln_"),
            ("self_attn", "attn"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("embeddings.token_embedding", "token_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("embeddings.patch_embedding", "conv1"),
            ("embeddings.class_embedding", "class_embedding"),
        ):
            name = name.replace(pattern, official)
        if name == "visual_projection.weight":
            renamed["visual.proj"] = array.T
        elif name == "text_projection.weight":
            renamed["text_projection"] = array.T
        elif not name.endswith("position_ids"):
            renamed[name] = array
    joint = {}
    for name, array in renamed.items():
        match = re.fullmatch(r"(.*\.attn)\.([qkv])_proj\.(weight|bias)", name)
        if match is None:
            joint[name] = array
        elif match[2] == "q":
            parts = [renamed[f"{match[1]}.{letter}_proj.{match[3]}"] for letter in "qkv"]
            joint[f"{match[1]}.in_proj_{match[3]}"] = np.concatenate(parts)
    return joint


def test_transformers_gives_the_same_features():
    transformers = peer("transformers")
    config = SMALL_VIT
    with quiet():
        theirs = transformers.CLIPModel(
            transformers.CLIPConfig(
                projection_dim=config.embed_dim,
                text_config={
                    "hidden_size": config.text.width,
                    "intermediate_size": 4 * config.text.width,
                    "num_hidden_layers": config.text.num_layers,
                    "num_attention_heads": config.text.num_heads,
                    "projection_dim": config.embed_dim,
                    "eos_token_id": 49407,
                },
                vision_config={
                    "image_size": config.vision.image_size,
                    "patch_size": config.vision.patch_size,
                    "hidden_size": config.vision.width,
                    "intermediate_size": 4 * config.vision.width,
                    "num_hidden_layers": config.vision.num_layers,
                    "num_attention_heads": config.vision.num_heads,
                    "projection_dim": config.embed_dim,
                },
            )
        )
    theirs = randomized(theirs)
    arrays = {name: array.numpy() for name, array in theirs.state_dict().items()}
    ours = from_parameters(*from_pytorch(official_names(arrays)))
    assert ours.config == config
    images, tokens = random_images(3, config.vision.image_size), random_tokens(4)
    out = features(lambda x, t: theirs(pixel_values=x, input_ids=t), images, tokens)
    image, text = ours.encode_image(images), ours.encode_text(tokens)
    unit = [np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text)]
    assert relative_error(unit[0], out.image_embeds) < TOLERANCE  # theirs are normalised
    assert relative_error(unit[1], out.text_embeds) < TOLERANCE
