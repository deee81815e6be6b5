"""The model that comes with the package."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import clip_jax.catalog
from clip_jax.catalog import CATALOG
from clip_jax.nn import flatten, parameters
from clip_jax.weights import cached, load, official_file, read_native


def test_the_bundled_model_is_what_the_catalog_says():
    entry, folder = CATALOG["emoji"], clip_jax.weights.native_folder("emoji")
    config, params = read_native(folder)
    assert config == entry.config
    assert {array.dtype for array in flatten(params).values()} == {np.dtype(np.float16)}
    weights = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == entry.sha256
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20e6
    notice = (folder / "NOTICE").read_text()
    assert all(name in notice for name in ("Noto Emoji", "Twemoji", "Fluent", "emojibase"))
    with pytest.raises(ValueError, match="'emoji' is no official model"):
        official_file("emoji")


def test_the_bundled_model_loads_where_nothing_can_be_fetched_or_written(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr(socket, "socket", None)
    assert cached("emoji")
    model, preprocess = load("emoji")
    assert model.config.vision.image_size == preprocess.image_size == 48
    assert {array.dtype for array in flatten(parameters(model)).values()} == {np.dtype(np.float32)}
    assert not (tmp_path / "none").exists()


@pytest.mark.long
def test_an_installed_wheel_carries_the_bundled_model(tmp_path):
    source = tmp_path / "source"
    root = Path(__file__).parents[1]
    source.mkdir()
    for name in ("clip_jax", "convert"):
        shutil.copytree(root / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels, installed = tmp_path / "wheels", tmp_path / "installed"
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, source], check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)
    program = (
        "import clip_jax, socket; clip_jax.load; socket.socket = None;"
        "model, preprocess = clip_jax.load('emoji');"
        "print(clip_jax.__file__, model.config.embed_dim)"
    )
    environment = os.environ | {"PYTHONPATH": str(installed), "CLIP_JAX_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", program]
    run = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    place, embed_dim = run.stdout.split()
    assert place.startswith(str(installed))
    assert int(embed_dim) == CATALOG["emoji"].config.embed_dim
