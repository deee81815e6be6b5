"""Graphs of ONNX run in JavaScript: the small model in onnxruntime-node."""

import json
import shutil
import subprocess

import numpy as np
import pytest

import clip_jax
from clip_jax import export
from clip_jax.convert import to_huggingface
from tests.models import random_images, relative_error, to_float

EXACT = 1e-5  # relative, in float32

SCRIPT = """
const ort = require("onnxruntime-node");
const { images, tokens, rows } = require("./given.json");
async function main() {
  const image = await ort.InferenceSession.create("exported/image.onnx");
  const text = await ort.InferenceSession.create("exported/text.onnx");
  const pixels = new ort.Tensor("float32", Float32Array.from(images), [rows, 3, 48, 48]);
  const ids = new ort.Tensor("int64", BigInt64Array.from(tokens.map(BigInt)), [rows, 77]);
  const { image_embeds } = await image.run({ pixel_values: pixels });
  const { text_embeds } = await text.run({ input_ids: ids });
  console.log(JSON.stringify([image_embeds.data, text_embeds.data].map((x) => Array.from(x))));
}
main();
"""


def run_node(folder, name, script):
    """What a script prints, from JSON."""
    (folder / name).write_text(script)
    done = subprocess.run(["node", name], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def install(folder, package):
    if shutil.which("npm") is None:
        pytest.skip("Node isn't installed")
    # Its scripts would download what GPUs need.
    options = ["--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(["npm", "install", *options, package], cwd=folder, check=True, timeout=600)


TRANSFORMERS = """
import { AutoTokenizer, CLIPTextModelWithProjection, env } from "@huggingface/transformers";
env.allowRemoteModels = false;
env.localModelPath = "./";
const tokenizer = await AutoTokenizer.from_pretrained("web");
const model = await CLIPTextModelWithProjection.from_pretrained("web", { dtype: "fp32" });
const inputs = tokenizer(["a pear", "Two cats on a MAT!"], { padding: true });
const { text_embeds } = await model(inputs);
console.log(JSON.stringify([inputs.input_ids.tolist().flat().map(Number), text_embeds.tolist()]));
"""


@pytest.mark.slow
def test_transformers_js_makes_the_ids_and_embeddings_of_a_folder(tmp_path):
    pytest.importorskip("jax2onnx")
    install(tmp_path, "@huggingface/transformers")
    model, _ = clip_jax.load("emoji")
    export.export_onnx(model, tmp_path / "graphs", layout="nchw")
    to_huggingface(model.config, clip_jax.parameters(model), tmp_path / "web")
    (tmp_path / "web" / "onnx").mkdir()
    shutil.move(tmp_path / "graphs" / "text.onnx", tmp_path / "web" / "onnx" / "text_model.onnx")
    ids, embeddings = run_node(tmp_path, "run.mjs", TRANSFORMERS)
    tokens = clip_jax.load_tokenizer(tmp_path / "web")(["a pear", "Two cats on a MAT!"])
    length = len(ids) // 2
    assert ids == tokens[:, :length].ravel().tolist()
    assert relative_error(embeddings, model.encode_text(tokens)) < EXACT


@pytest.mark.slow
def test_onnxruntime_node_embeds_as_the_model_does(tmp_path):
    pytest.importorskip("jax2onnx")
    install(tmp_path, "onnxruntime-node")
    model, _ = clip_jax.load("emoji")
    export.export_onnx(model, tmp_path / "exported", layout="nchw")
    images = np.array(to_float(random_images(3, 48)))
    tokens = clip_jax.tokenize(["a pear", "two cats on a mat", "!"])
    planes = images.transpose(0, 3, 1, 2).ravel().tolist()
    given = {"images": planes, "tokens": tokens.ravel().tolist(), "rows": 3}
    (tmp_path / "given.json").write_text(json.dumps(given))
    image_embeds, text_embeds = run_node(tmp_path, "run.js", SCRIPT)
    expected = np.ravel(model.encode_image(images))
    assert relative_error(image_embeds, expected) < EXACT
    assert relative_error(text_embeds, np.ravel(model.encode_text(tokens))) < EXACT
