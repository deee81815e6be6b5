"""Full-size SigLIP models against transformers' `SiglipModel` in float32.

Each model is transformers' own class with random weights of trained scale, saved in its form and
read from there by us. The two run in processes of their own, one after the other, because the
largest model fills 7 GB.

    python -m benchmarks.parity_siglip --out benchmarks/results/parity.md
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report

TITLE = "# Parity with transformers, full-size SigLIP models"
FEATURES, LOGITS = 1e-5, 1e-3  # what is asked for
COLUMNS = (
    "model",
    "image features, relative",
    "text features, relative",
    "logits, absolute",
    "arrays there and back",
    "passes",
)
LARGE = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24)
SO400M = dict(
    hidden_size=1152, intermediate_size=4304, num_attention_heads=16, num_hidden_layers=27
)
# What differs from B/16 in both towers, and in the vision tower alone.
MODELS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "SigLIP B/16, 224 pixels": ({}, {}),
    "SigLIP L/16, 384 pixels": (LARGE, {"image_size": 384}),
    "SigLIP So400m/14, 384 pixels (27 x 27)": (SO400M, {"image_size": 384, "patch_size": 14}),
}
IDS = {"bos_token_id": None, "eos_token_id": 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", help="a Markdown file, in which this table is put or replaced")
    parser.add_argument(
        "--run", nargs=3, metavar=("SIDE", "NAME", "FOLDER"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.run:
        side, name, folder = arguments.run
        print(json.dumps((run_peer if side == "peer" else run_ours)(name, Path(folder))))
        return 0
    rows = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            _process("peer", name, folder)
            rows.append(_row(name, _process("ours", name, folder)))
        print(*rows[-1], sep="\t", file=sys.stderr, flush=True)
    text = "\n\n".join(
        [
            TITLE,
            report.header(),
            f"Random weights of trained scale, two images, four texts. Held equal: features within "
            f"{FEATURES:g} (L2 of the difference over L2 of the peer's), logits within {LOGITS:g} "
            f"at scale 100 and bias -10, and arrays, which come back under the peer's names "
            f"identical to the bit.",
            report.table(rows, COLUMNS),
        ]
    )
    report.write_section(arguments.out, text)
    return 0 if all(row[-1] == "yes" for row in rows) else 1


def run_peer(name: str, folder: Path) -> dict[str, Any]:
    """Saves transformers' model, and what it computes."""
    from clip_jax.parity.reference import import_library, quiet

    transformers, torch = import_library("transformers"), import_library("torch")
    both, image = MODELS[name]
    with quiet(), torch.no_grad():
        config = transformers.SiglipConfig(
            text_config={**both, **IDS}, vision_config={**both, **image}
        )
        torch.manual_seed(0)
        model = transformers.SiglipModel(config).eval()
        for path, array in model.named_parameters():  # what starts as 0 or 1 would hide a swap
            if path.endswith("bias") or "norm" in path:
                array.add_(torch.empty_like(array).normal_(0, 0.02))
        model.logit_scale.fill_(np.log(100))
        model.logit_bias.fill_(-10)
        model.save_pretrained(folder / "peer")
        size, length = config.vision_config.image_size, config.text_config.max_position_embeddings
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (2, size, size, 3), np.uint8)
        ids = rng.integers(2, config.text_config.vocab_size, (4, length))
        ids[0, 9:] = ids[1, 30:] = 1  # padding
        pixels = (images / np.float32(255) - np.float32(0.5)) * 2
        out = model(
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
            input_ids=torch.from_numpy(ids),
        )
    np.savez(
        folder / "results.npz",
        images=images,
        ids=ids,
        image=out.vision_model_output.pooler_output.numpy(),
        text=out.text_model_output.pooler_output.numpy(),
        logits=out.logits_per_image.numpy(),
    )
    return {}


def run_ours(name: str, folder: Path) -> dict[str, Any]:
    """Compares what we compute, and the arrays that we write."""
    import clip_jax
    from clip_jax.convert import read_checkpoint, to_huggingface
    from tests.models import relative_error

    expected = np.load(folder / "results.npz")
    model, _ = clip_jax.load(folder / "peer")
    images, ids = expected["images"], expected["ids"].astype(np.int32)
    errors = {
        "image": relative_error(model.encode_image(images), expected["image"]),
        "text": relative_error(model.encode_text(ids), expected["text"]),
        "logits": float(np.abs(np.asarray(model(images, ids)[0]) - expected["logits"]).max()),
    }
    to_huggingface(model.config, clip_jax.parameters(model), folder / "ours")
    there, back = (
        read_checkpoint(folder / side / "model.safetensors") for side in ("peer", "ours")
    )
    identical = there.keys() == back.keys() and all(
        there[path].shape == back[path].shape and there[path].tobytes() == back[path].tobytes()
        for path in there
    )
    return {"errors": errors, "identical": identical}


def _row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    errors, identical = found["errors"], found["identical"]
    passes = (
        max(errors["image"], errors["text"]) <= FEATURES
        and errors["logits"] <= LOGITS
        and identical
    )
    return (
        name,
        *(f"{error:.1e}" for error in errors.values()),
        "identical" if identical else "DIFFERENT",
        "yes" if passes else "NO",
    )


def _process(side: str, name: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.parity_siglip", "--run", side, name, folder]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
