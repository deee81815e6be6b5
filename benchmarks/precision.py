"""The two presets: what bfloat16 costs in features and in zero-shot ranking.

ViT-B/32 and RN50 with random weights of trained scale; synthetic pictures against captions. Both
presets run on this machine's device; the error is to float32 at precision "highest".

    python -m benchmarks.precision --out benchmarks/results/precision.md
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import clip_jax
from benchmarks import report
from clip_jax.catalog import lookup
from clip_jax.nn import from_parameters
from clip_jax.parity import pictures
from tests.models import random_parameters, relative_error

PRESETS = {
    "parity": {"dtype": jnp.float32, "precision": "highest"},
    "float32, precision default": {"dtype": jnp.float32, "precision": "default"},
    "fast": {"dtype": jnp.bfloat16, "precision": "default"},
}
COLUMNS = (
    "model",
    "preset",
    "image features, relative",
    "text features, relative",
    "cosine, largest difference",
    "same first of 100 captions",
    "first stays in the first 5",
)
NAMES = "dog cat car tree house boat bird horse train plane cup chair lamp book shoe".split()
KINDS = "red blue small large old new wooden".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["ViT-B/32", "RN50"])
    parser.add_argument("--out", help="a Markdown file to write the table to")
    arguments = parser.parse_args()
    rows = [row for name in arguments.models for row in compare(name)]
    notes = (
        "Random weights of trained scale: with trained ones captions lie further apart, so the "
        "ranking is more stable than here."
    )
    text = "\n\n".join(["# Presets", report.header(), notes, report.table(rows, COLUMNS)])
    report.write(arguments.out, text)


def compare(name: str) -> list[tuple]:
    """A row for each preset of one model."""
    config = lookup(name).config
    preprocess = clip_jax.Preprocess(config.vision.image_size)
    images = np.stack([preprocess.pixels(_varied(image, i)) for i, image in _many(48)])
    captions = [f"a photo of a {kind} {noun}." for kind in KINDS for noun in NAMES][:100]
    model = from_parameters(config, random_parameters(config))
    expected, rows = None, []
    for preset, options in PRESETS.items():
        encoder = clip_jax.Encoder(model, batch_size=16, **options)
        image, text = encoder.images(images), encoder.texts(captions)
        expected = expected or (image, text)
        exact, given = _cosines(*expected), _cosines(image, text)
        first = exact.argmax(1)
        five = np.argsort(-given, axis=1)[:, :5]
        rows.append(
            (
                name,
                preset,
                f"{relative_error(image, expected[0]):.1e}",
                f"{relative_error(text, expected[1]):.1e}",
                f"{np.abs(given - exact).max():.1e}",
                f"{np.mean(given.argmax(1) == first):.0%}",
                f"{np.mean((five == first[:, None]).any(1)):.0%}",
            )
        )
    return rows


def _many(n: int):
    originals = pictures()
    return ((i, originals[i % len(originals)].convert("RGB")) for i in range(n))


def _varied(image, i: int):
    return image.rotate(7 * i).resize((200 + 5 * i, 260))


def _cosines(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    return unit[0] @ unit[1].T


if __name__ == "__main__":
    jax.devices()
    main()
