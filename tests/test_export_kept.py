"""Folders that releases have exported run on the JAX that is installed, whatever wrote them.

Each folder in tests/data/ was made once, by the release in its name, and is never made again:

    python -m tests.test_export_kept

writes the one of this release: `MODEL` with random parameters, and in an .npz beside it two
images, four texts, and what the model made of them. The next release's comes beside the others.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clip_jax import export
from clip_jax.config import CLIPConfig, TextConfig, ViTConfig
from clip_jax.version import __version__
from tests.models import random_images, relative_error, small

KEPT = Path(__file__).parent / "data"
FOLDERS = sorted(path for path in KEPT.glob("exported-*") if path.is_dir())
EXPORTED = 1e-6  # relative, in float32

MODEL = CLIPConfig(
    embed_dim=16,
    vision=ViTConfig(image_size=24, patch_size=8, width=32, num_layers=1, num_heads=2),
    text=TextConfig(width=32, num_layers=1, num_heads=2, context_length=12, vocab_size=61),
)


def make() -> None:
    """Writes the folder of this release."""
    folder, model = KEPT / f"exported-{__version__}", small(MODEL)
    export.export(model, folder)
    images = random_images(2, MODEL.vision.image_size)
    tokens = np.random.default_rng(0).integers(0, 60, (4, 12), np.int32)
    tokens[:, -1] = 60  # the end token
    embeddings = {
        "image_embeddings": model.encode_image(images),
        "text_embeddings": model.encode_text(tokens),
    }
    np.savez(f"{folder}.npz", images=images, tokens=tokens, **embeddings)


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def kept(request):
    return request.param, dict(np.load(f"{request.param}.npz"))


def test_this_release_or_an_earlier_one_is_kept():
    assert FOLDERS


def test_a_kept_folder_still_embeds_as_it_did(kept):
    folder, expected = kept
    exported = export.load(folder)
    given = exported.images(expected["images"])
    assert relative_error(given, expected["image_embeddings"]) < EXPORTED
    given = exported.texts(expected["tokens"])
    assert relative_error(given, expected["text_embeddings"]) < EXPORTED


def test_the_program_in_a_kept_folder_still_runs(kept, tmp_path):
    pytest.importorskip("safetensors")
    folder, expected = kept
    np.save(tmp_path / "x.npy", expected["images"])
    command = [sys.executable, folder / "run.py", "--images", "x.npy", "--out", "y.npy"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    given = np.load(tmp_path / "y.npy")
    assert relative_error(given, expected["image_embeddings"]) < EXPORTED


if __name__ == "__main__":
    make()
