"""SigLIP's checkpoints: transformers', OpenCLIP's and big_vision's forms are one model."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax.cli import main
from clip_jax.config import SigLIPConfig
from clip_jax.convert import (
    from_big_vision,
    from_huggingface,
    to_huggingface,
    to_open_clip,
    to_pytorch,
)
from clip_jax.convert import open_clip_config as oc
from clip_jax.convert.open_clip import described, from_arrays
from clip_jax.errors import CheckpointError
from clip_jax.nn import SigLIP, flatten
from clip_jax.open_clip_catalog import lookup_tag
from clip_jax.pixel_config import HALF
from tests.models import random_images, random_parameters, relative_error
from tests.siglip import (
    SIGLIP,
    as_void,
    random_ids,
    small_tag,
    to_big_vision,
    to_timm,
    write_npz,
)

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model in transformers' form."""
    folder = tmp_path_factory.mktemp("siglip") / "huggingface"
    to_huggingface(SIGLIP, random_parameters(SIGLIP), folder)
    return folder


def changed(folder: Path, target: Path, document=None, arrays=None) -> Path:
    """A copy of a folder with changes of its configuration and of its arrays."""
    target.mkdir()
    config = json.loads((folder / "config.json").read_text())
    for name, value in (document or {}).items():
        inner, _, key = name.rpartition(".")
        (config[inner] if inner else config)[key] = value
    (target / "config.json").write_text(json.dumps(config))
    there = {**load_file(folder / WEIGHTS), **(arrays or {})}
    save_file({k: v for k, v in there.items() if v is not None}, target / WEIGHTS)
    return target


def same(one, other) -> bool:
    one, other = flatten(one), flatten(other)
    return one.keys() == other.keys() and all(
        np.asarray(one[path]).dtype == np.asarray(other[path]).dtype
        and np.asarray(one[path]).tobytes() == np.asarray(other[path]).tobytes()
        for path in one
    )


def test_transformers_form_returns_as_what_was_written(folder):
    config, params = from_huggingface(folder)
    assert config == SIGLIP
    assert same(params, random_parameters(SIGLIP))
    written = load_file(folder / WEIGHTS)
    assert written["logit_scale"].shape == written["logit_bias"].shape == (1,)
    assert written["vision_model.head.probe"].shape == (1, 1, 96)


@pytest.mark.parametrize("prefix", ["params/", "", "opt/target/"])
@pytest.mark.parametrize("stacked", [False, True])
def test_big_visions_form_is_the_same_model_to_the_bit(folder, tmp_path, prefix, stacked):
    arrays = to_big_vision(load_file(folder / WEIGHTS), SIGLIP, stacked=stacked)
    path = write_npz(tmp_path / "some_29_7.npz", arrays, prefix)
    config, params = from_big_vision(path)
    assert config == SIGLIP
    assert same(params, random_parameters(SIGLIP))


def test_bfloat16_as_void_is_the_same_model_to_the_bit(folder, tmp_path):
    arrays = to_big_vision(load_file(folder / WEIGHTS), SIGLIP, stacked=True)
    halves = {name: as_void(array) for name, array in arrays.items()}
    _, params = from_big_vision(write_npz(tmp_path / "half.npz", halves), image_size=29)
    import ml_dtypes

    expected = {k: v.astype(ml_dtypes.bfloat16) for k, v in load_file(folder / WEIGHTS).items()}
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(expected, tmp_path / "half" / WEIGHTS)
    assert same(params, from_huggingface(tmp_path / "half")[1])


def test_a_trainers_optimizer_is_not_read(folder, tmp_path):
    arrays = to_big_vision(load_file(folder / WEIGHTS), SIGLIP, stacked=False)
    path = write_npz(tmp_path / "checkpoint.npz", arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("opt/0/mu/img/embedding/kernel.npy", b"no array")
    assert same(from_big_vision(path)[1], random_parameters(SIGLIP))


def test_old_files_second_positions_are_added(folder, tmp_path):
    arrays = to_big_vision(load_file(folder / WEIGHTS), SIGLIP, stacked=False)
    whole = arrays["txt/pos_embedding"]
    halves = {"txt/pos_embedding": whole / 2, "txt/Encoder_0/pos_embedding": whole / 2}
    path = write_npz(tmp_path / "old.npz", arrays | halves)
    assert same(from_big_vision(path)[1], random_parameters(SIGLIP))


@pytest.mark.parametrize(
    ("name", "size"), [("webli_28.npz", 28), ("b_29_63724782.npz", 29), ("b_384.npz", 28)]
)
def test_the_size_of_images_is_the_one_in_the_name_if_it_fits(folder, tmp_path, name, size):
    arrays = to_big_vision(load_file(folder / WEIGHTS), SIGLIP, stacked=False)
    path = write_npz(tmp_path / name, arrays)
    assert from_big_vision(path)[0].vision.image_size == size
    assert from_big_vision(path, image_size=34)[0].vision.image_size == 34
    with pytest.raises(CheckpointError, match="images of 35 pixels in patches of 7"):
        from_big_vision(path, image_size=35)


def test_the_three_forms_give_one_embedding(tmp_path, monkeypatch):
    """Of a real vision tower's shape with fewer blocks, which OpenCLIP's form can't say."""
    from clip_jax.convert import open_clip_siglip

    monkeypatch.setitem(open_clip_siglip.SIZES, "base", (96, 3, 4, 136))
    document = small_tag()
    text = {"width": 80, "heads": 5, "layers": 2, "context_length": 12, "mlp_ratio": 1.3}
    document["model_cfg"]["text_cfg"] |= text
    document["model_cfg"] |= {"embed_dim": 96, "init_logit_bias": -10}
    tower = {"image_size": 50, "timm_model_name": "vit_base_patch16_siglip_50"}
    document["model_cfg"]["vision_cfg"] |= tower
    config = oc.from_document(document)
    assert isinstance(config, SigLIPConfig)
    params = random_parameters(config)
    plain = dataclasses.replace(config, text=dataclasses.replace(config.text, tokenizer=None))
    to_huggingface(plain, params, tmp_path / "huggingface")
    arrays = load_file(tmp_path / "huggingface" / WEIGHTS)
    open_clip = tmp_path / "open_clip"
    open_clip.mkdir()
    (open_clip / "open_clip_config.json").write_text(json.dumps(document))
    save_file(to_timm(arrays), open_clip / "open_clip_model.safetensors")
    npz = write_npz(tmp_path / "b_50.npz", to_big_vision(arrays, plain, stacked=False))
    images, ids = random_images(2, 50), random_ids(3, plain)
    embeddings = []
    for path in (tmp_path / "huggingface", open_clip, npz):
        model, preprocess = clip_jax.load(path)
        assert isinstance(model, SigLIP) and preprocess.image_size == 50
        assert preprocess.config.resize == "squash" and preprocess.config.mean == HALF
        embeddings.append([np.asarray(model.encode_image(images)), model.encode_text(ids)])
        back = tmp_path / f"{path.name}-back"  # each can be written for transformers
        to_huggingface(model.config, clip_jax.parameters(model), back)
        written = load_file(back / WEIGHTS)
        assert written.keys() == arrays.keys()
        assert all(written[name].tobytes() == arrays[name].tobytes() for name in arrays)
        text_model, _ = clip_jax.load_text_model(path)
        assert relative_error(text_model(ids).text_embeds, embeddings[0][1]) < 1e-6
        vision_model, _ = clip_jax.load_vision_model(path)
        assert relative_error(vision_model(images).image_embeds, embeddings[0][0]) < 1e-6
    for image, text in embeddings[1:]:
        np.testing.assert_array_equal(image, embeddings[0][0])
        np.testing.assert_array_equal(text, embeddings[0][1])
    # Computed as OpenCLIP does, with the exact GELU, it is near, and not the same.
    other, _ = clip_jax.load(open_clip, activation="open_clip")
    assert (other.config.vision_activation, other.config.text_activation) == ("gelu", "gelu")
    assert 1e-7 < relative_error(other.encode_image(images), embeddings[0][0]) < 1e-2


def test_a_checkpoint_of_big_vision_loads_by_its_address(folder, tmp_path):
    pytest.importorskip("fsspec")
    arrays = to_big_vision(load_file(folder / WEIGHTS), SIGLIP, stacked=True)
    path = write_npz(tmp_path / "b_29.npz", arrays)
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/siglip/b_29.npz", path.read_bytes())
    model, _ = clip_jax.load("memory://siglip/b_29.npz")
    assert model.config == SIGLIP
    with pytest.raises(FileNotFoundError):
        clip_jax.load("memory://siglip/absent.npz")
    assert main(["convert", "memory://siglip/b_29.npz", str(tmp_path / "native")]) == 0
    assert clip_jax.load(tmp_path / "native")[0].config == SIGLIP
    assert main(["convert", "memory://siglip/absent.npz", str(tmp_path / "other")]) == 1


def test_a_repository_in_the_hubs_cache_loads_by_its_name(folder, tmp_path, monkeypatch):
    commit = "0123456789" * 4
    repository = tmp_path / "models--google--siglip2-base-patch16-224"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, _ = clip_jax.load("google/siglip2-base-patch16-224")
    assert isinstance(model, SigLIP) and model.config == SIGLIP


@pytest.mark.parametrize(
    ("document", "arrays", "message"),
    [
        ({"model_type": "siglip2"}, {}, r"type siglip2\) is a NaFlex model"),
        ({"model_type": "siglip2_vision_model"}, {}, "is a NaFlex model"),
        ({"vision_config.num_patches": 256}, {}, "num_patches: a NaFlex model"),
        (
            {},
            {"vision_model.embeddings.patch_embedding.weight": np.zeros((96, 147), np.float32)},
            "is a NaFlex model of SigLIP 2, for images of any shape",
        ),
        ({}, {"logit_bias": None}, "- logit_bias: missing"),
        ({"vision_config.vision_use_head": False}, {}, "vision_use_head: a tower without its head"),
        ({"text_config.projection_size": 80}, {}, "must be the images' hidden_size, 96. Got 80"),
        ({"vision_config.num_hidden_layers": 4}, {}, r"config.json says 4, the arrays have 3"),
        (
            {},
            {"vision_model.head.attention.in_proj_bias": np.zeros(96, np.float32)},
            r"1 array does not fit[^!]*! vision_model.head.attention.in_proj_bias: expected "
            r"shape \(288,\)",
        ),
        ({}, {"text_model.head.weight": None}, "- text_model.head.weight: missing"),
    ],
)
def test_what_is_wrong_in_transformers_form_is_said(folder, tmp_path, document, arrays, message):
    with pytest.raises(CheckpointError, match=message):
        clip_jax.load(changed(folder, tmp_path / "changed", document, arrays))


def npz_with(folder: Path, path: Path, changes: dict) -> Path:
    arrays = to_big_vision(load_file(folder / WEIGHTS), SIGLIP, stacked=False) | changes
    return write_npz(path, {name: x for name, x in arrays.items() if x is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"img/MAPHead_0/probe": None},
            r"expected attention pooling: models pooled otherwise \(gap",
        ),
        ({"img/embedding/kernel": np.zeros((147, 96), np.float32)}, "is a NaFlex model"),
        ({"img/embedding/kernel": None}, "has no array img/embedding/kernel"),
        ({"b": None}, "- b: missing"),
        ({"txt/pos_embedding": np.zeros((12, 80), np.float32)}, "expected 3 axes. Got the shape"),
        ({"img/pos_embedding": np.zeros((1, 17, 96), np.float32)}, "n x n positions. Got 17"),
        ({"img/extra": np.zeros(3, np.float32)}, r"\+ img/extra: unexpected"),
        ({"img/extra": np.array(["text"], object)}, "holds Python objects, which may run code"),
        (
            {"img/Transformer/encoderblock_1/MlpBlock_0/Dense_0/bias": np.zeros(3, np.float32)},
            r"Dense_0/bias: expected shape \(136,\). Got \(3,\)",
        ),
    ],
)
def test_what_is_wrong_in_big_visions_form_is_said(folder, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        clip_jax.load(npz_with(folder, tmp_path / "b_29.npz", changes))


def test_a_damaged_npz_is_refused(folder, tmp_path):
    path = npz_with(folder, tmp_path / "b_29.npz", {})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"b_29\.npz: can't be read as a ZIP archive of arr"):
        clip_jax.load(path)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 255
    path.write_bytes(bytes(flipped))
    with pytest.raises(CheckpointError, match="Bad CRC-32|damaged"):
        clip_jax.load(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="can't be read as a ZIP archive"):
        clip_jax.load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = (
            b"\x93NUMPY\x01\x00\x76\x00"
            + b"{'descr': '<f4', 'fortran_order': False, "
            + (b"'shape': (1000000, 1000000), }")
        )
        archive.writestr("params/img/embedding/kernel.npy", header.ljust(127) + b"\n" + bytes(99))
    with pytest.raises(CheckpointError, match=r"shape \(1000000, 1000000\) of float32, but"):
        clip_jax.load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("params/img/embedding/kernel.npy", bytes(1 << 24))
    with pytest.raises(CheckpointError, match="unpacks to more than 16 times its size"):
        clip_jax.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vision_cfg.timm_model_name": "vit_base_patch16_siglip_gap_224"},
            "without attention pool",
        ),
        ({"vision_cfg.timm_pool": "avg"}, "without attention pooling"),
        ({"vision_cfg.timm_proj": "linear"}, "timm_proj: a projection after"),
        ({"init_logit_bias": None}, "init_logit_bias: missing, expected a number"),
        ({"quick_gelu": True}, "quick_gelu: no SigLIP model has it"),
        ({"text_cfg.no_causal_mask": False}, "no causal mask"),
        ({"text_cfg.pool_type": "argmax"}, "pooled at the .last. position"),
        ({"vision_cfg.timm_model_name": "vit_tiny_patch16_siglip_224"}, "a vision tower of timm"),
    ],
)
def test_what_is_wrong_in_open_clips_form_is_said(changes, message):
    document = json.loads(json.dumps(small_tag()))
    for name, value in changes.items():
        inner, _, key = name.rpartition(".")
        model = document["model_cfg"]
        (model[inner] if inner else model)[key] = value
    with pytest.raises(CheckpointError, match=message):
        oc.from_document(document)


def test_open_clips_arrays_and_configuration_must_be_of_one_family(folder):
    arrays = to_timm(load_file(folder / WEIGHTS))
    tag = lookup_tag("ViT-B-32/laion2b_s34b_b79k")
    assert tag is not None
    with pytest.raises(CheckpointError, match="one of them is SigLIP's"):
        from_arrays(arrays, tag.open_clip_config())
    with pytest.raises(CheckpointError, match="is a SigLIP model, which loads together"):
        from_arrays(arrays, None)


def test_a_bare_file_of_siglip_asks_for_its_folder(folder):
    with pytest.raises(CheckpointError, match="is a SigLIP model, which loads together"):
        clip_jax.load(folder / WEIGHTS)


@pytest.mark.parametrize("name", ["FlaxCLIPModel", "FlaxCLIPTextModel", "FlaxCLIPVisionModel"])
def test_the_classes_of_flax_clip_refuse_siglip(folder, name):
    from clip_jax import compat

    with pytest.raises(CheckpointError, match="the type siglip, which Flax's CLIP classes"):
        getattr(compat, name).from_pretrained(folder)


def test_open_clips_activation_is_for_its_own_folders(folder, tmp_path):
    with pytest.raises(ValueError, match='activation="open_clip" is for folders of OpenCLIP'):
        clip_jax.load(folder, activation="open_clip")
    with pytest.raises(ValueError, match="activation is only for .pt"):
        clip_jax.load(folder, activation="gelu")


def test_what_other_formats_cant_say_of_siglip_is_refused(tmp_path):
    params = random_parameters(SIGLIP)
    with pytest.raises(CheckpointError, match="a SigLIP model, whose vision tower is timm's there"):
        to_open_clip(SIGLIP, params, tmp_path / "open_clip")
    with pytest.raises(CheckpointError, match="SigLIP's attention"):
        to_pytorch(SIGLIP, params)
    headless = dataclasses.replace(
        SIGLIP,
        text=dataclasses.replace(
            SIGLIP.text, width=96, num_heads=4, has_projection=False, has_projection_bias=False
        ),
    )
    with pytest.raises(CheckpointError, match="SigLIP has no place for.*without projection"):
        to_huggingface(headless, random_parameters(headless), tmp_path / "huggingface")
    assert not list(tmp_path.iterdir())


def test_pixels_of_a_folder_that_doesnt_say_are_its_generations(folder, tmp_path):
    for size, interpolation in ((61, "bicubic"), (256000, "bilinear")):
        target = changed(folder, tmp_path / str(size))
        document = json.loads((target / "config.json").read_text())
        document["text_config"]["vocab_size"] = size
        from clip_jax.convert.huggingface_siglip import default_pixels

        pixels = default_pixels(document)
        assert (pixels.interpolation, pixels.resize) == (interpolation, "squash")
        assert pixels.mean == pixels.std == HALF


def test_every_tag_has_its_published_shape():
    tag = lookup_tag("ViT-SO400M-14-SigLIP-384/webli")
    assert tag is not None and tag.repository == "timm/ViT-SO400M-14-SigLIP-384"
    config = oc.from_document(tag.open_clip_config())
    assert isinstance(config, SigLIPConfig)
    assert (config.vision.image_size, config.vision.num_patches) == (384, 27 * 27)
    assert config.embed_dim == 1152 and config.vision.mlp_width == config.text.mlp_width == 4304
    with pytest.raises(ValueError, match="is a NaFlex model"):
        lookup_tag("ViT-B-16-SigLIP2-NaFlex/webli")


def test_an_architecture_of_siglip_has_its_own_activation_and_pixels():
    document = described("ViT-B-16-SigLIP")
    assert document == described("ViT-B-16-SigLIP", "gelu_tanh")
    config = oc.from_document(document)
    assert config.vision_activation == config.text_activation == "gelu_tanh"
    assert config.pixels.mean == HALF and config.pixels.resize == "squash"
    with pytest.raises(ValueError, match="ViT-B-16-SigLIP was trained with gelu_tanh. Got 'gelu'"):
        described("ViT-B-16-SigLIP", "gelu")
