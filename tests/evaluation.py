"""Data and helpers of the tests of evaluations."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.embed import Columns, embed
from clip_jax.encoder import Encoder
from clip_jax.evaluate import captions, classifier
from clip_jax.evaluate import data as data_module
from clip_jax.nn import model_digest
from tests.archives import write_tar
from tests.pictures import COLOURS

Run = Callable[..., tuple[int, str, list[str]]]


def unit(x) -> np.ndarray:
    """Rows of norm 1, in float64."""
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def blobs(rows: int, columns: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that overlap, of unequal scales and means, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % classes)
    centres = rng.normal(size=(classes, columns))
    features = centres[labels] + rng.normal(size=(rows, columns)) * 1.5
    return (features * rng.uniform(0.3, 3, columns) + rng.normal(size=columns) * 2), labels


def write_pictures(folder: Path, count: int) -> None:
    """Class folders of noisy pictures, so many of each colour."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng(i).normal(0, 25, (40, 50, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@contextlib.contextmanager
def shared_encoders() -> Iterator[None]:
    """All evaluations of a model share its programs, which take longer than the evaluations."""
    made: dict[str, Encoder] = {}

    def encoder(model, batch_size=None):
        digest = model_digest(model)
        if digest not in made:
            made[digest] = Encoder(model, batch_size=8)
        return made[digest]

    with pytest.MonkeyPatch.context() as patch:
        for module in (data_module, captions, classifier):
            patch.setattr(module, "Encoder", encoder)
        yield


def write_data(root: Path, model: clip_jax.CLIP) -> None:
    """A model, ten pictures of each of three colours in class folders, and what holds the same."""
    clip_jax.save(model, root / "model")
    write_pictures(root / "pictures", 10)
    members, rows = {}, []
    for label, name in enumerate(COLOURS):
        for i in range(10):
            members[f"{name}{i}.png"] = (root / "pictures" / name / f"{i}.png").read_bytes()
            members[f"{name}{i}.cls"] = str(label).encode()
            texts = [f"something {name}", f"number {i}"]
            rows.append({"image": f"pictures/{name}/{i}.png", "captions": texts})
            members[f"{name}{i}.json"] = json.dumps({"captions": texts, "label": name}).encode()
    write_tar(root / "in.tar", members)
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "classes.txt").write_text("\n".join(COLOURS))
    (root / "templates.txt").write_text("a photo of a {}.\n\na {} thing\n")
    options = {"what": "both", "columns": Columns(others=("label",)), "progress": False}
    embed(root / "in.tar", root / "model", root / "embedded", batch_size=8, **options)
