"""Graphs of ONNX: their embeddings in ONNX Runtime are the model's, and names are transformers'."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import clip_jax
from clip_jax import export
from clip_jax.errors import CheckpointError
from clip_jax.image_size import sides_of
from tests.models import (
    SMALL_VIT,
    TINY_RESNET,
    TINY_VIT,
    random_tokens,
    relative_error,
    small,
)
from tests.siglip import SIGLIP

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")

EXACT = 1e-5  # relative, in float32


def run(folder, kind, array):
    session = onnxruntime.InferenceSession(folder / f"{kind}.onnx")
    return session.run(None, {session.get_inputs()[0].name: array})[0]


def floats(config, rows):
    shape = (rows, *sides_of(config.vision.image_size), 3)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def ids(config, rows):
    text = config.text
    tokens = np.random.default_rng(0).integers(1, text.vocab_size, (rows, text.context_length))
    tokens[:, -1] = text.vocab_size - 1  # the end token
    return tokens


@pytest.fixture(scope="module")
def model():
    return small(TINY_VIT)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    export.export_onnx(model, folder, layout="nchw")
    return folder


GELU = dataclasses.replace(SMALL_VIT, activation="gelu")
MEAN = dataclasses.replace(
    GELU, vision=dataclasses.replace(GELU.vision, pooling="mean", layer_scale=0.1)
)
NOT_CAUSAL = dataclasses.replace(
    GELU, text=dataclasses.replace(GELU.text, pooling="last", is_causal=False)
)

NOT_SQUARE = dataclasses.replace(
    SMALL_VIT, vision=dataclasses.replace(SMALL_VIT.vision, image_size=(32, 48))
)


@pytest.mark.parametrize(
    "config",
    [TINY_VIT, TINY_RESNET, GELU, MEAN, NOT_CAUSAL, SIGLIP, NOT_SQUARE],
    ids=["vit", "resnet", "gelu", "mean", "texts that aren't causal", "siglip", "not square"],
)
def test_embeddings_are_the_models(config, tmp_path):
    model = small(config)
    export.export_onnx(model, tmp_path / "out")
    images, tokens = floats(config, 3), ids(config, 4)
    given = run(tmp_path / "out", "image", images)
    assert relative_error(given, model.encode_image(images)) < EXACT
    given = run(tmp_path / "out", "text", tokens)
    assert relative_error(given, model.encode_text(tokens)) < EXACT


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_any_number_of_rows_and_any_length(model, folder, rows):
    images, tokens = floats(model.config, rows), random_tokens(rows, 40)
    given = run(folder, "image", images.transpose(0, 3, 1, 2))
    assert relative_error(given, model.encode_image(images)) < EXACT
    given = run(folder, "text", tokens.astype(np.int64))
    assert relative_error(given, model.encode_text(tokens)) < EXACT


def test_names_shapes_and_dtypes_are_those_of_transformers(folder):
    ends = {}
    for kind in ("image", "text"):
        session = onnxruntime.InferenceSession(folder / f"{kind}.onnx")
        for end in (*session.get_inputs(), *session.get_outputs()):
            ends[end.name] = (end.shape, end.type)
    assert ends == {
        "pixel_values": (["batch_size", 3, 48, 48], "tensor(float)"),
        "image_embeds": (["batch_size", 24], "tensor(float)"),
        "input_ids": (["batch_size", "sequence_length"], "tensor(int64)"),
        "text_embeds": (["batch_size", 24], "tensor(float)"),
    }


def test_the_manifest_says_what_the_graphs_are(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    for kind in ("image", "text"):
        graph = onnx.load(folder / f"{kind}.onnx")
        assert [x.version for x in graph.opset_import if not x.domain] == [manifest["opset"]]
    assert manifest["layout"] == "nchw"
    assert manifest["programs"]["text"]["input"] == {
        "name": "input_ids",
        "dtype": "int64",
        "shape": ["batch_size", "sequence_length"],
    }
    assert {file["name"] for file in manifest["files"]} == {*os.listdir(folder)} - {"manifest.json"}


def test_operators_are_those_that_runtimes_have_kernels_for(folder):
    operators = {
        node.op_type
        for kind in ("image", "text")
        for node in onnx.load(folder / f"{kind}.onnx").graph.node
    }
    assert "LayerNormalization" in operators
    assert not operators & {"Einsum", "Expand", "Where", "ConstantOfShape"}


def test_a_fixed_batch_and_normalized_embeddings(model, tmp_path):
    export.export_onnx(model, tmp_path / "out", batch=2, normalize=True)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "text.onnx")
    assert session.get_inputs()[0].shape == [2, "sequence_length"]
    tokens = random_tokens(2)
    expected = np.array(model.encode_text(tokens))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    given = run(tmp_path / "out", "text", tokens.astype(np.int64))
    assert relative_error(given, expected) < EXACT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "chw"}, 'layout must be "nhwc" or "nchw". Got \'chw\''),
        ({"batch": 0}, "batch must be a whole number from 1 to .*, or None for any number. Got 0"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export.export_onnx(model, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("operation", "of"), [("mul", "image"), ("tanh", "text")])
def test_an_operation_that_jax2onnx_lacks_is_named(monkeypatch, tmp_path, operation, of):
    import jax.numpy as jnp
    from jax2onnx.plugins.plugin_system import PLUGIN_REGISTRY, import_all_plugins

    import clip_jax.export.onnx_export as module

    import_all_plugins()
    monkeypatch.delitem(PLUGIN_REGISTRY, operation)
    finished, operations = module._finished, {"mul": lambda x: x * x, "tanh": jnp.tanh}
    monkeypatch.setattr(
        module, "_finished", lambda x, normalized: operations[operation](finished(x, normalized))
    )
    with pytest.raises(ValueError, match=f"can't translate JAX's {operation} to ONNX, which comp"):
        export.export_onnx(small(SMALL_VIT), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_too_large_for_a_graphs_file_get_one_of_their_own(model, tmp_path, monkeypatch):
    monkeypatch.setattr("clip_jax.export.onnx_export.MOST", 1000)
    out = tmp_path / "out"
    export.export_onnx(model, out)
    tokens, pixels = ids(model.config, 3), floats(model.config, 2)
    for kind, given, expected in (
        ("image", pixels, model.encode_image(pixels)),
        ("text", tokens, model.encode_text(tokens)),
    ):
        assert (out / f"{kind}.onnx.data").stat().st_size > (out / f"{kind}.onnx").stat().st_size
        assert relative_error(run(out, kind, given), expected) < EXACT
    listed = {file["name"] for file in json.loads((out / "manifest.json").read_text())["files"]}
    assert {"image.onnx.data", "text.onnx.data"} <= listed


def test_graphs_are_no_programs_to_load(folder):
    with pytest.raises(CheckpointError, match="holds ONNX graphs, which ONNX Runtime loads"):
        export.load(folder)


def test_the_command_writes_graphs(tmp_path):
    command = [sys.executable, "-m", "clip_jax", "export", "emoji", "out", "--to", "onnx"]
    done = subprocess.run(
        [*command, "--layout", "nchw"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "out/image.onnx: " in done.stdout
    model, _ = clip_jax.load("emoji")
    tokens = clip_jax.tokenize(["a pear"])
    given = run(tmp_path / "out", "text", tokens.astype(np.int64))
    assert relative_error(given, model.encode_text(tokens)) < EXACT
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 1
    assert "exists already" in again.stderr
