"""Small SigLIP models, and their arrays in the three forms in which they are published."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clip_jax.config import SigLIPConfig, TextConfig, ViTConfig
from clip_jax.open_clip_catalog import lookup_tag

# 29 pixels are 4 patches of 7 and a remainder; no width, count or length equals another.
SIGLIP = SigLIPConfig(
    embed_dim=96,
    vision=ViTConfig(
        image_size=29,
        patch_size=7,
        width=96,
        num_layers=3,
        num_heads=4,
        has_ln_pre=False,
        pooling="attention",
        norm_epsilon=1e-6,
        mlp_width=136,
    ),
    text=TextConfig(
        width=80,
        num_layers=2,
        num_heads=5,
        context_length=12,
        vocab_size=61,
        is_causal=False,
        pooling="last",
        has_projection_bias=True,
        norm_epsilon=1e-6,
        mlp_width=104,
    ),
)


def random_ids(n: int, config: SigLIPConfig = SIGLIP, seed: int = 0) -> np.ndarray:
    """(n, l) int32 texts of mixed lengths, padded with 1 to the context."""
    rng = np.random.default_rng(seed)
    length = config.text.context_length
    ids = np.ones((n, length), np.int32)
    for row in ids:
        words = rng.integers(0, length + 1)
        row[:words] = rng.integers(2, config.text.vocab_size, words)
    return ids


def to_big_vision(
    arrays: dict[str, np.ndarray], config: SigLIPConfig, *, stacked: bool
) -> dict[str, np.ndarray]:
    """big_vision's arrays of a model, given those of transformers."""
    heads = {"img": config.vision.num_heads, "txt": config.text.num_heads}
    found: dict[str, np.ndarray] = {}

    def linear(name, weight, bias):
        found[f"{name}/kernel"], found[f"{name}/bias"] = weight.T, bias

    def norm(name, theirs):
        found[f"{name}/scale"], found[f"{name}/bias"] = (
            arrays[f"{theirs}.{kind}"] for kind in ("weight", "bias")
        )

    def attention(name, weights, biases, out, h):
        name = f"{name}/MultiHeadDotProductAttention_0"
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            found[f"{name}/{part}/kernel"] = weight.T.reshape(len(weight), h, -1)
            found[f"{name}/{part}/bias"] = bias.reshape(h, -1)
        weight, bias = (arrays[f"{out}.{kind}"] for kind in ("weight", "bias"))
        found[f"{name}/out/kernel"] = weight.T.reshape(h, -1, len(weight))
        found[f"{name}/out/bias"] = bias

    def mlp(name, theirs):
        for number in (1, 2):
            parts = (arrays[f"{theirs}.fc{number}.{kind}"] for kind in ("weight", "bias"))
            linear(f"{name}/MlpBlock_0/Dense_{number - 1}", *parts)

    towers = (("img/Transformer", "vision_model"), ("txt/Encoder_0", "text_model"))
    for ours, theirs in towers:
        prefix = f"{theirs}.encoder.layers."
        count = 1 + max(int(n.split(".")[3]) for n in arrays if n.startswith(prefix))
        for i in range(count):
            block, layer = f"{ours}/encoderblock_{i}", f"{prefix}{i}"
            norm(f"{block}/LayerNorm_0", f"{layer}.layer_norm1")
            norm(f"{block}/LayerNorm_1", f"{layer}.layer_norm2")
            joint = f"{layer}.self_attn"
            weights, biases = (
                [arrays[f"{joint}.{part}_proj.{kind}"] for part in "qkv"]
                for kind in ("weight", "bias")
            )
            attention(block, weights, biases, f"{joint}.out_proj", heads[ours[:3]])
            mlp(block, f"{layer}.mlp")
        if stacked:
            name = f"{ours}/encoderblock_0/"
            for ending in [n.removeprefix(name) for n in found if n.startswith(name)]:
                rows = [found.pop(f"{ours}/encoderblock_{i}/{ending}") for i in range(count)]
                found[f"{ours}/encoderblock/{ending}"] = np.stack(rows)
    norm("img/Transformer/encoder_norm", "vision_model.post_layernorm")
    norm("txt/Encoder_0/encoder_norm", "text_model.final_layer_norm")
    patches = arrays["vision_model.embeddings.patch_embedding.weight"]
    found["img/embedding/kernel"] = patches.transpose(2, 3, 1, 0)
    found["img/embedding/bias"] = arrays["vision_model.embeddings.patch_embedding.bias"]
    for ours, theirs in (("img", "vision_model"), ("txt", "text_model")):
        positions = arrays[f"{theirs}.embeddings.position_embedding.weight"]
        found[f"{ours}/pos_embedding"] = positions[None]
    found["txt/Embed_0/embedding"] = arrays["text_model.embeddings.token_embedding.weight"]
    linear("txt/head", arrays["text_model.head.weight"], arrays["text_model.head.bias"])
    pool, head = "img/MAPHead_0", "vision_model.head"
    found[f"{pool}/probe"] = arrays[f"{head}.probe"]
    weights, biases = (
        np.split(arrays[f"{head}.attention.in_proj_{kind}"], 3) for kind in ("weight", "bias")
    )
    attention(pool, weights, biases, f"{head}.attention.out_proj", heads["img"])
    norm(f"{pool}/LayerNorm_0", f"{head}.layernorm")
    mlp(pool, f"{head}.mlp")
    found["t"], found["b"] = arrays["logit_scale"], arrays["logit_bias"]
    return found


def to_timm(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """OpenCLIP's arrays of a model, with timm's vision tower, given those of transformers."""
    found: dict[str, np.ndarray] = {}

    def copy(ours, theirs):
        for kind in ("weight", "bias"):
            found[f"{ours}.{kind}"] = arrays[f"{theirs}.{kind}"]

    def joint(theirs, parts, kind):
        return np.concatenate([arrays[f"{theirs}.{part}_proj.{kind}"] for part in parts])

    layers = {name.split(".")[3] for name in arrays if ".encoder.layers." in name}
    names = {"layer_norm1": ("norm1", "ln_1"), "layer_norm2": ("norm2", "ln_2")}
    names |= {"mlp.fc1": ("mlp.fc1", "mlp.c_fc"), "mlp.fc2": ("mlp.fc2", "mlp.c_proj")}
    names |= {"self_attn.out_proj": ("attn.proj", "attn.out_proj")}
    for i in layers:
        for number, (tower, block) in enumerate(
            (("vision_model", "visual.trunk.blocks"), ("text_model", "text.transformer.resblocks"))
        ):
            layer = f"{tower}.encoder.layers.{i}"
            if f"{layer}.layer_norm1.weight" not in arrays:
                continue
            for theirs, ours in names.items():
                copy(f"{block}.{i}.{ours[number]}", f"{layer}.{theirs}")
            for kind in ("weight", "bias"):
                name = (f"attn.qkv.{kind}", f"attn.in_proj_{kind}")[number]
                found[f"{block}.{i}.{name}"] = joint(f"{layer}.self_attn", "qkv", kind)
    copy("visual.trunk.norm", "vision_model.post_layernorm")
    copy("text.ln_final", "text_model.final_layer_norm")
    copy("text.text_projection", "text_model.head")
    copy("visual.trunk.patch_embed.proj", "vision_model.embeddings.patch_embedding")
    positions = ("vision_model", "text_model")
    image, text = (arrays[f"{t}.embeddings.position_embedding.weight"] for t in positions)
    found["visual.trunk.pos_embed"], found["text.positional_embedding"] = image[None], text
    found["text.token_embedding.weight"] = arrays["text_model.embeddings.token_embedding.weight"]
    pool, head = "visual.trunk.attn_pool", "vision_model.head"
    found[f"{pool}.latent"] = arrays[f"{head}.probe"]
    for kind in ("weight", "bias"):
        q, k, v = np.split(arrays[f"{head}.attention.in_proj_{kind}"], 3)
        found[f"{pool}.q.{kind}"], found[f"{pool}.kv.{kind}"] = q, np.concatenate([k, v])
    copy(f"{pool}.proj", f"{head}.attention.out_proj")
    copy(f"{pool}.norm", f"{head}.layernorm")
    copy(f"{pool}.mlp.fc1", f"{head}.mlp.fc1")
    copy(f"{pool}.mlp.fc2", f"{head}.mlp.fc2")
    for name in ("logit_scale", "logit_bias"):
        found[name] = arrays[name].reshape(())
    return found


def write_npz(path: Path, arrays: dict[str, np.ndarray], prefix: str = "params/") -> Path:
    """Writes arrays as big_vision does."""
    named: dict[str, Any] = {f"{prefix}{name}": array for name, array in arrays.items()}
    np.savez(path, **named)
    return path


def as_void(array: np.ndarray) -> np.ndarray:
    """Rounds an array to bfloat16, as NumPy stores that: two bytes without a meaning."""
    return np.ascontiguousarray(array.astype(ml_dtypes.bfloat16)).view("V2")


def small_tag() -> dict:
    """What OpenCLIP says of a B/16 with a small text tower."""
    tag = lookup_tag("ViT-B-16-SigLIP/webli")
    assert tag is not None
    document = tag.open_clip_config()
    text = {**document["model_cfg"]["text_cfg"], "layers": 2, "vocab_size": 61}
    return {**document, "model_cfg": {**document["model_cfg"], "text_cfg": text}}
