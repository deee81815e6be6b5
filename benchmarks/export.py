"""Exported models: how exact they are, how large, how soon they embed, and their rate as ONNX.

Weights are random. Each model has a process of its own; contenders alternate, medians are printed.

    python -m benchmarks.export --out benchmarks/results/export.md

ONNX needs the extra `onnx`, and its peer PyTorch's reference: `--reference PYTHON` names an
interpreter that has it, where this one doesn't.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report

ROOT = Path(__file__).resolve().parent.parent
CORES = len(os.sched_getaffinity(0))
TITLES = {
    "exact": "# Exported programs against the model",
    "start": "# The first embedding from an exported folder",
    "frames": "# Frames, resized in the exported program",
    "onnx": "# ONNX graphs in ONNX Runtime",
}
EXACT_GELU = "ViT-B/32, exact GELU as in OpenCLIP"
SIGLIP = "ViT-B-16-SigLIP/webli"
_ENCODE = """
import sys, numpy as np, clip_jax
model, _ = clip_jax.load(sys.argv[1])
np.save(sys.argv[3], np.asarray(model.encode_image(np.load(sys.argv[2]))))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="*", default=list(TITLES), choices=TITLES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--reference", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--out", help="a Markdown file, in which the tables are put or replaced")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, *rest = arguments.measure
        print(json.dumps(MEASURES[name](*rest)))
        return 0
    for name in arguments.tables:
        with tempfile.TemporaryDirectory() as folder:
            text = TABLES[name](Path(folder), arguments)
        text = f"{TITLES[name]}\n\n{report.header()}\n\n{text}"
        report.write_section(arguments.out, text)
    return 0


def _run(name: str, *rest: str, python: str = sys.executable) -> Any:
    command = [python, "-m", "benchmarks.export", "--measure", name, *rest]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{name} of {rest} failed")
    return json.loads(done.stdout.splitlines()[-1])


# --- programs


def exact_table(folder: Path, arguments: argparse.Namespace) -> str:
    import clip_jax

    rows = []
    for name in (*clip_jax.available_models()[:9], EXACT_GELU, SIGLIP):
        print(name, file=sys.stderr, flush=True)
        rows.append((name, *_run("exact", name)))
    columns = ("model", "images", "texts", "image.stablehlo, bytes", "text.stablehlo, bytes")
    return (
        "Relative difference (L2) of the embeddings of 4 images and 4 texts, float32, on a CPU, "
        "programs for cpu, cuda and tpu with any batch; and their sizes without weights. 0 is "
        "equal to the bit.\n\n" + report.table(rows, columns)
    )


def exact(name: str) -> list[Any]:
    import clip_jax
    from tests.models import random_images, random_tokens, relative_error

    model = _model(name)
    images, text = random_images(4, model.config.vision.image_size), model.config.text
    tokens = random_tokens(4) if text.can_be_cut else _any_tokens(text)
    with tempfile.TemporaryDirectory() as folder:
        clip_jax.export.export(model, folder)
        sizes = [(Path(folder) / f"{kind}.stablehlo").stat().st_size for kind in ("image", "text")]
        exported = clip_jax.export.load(folder)
        exported.batch_size = 4  # as many rows as the model gets
        errors = [
            relative_error(exported.images(images), model.encode_image(images)),
            relative_error(exported.texts(tokens), model.encode_text(tokens)),
        ]
    return [*(f"{error:.1e}" for error in errors), *sizes]


def _model(name: str) -> Any:
    from clip_jax.catalog import lookup
    from clip_jax.convert.open_clip_config import from_document
    from clip_jax.open_clip_catalog import lookup_tag
    from tests.models import small

    if name == SIGLIP:
        tag = lookup_tag(name)
        assert tag is not None
        return small(from_document(tag.open_clip_config()))
    if name == EXACT_GELU:
        return small(dataclasses.replace(lookup("ViT-B/32").config, activation="gelu"))
    return small(lookup(name).config)


def _any_tokens(text: Any) -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, text.vocab_size, (4, text.context_length))
    return ids.astype(np.int32)


def start_table(folder: Path, arguments: argparse.Namespace) -> str:
    _run("prepare", str(folder))
    native, images, out = (str(folder / name) for name in ("native", "images.npy", "out.npy"))
    run = [sys.executable, str(folder / "exported" / "run.py"), "--images", images, "--out", out]
    ours = [sys.executable, "-c", _ENCODE, native, images, out]
    without = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    contenders = {"exported, run.py": (run, without), "clip_jax.load, encode_image": (ours, None)}
    seconds = {name: [] for name in contenders}
    for turn in range(arguments.rounds + 1):
        for name, (command, environment) in contenders.items():
            begin = time.perf_counter()
            subprocess.run(command, check=True, cwd=folder, env=environment)
            if turn:  # before, the files were not in the system's memory
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    rows = [(name, f"{value:.2f}", f"{first / value:.2f}") for name, value in medians.items()]
    return (
        f"ViT-B/32, one image: seconds of a fresh process from its start to its end, medians of "
        f"{arguments.rounds} alternating rounds. run.py runs without this package; the other loads "
        f"a native folder of the same model.\n\n"
        + report.table(rows, ("process", "seconds", "time of run.py against it"))
    )


def prepare(folder: str) -> None:
    import clip_jax
    from tests.models import random_images

    model = _model("ViT-B/32")
    clip_jax.save(model, f"{folder}/native")
    clip_jax.export.export(model, f"{folder}/exported", platforms=["cpu"])
    np.save(f"{folder}/images.npy", random_images(1, 224))


def frames_table(folder: Path, arguments: argparse.Namespace) -> str:
    sizes = ("480x640", "720x1280", "1080x1920", "640x480", "100x150")
    rows = [(size, *_run("frames", size)) for size in sizes]
    return (
        "ViT-B/32's image tower over 2 frames of noise, against Pillow's pixels and the model.\n\n"
        + report.table(rows, ("frames", "pixels that differ", "features, relative difference"))
    )


def frames(size: str) -> list[Any]:
    import jax
    from PIL import Image

    import clip_jax
    from tests.models import relative_error

    height, width = map(int, size.split("x"))
    given = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    model = _model("ViT-B/32")
    preprocess = clip_jax.Preprocess(224)
    pixels = np.stack([preprocess.pixels(Image.fromarray(frame)) for frame in given])
    resized = jax.jit(preprocess.on_device(height, width))(given)
    with tempfile.TemporaryDirectory() as folder:
        clip_jax.export.export(
            model, folder, platforms=["cpu"], image_input="frames", frame_size=(height, width)
        )
        exported = clip_jax.export.load(folder)
        exported.batch_size = 2
        error = relative_error(exported.images(given), model.encode_image(pixels))
    return [int((np.asarray(resized) != pixels).sum()), f"{error:.1e}"]


# --- ONNX


def onnx_table(folder: Path, arguments: argparse.Namespace) -> str:
    names = ("ViT-B/32", "RN50", EXACT_GELU)
    rows = [(name, *_run("onnx_exact", name)) for name in names]
    text = "Relative difference (L2) of the embeddings of 3 images and 4 texts, float32.\n\n"
    text += report.table(rows, ("model", "images", "texts"))
    _run("onnx_ours", str(folder))
    try:
        _run("onnx_peer", str(folder), python=arguments.reference)
    except RuntimeError:
        return f"{text}\n\nThe rate was not measured: PyTorch's reference isn't installed."
    rows = _run("onnx_rate", str(folder), str(arguments.rounds))
    columns = ("ViT-B/32", "ours, ms", "torch.onnx, ms", "our rate against it")
    return (
        f"{text}\n\nMilliseconds of a batch in ONNX Runtime on {CORES} threads, medians of "
        f"{arguments.rounds} alternating rounds, of our graph and of the one that "
        f"torch.onnx.export (opset 17, any batch) makes of the reference; texts have 77 ids.\n\n"
        + report.table(rows, columns)
    )


def onnx_exact(name: str) -> list[str]:
    import clip_jax
    from tests.models import random_images, random_tokens, relative_error, to_float

    model = _model(name)
    images = np.array(to_float(random_images(3, model.config.vision.image_size)))
    tokens = random_tokens(4)
    with tempfile.TemporaryDirectory() as folder:
        clip_jax.export.export_onnx(model, folder)
        given = [_onnx(f"{folder}/image.onnx")(images), _onnx(f"{folder}/text.onnx")(tokens)]
    expected = [model.encode_image(images), model.encode_text(tokens)]
    return [f"{relative_error(a, b):.1e}" for a, b in zip(given, expected, strict=True)]


def _onnx(path: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    dtype = np.int64 if "int64" in taken.type else np.float32
    return lambda rows: session.run(None, {taken.name: rows.astype(dtype)})[0]


def onnx_ours(folder: str) -> None:
    import clip_jax

    clip_jax.export.export_onnx(_model("ViT-B/32"), f"{folder}/ours", layout="nchw")


def onnx_peer(folder: str) -> None:
    from benchmarks.encode import _export_onnx
    from clip_jax.catalog import lookup
    from tests import reference
    from tests.models import reference_numbers

    numbers = reference_numbers(lookup("ViT-B/32").config)
    model = reference.randomize(reference.build(numbers), seed=0)
    images, tokens = _batch(2)
    axes = {"x": {0: "b"}, "y": {0: "b"}}
    _export_onnx(model.visual, images, f"{folder}/image.onnx", dynamic_axes=axes)
    _export_onnx(
        model.encode_text, tokens.astype(np.int64), f"{folder}/text.onnx", dynamic_axes=axes
    )


def _batch(rows: int) -> tuple[np.ndarray, np.ndarray]:
    from tests.models import random_images, random_tokens, to_float

    images = np.array(to_float(random_images(rows, 224))).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images), random_tokens(rows)


def onnx_rate(folder: str, rounds: str) -> list[list[str]]:
    rows = []
    for kind, given in zip(("image", "text"), _batch(32), strict=True):
        embeds = {
            "ours": _onnx(f"{folder}/ours/{kind}.onnx"),
            "peer": _onnx(f"{folder}/{kind}.onnx"),
        }
        for size in (1, 32):
            calls, times = (8 if size == 1 else 1), {name: [] for name in embeds}
            for turn in range(int(rounds) + 1):
                for name in sorted(embeds, reverse=turn % 2 == 1):
                    begin = time.perf_counter()
                    for _ in range(calls):
                        embeds[name](given[:size])
                    if turn:
                        times[name].append(1000 * (time.perf_counter() - begin) / calls)
            ours, peer = (statistics.median(times[name]) for name in ("ours", "peer"))
            rows.append(
                [f"{kind}s, batch {size}", f"{ours:.0f}", f"{peer:.0f}", f"{peer / ours:.2f}"]
            )
    return rows


TABLES = {
    "exact": exact_table,
    "start": start_table,
    "frames": frames_table,
    "onnx": onnx_table,
}
MEASURES = {
    f.__name__: f for f in (exact, prepare, frames, onnx_exact, onnx_ours, onnx_peer, onnx_rate)
}


if __name__ == "__main__":
    sys.exit(main())
