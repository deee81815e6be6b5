"""What isn't read of other libraries is refused alike by Python and by the command, by its name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax.cli import main
from clip_jax.compat import FlaxCLIPModel, FlaxCLIPTextModel
from clip_jax.convert import to_huggingface, to_open_clip
from clip_jax.errors import CheckpointError
from tests.container_mutations import flax_bytes
from tests.model_files import RESNET, VIT
from tests.models import random_parameters

Make = Callable[[Path], Path]
HF, OPEN_CLIP = "config.json", "open_clip_config.json"
WEIGHTS = {HF: "model.safetensors", OPEN_CLIP: "open_clip_model.safetensors"}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"


def folder(name: str, config=VIT) -> Make:
    """Makes the folder of a library."""

    def make(path: Path) -> Path:
        (to_huggingface if name == HF else to_open_clip)(config, random_parameters(config), path)
        return path

    return make


def said(name: str, config=VIT, /, **changes: Any) -> Make:
    """Makes a folder whose configuration says something else; `a__b` is the key b of a."""

    def make(path: Path) -> Path:
        file = folder(name, config)(path) / name
        document = json.loads(file.read_text())
        for key, value in changes.items():
            *outer, last = key.split("__")
            place = document
            for part in outer:
                place = place[part]
            place[last] = value
        file.write_text(json.dumps(document))
        return path

    return make


def holding(name: str, **arrays: Any) -> Make:
    """Makes a folder whose weights have other arrays, or lack those that are None."""

    def make(path: Path) -> Path:
        file = folder(name)(path) / WEIGHTS[name]
        found = load_file(file) | {key.replace("__", "."): a for key, a in arrays.items()}
        kept = {key: np.asarray(a) for key, a in found.items() if a is not None}
        save_file(kept, file, metadata={"format": "pt"})
        return path

    return make


def with_file(file: str, content: str | bytes, base: str = HF) -> Make:
    """Makes a folder in which a file has another content; weights are then that file alone."""

    def make(path: Path) -> Path:
        folder(base)(path)
        if Path(file).suffix in (".bin", ".msgpack") or ".index." in file:
            (path / WEIGHTS[base]).unlink()
        (path / file).write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def file_of(name: str, *arrays: str) -> Make:
    """Makes a file of weights with these arrays."""

    def make(path: Path) -> Path:
        path = path.with_name(name)
        if name.endswith(".npz"):
            content: Any = dict.fromkeys(arrays, np.ones(2))
            np.savez(path, **content)
        elif name.endswith(".msgpack"):
            path.write_bytes(flax_bytes({n: {"kernel": np.ones((2, 2))} for n in arrays}))
        else:
            save_file({n: np.ones(2, np.float32) for n in arrays}, path)
        return path

    return make


def of_timm(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224"}')
    (path / "model.safetensors").write_bytes(b"x")
    return path


SOURCE = "take the description and the weights from the same source"
CASES: dict[str, tuple[Make, str]] = {
    **{
        f"model_type {kind}": (said(HF, model_type=kind), f"of the type {kind}, which is not supp")
        for kind in ("metaclip_2", "clipseg", "align", "altclip", "t5", "qwen2_5_vl")
    },
    "two towers of others": (
        said(HF, model_type="vision-text-dual-encoder"),
        "dual-encoder, which",
    ),
    "timm's folder": (of_timm, "a model of timm .vit_base_patch16_clip_224.*open_clip_config.json"),
    "big_vision without SigLIP's pooling": (
        file_of("m.npz", "params/img/embedding/kernel"),
        r"models pooled otherwise \(gap\), such as PaliGemma's, are not supported",
    ),
    "another .npz": (file_of("m.npz", "a"), "expected a SigLIP model of big_vision"),
    "model_type siglip2": (said(HF, model_type="siglip2"), "is a NaFlex model of SigLIP 2"),
    "msgpack without config.json": (
        file_of("m.msgpack", "text_model"),
        "give the folder that holds",
    ),
    "something else": (
        file_of("m.safetensors", "foo.bar"),
        "none of a CLIP.*it has foo.bar: check",
    ),
    "MobileCLIP": (file_of("m.safetensors", "image_encoder.model.a"), "MobileCLIP, which is not"),
    **{
        f"vision_cfg.{key}": (
            said(OPEN_CLIP, **{f"model_cfg__vision_cfg__{key}": True}),
            f"vision_cfg.{key}: an experimental kind of residual block",
        )
        for key in ("block_type", "qk_norm", "scaled_cosine_attn", "scale_heads")
        + ("scale_attn_inner", "scale_attn", "scale_fc")
    },
    **{
        f"text_cfg.{key} of OpenCLIP 4": (
            said(OPEN_CLIP, **{f"model_cfg__text_cfg__{key}": 1}),
            f"text_cfg.{key}: unknown, and may change the model: take it out if it doesn't",
        )
        for key in ("norm_type", "rope")
    },
    "interpolation": (
        said(OPEN_CLIP, preprocess_cfg={"interpolation": "lanczos"}),
        "interpolation: expected one of bicubic, bilinear, random. Got 'lanczos'",
    ),
    "resize_mode": (
        said(OPEN_CLIP, preprocess_cfg={"resize_mode": "stretch"}),
        "resize_mode: expected one of shortest, squash, longest. Got 'stretch'",
    ),
    "mean": (said(OPEN_CLIP, preprocess_cfg={"mean": [1, 2]}), "mean: expected three numbers"),
    "width": (
        said(OPEN_CLIP, model_cfg__vision_cfg__width=128),
        rf"(?s)model_cfg describes.*{SOURCE}.*expected shape \(128,\). Got \(64,\)",
    ),
    "ResNet's grid": (
        said(OPEN_CLIP, RESNET, model_cfg__vision_cfg__image_size=128),
        r"attnpool.positional_embedding: expected shape \(17, 128\). Got \(5, 128\)",
    ),
    "ResNet's layers": (
        said(OPEN_CLIP, RESNET, model_cfg__vision_cfg__layers=[1, 1, 2, 1]),
        r"vision_cfg.layers \(visual/layer3\): model_cfg says 2, the arrays have 1",
    ),
    "ResNet's head width": (
        said(OPEN_CLIP, RESNET, model_cfg__vision_cfg__head_width=60),
        "must divide 32 times the width, 4. Got 60",
    ),
    "missing array": (
        holding(OPEN_CLIP, visual__proj=None),
        "1 array does not.*\n- visual.proj: mis",
    ),
    "array too many": (holding(OPEN_CLIP, visual__b=np.ones(1)), r"\+ visual.b: unexpected"),
    "integers": (holding(OPEN_CLIP, ln_final__bias=np.ones(64, int)), "a float dtype. Got int64"),
    "logit_bias": (
        holding(OPEN_CLIP, logit_bias=np.float32(1)),
        "init_logit_bias: not in model_cfg, but there is a logit_bias",
    ),
    "heads of the text tower": (
        said(HF, text_config__num_attention_heads=7),
        "must divide the width",
    ),
    "context": (
        said(HF, text_config__max_position_embeddings=80),
        rf"(?s)1 array does not fit the model that config.json describes.*{SOURCE}.*Got \(77, 64\)",
    ),
    "vocabulary": (
        said(HF, text_config__vocab_size=70),
        r"expected shape \(70, 64\). Got \(61, 64\)",
    ),
    "projection": (
        holding(HF, text_projection__weight=None, visual_projection__weight=None),
        "- text_projection.weight: missing\n- visual_projection.weight: missing",
    ),
    **{
        f"Git LFS: {file}": (with_file(file, LFS), f"{file}: is a Git LFS pointer.*`git lfs pull`")
        for file in ("config.json", "model.safetensors", "preprocessor_config.json")
        + ("pytorch_model.bin", "flax_model.msgpack", "model.safetensors.index.json")
    },
    **{
        f"Git LFS: {file}": (with_file(file, LFS, OPEN_CLIP), f"{file}: is a Git LFS pointer")
        for file in ("open_clip_config.json", "open_clip_model.safetensors")
    },
    "a long config.json": (with_file(HF, "x" * (2 << 20)), "2,097,152 bytes, expected at most"),
    "a long OpenCLIP configuration": (
        with_file(OPEN_CLIP, "x" * (2 << 20), OPEN_CLIP),
        "2,097,152 bytes, expected at most",
    ),
    "a deep config.json": (with_file(HF, '{"a":' * 100_000), "nests too deeply"),
    "a deep preprocessor_config.json": (
        with_file("preprocessor_config.json", '{"a":' * 100_000),
        "nests too deeply",
    ),
    "msgpack of a million maps": (
        with_file("flax_model.msgpack", b"\x81\xa1a" * 1_000_000),
        "more than 64 deep",
    ),
}


@pytest.mark.parametrize("what", CASES)
def test_it_is_refused_by_its_name_and_nothing_is_left(what, tmp_path, capsys):
    make, message = CASES[what]
    path = make(tmp_path / "made")
    with pytest.raises(CheckpointError, match=message) as caught:
        clip_jax.load(path)
    told = str(caught.value)
    assert told.count(str(path)) == 1  # once, and not once more for a file in it
    before = sorted(tmp_path.iterdir())
    assert main(["convert", str(path), str(tmp_path / "new")]) == 1
    assert capsys.readouterr().err == f"clip-jax: {told}\n"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "what", ["context", "vocabulary", "Git LFS: model.safetensors", "a deep config.json"]
)
@pytest.mark.parametrize(
    "read",
    [clip_jax.load_text_model, FlaxCLIPModel.from_pretrained, FlaxCLIPTextModel.from_pretrained],
)
def test_towers_and_classes_of_flax_clip_say_the_same(read, what, tmp_path):
    make, message = CASES[what]
    path = make(tmp_path / "made")
    with pytest.raises(CheckpointError, match=message) as caught:
        read(path)
    assert str(caught.value).count(str(path)) == 1


@pytest.mark.parametrize("kind", ["t5", "gemma2", "qwen2_5_vl"])
@pytest.mark.parametrize("read", [clip_jax.load_text_model, clip_jax.load_vision_model])
def test_another_encoder_of_a_pipeline_is_named(read, kind, tmp_path):
    (tmp_path / "text_encoder_2").mkdir()
    (tmp_path / "text_encoder_2" / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CheckpointError, match=f"of the type {kind}, which is not supported"):
        read(tmp_path, subfolder="text_encoder_2")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"its name as subfolder= \(text_encoder_2\)"):
        read(tmp_path)


def test_a_folder_without_a_model_is_not_said_to_be_convertible(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="it has notes.txt, so check the path"):
        FlaxCLIPModel.from_pretrained(tmp_path)
    folder(OPEN_CLIP)(tmp_path / "oc")
    with pytest.raises(CheckpointError, match="clip-jax convert .*oc FOLDER --to huggingface"):
        FlaxCLIPModel.from_pretrained(tmp_path / "oc")
