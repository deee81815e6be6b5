"""Exported folders: their embeddings are the model's, and what doesn't fit is refused."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax import export
from clip_jax.errors import CheckpointError
from tests.models import TINY_RESNET, TINY_VIT, random_images, random_tokens, relative_error, small

EXPORTED = 1e-6  # relative, in float32


@pytest.fixture(scope="module")
def model():
    return small(TINY_VIT)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export.export(model, folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def test_embeddings_are_the_models(config, tmp_path):
    model = small(config)
    export.export(model, tmp_path / "out", platforms=["cpu"])
    exported = export.load(tmp_path / "out")
    pixels = random_images(5, config.vision.image_size)
    tokens = random_tokens(3)
    assert relative_error(exported.images(pixels), model.encode_image(pixels)) < EXPORTED
    assert relative_error(exported.texts(tokens), model.encode_text(tokens)) < EXPORTED


def test_floats_and_bytes_of_the_same_images_agree(model, folder):
    exported = export.load(folder)
    pixels = random_images(2, model.config.vision.image_size)
    mean, std = (np.float32(x) for x in (model.config.pixels.mean, model.config.pixels.std))
    floats = (pixels.astype(np.float32) / 255 - mean) / std
    assert relative_error(exported.images(pixels), exported.images(floats)) < EXPORTED


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 70])
def test_any_number_of_rows(model, folder, rows):
    exported = export.load(folder)
    tokens = random_tokens(rows) if rows else np.zeros((0, 77), np.int32)
    embeddings = exported.texts(tokens)
    assert embeddings.shape == (rows, model.config.embed_dim)
    if rows:
        assert relative_error(embeddings, model.encode_text(tokens)) < EXPORTED


def test_strings_are_tokenized_and_cut_to_their_length(model, folder):
    exported = export.load(folder)
    texts = ["a pear", "two cats on a mat"]
    expected = model.encode_text(clip_jax.tokenize(texts))
    assert relative_error(exported.texts(texts), expected) < EXPORTED


def test_frames_are_resized_inside_as_by_pillow(model, tmp_path):
    export.export(model, tmp_path / "out", image_input="frames", frame_size=(60, 45))
    frames = np.random.default_rng(0).integers(0, 256, (3, 60, 45, 3), np.uint8)
    preprocess = clip_jax.Preprocess(model.config.vision.image_size)
    pixels = np.stack([preprocess.pixels(Image.fromarray(frame)) for frame in frames])
    exported = export.load(tmp_path / "out")
    assert relative_error(exported.images(frames), model.encode_image(pixels)) < EXPORTED
    with pytest.raises(ValueError, match=r"\(b, 60, 45, 3\) and dtype uint8. Got .*\(3, 45, 45, 3"):
        exported.images(frames[:, :45])


def test_weights_inside_and_a_fixed_batch(model, tmp_path):
    export.export(model, tmp_path / "out", weights="inside", batch=4, normalize=True)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    exported = export.load(tmp_path / "out")
    assert exported.batch_size == 4
    tokens = random_tokens(6)
    expected = np.array(model.encode_text(tokens))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert relative_error(exported.texts(tokens), expected) < EXPORTED


def test_bfloat16_is_half_the_file(model, folder, tmp_path):
    export.export(model, tmp_path / "out", dtype="bfloat16")
    sizes = [(place / "model.safetensors").stat().st_size for place in (folder, tmp_path / "out")]
    assert sizes[1] < 0.6 * sizes[0]
    tokens = random_tokens(3)
    embeddings = export.load(tmp_path / "out").texts(tokens)
    assert relative_error(embeddings, model.encode_text(tokens)) < 0.05


def test_programs_are_for_all_platforms(folder):
    for name in ("image.stablehlo", "text.stablehlo"):
        program = jax.export.deserialize(bytearray((folder / name).read_bytes()))
        assert program.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_run_py_embeds_without_this_package(model, folder, tmp_path, kind):
    given = {"images": random_images(3, model.config.vision.image_size), "texts": random_tokens(3)}
    np.save(tmp_path / "x.npy", given[kind])
    script = tmp_path / "alone.py"  # an environment in which clip_jax can't be imported
    script.write_text(
        "import runpy, sys\n"
        "sys.modules['clip_jax'] = sys.modules['flax'] = None\n"
        f"sys.argv = ['run.py', '--{kind}', 'x.npy', '--out', 'y.npy']\n"
        f"runpy.run_path({str(folder / 'run.py')!r}, run_name='__main__')\n"
    )
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True, timeout=300)
    encode = {"images": model.encode_image, "texts": model.encode_text}[kind]
    assert relative_error(np.load(tmp_path / "y.npy"), encode(given[kind])) < EXPORTED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"platforms": ["gpu"]}, r"for GPUs say cuda or rocm. Got \['gpu'\]"),
        ({"platforms": []}, "at least one"),
        ({"platforms": ["cpu", "cpu"]}, "once each"),
        ({"platforms": ["tpu"], "dtype": "float16"}, "TPUs don't compute in float16"),
        ({"batch": 0}, "batch must be a whole number from 1 to .*, or None for any number. Got 0"),
        ({"image_input": "photos"}, '"pixels" or "frames". Got \'photos\''),
        ({"image_input": "frames"}, "go together"),
        ({"frame_size": (4, 4)}, "go together"),
        (
            {"image_input": "frames", "frame_size": (0, 4)},
            r"a height and a width in whole pixels, .* Got \(0, 4\)",
        ),
        ({"weights": "near"}, '"beside" or "inside"'),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export.export(model, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_kept(model, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is no exported model"):
        export.export(model, tmp_path, replace=True)
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_an_exported_folder_is_replaced_only_when_asked(model, copy):
    with pytest.raises(FileExistsError, match="exists already"):
        export.export(model, copy)
    export.export(model, copy, replace=True, platforms=["cpu"])
    assert json.loads((copy / "manifest.json").read_text())["platforms"] == ["cpu"]


@pytest.mark.parametrize("name", ["image.stablehlo", "text.stablehlo", "model.safetensors"])
def test_a_changed_byte_is_noticed(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name} differ from their SHA-256"):
        export.load(copy)


def test_files_that_lack_or_are_cut_are_listed_together(copy):
    (copy / "text.stablehlo").unlink()
    with open(copy / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match=r"has 1,000 bytes, expected .*text.stablehlo is mis"):
        export.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "is of version 99; this clip_jax reads 1: upgrade it"),
        ({"format": "other"}, "its format is 'other'"),
        ({"platforms": ["tpu"]}, "was exported for tpu; JAX computes on cpu here"),
        ({"programs": {}}, "is damaged"),
        (
            {"files": [{"name": "../x", "size": 1, "sha256": ""}]},
            "no name of a file in this folder",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(copy, change, message):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(CheckpointError, match=message):
        export.load(copy)


def test_a_folder_without_manifest_is_no_exported_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no manifest.json, so it is no exported model"):
        export.load(tmp_path)


def test_without_flatbuffers_the_extra_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ModuleNotFoundError, match=r"clip-jax-flax\[export\]"):
        export.export(model, tmp_path / "out")


def test_the_command_writes_what_it_lists(tmp_path):
    command = [sys.executable, "-m", "clip_jax", "export", "emoji", "out", "--platforms", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "out/image.stablehlo: " in done.stdout
    exported = export.load(tmp_path / "out")
    model, _ = clip_jax.load("emoji")
    expected = model.encode_text(clip_jax.tokenize(["a pear"]))
    assert relative_error(exported.texts(["a pear"]), expected) < EXPORTED
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    bad = [*command[:-2], "--frames", "12"]
    assert subprocess.run(bad, cwd=tmp_path, capture_output=True, timeout=300).returncode == 2
