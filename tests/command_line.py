"""Fixtures for the tests of the command line: a folder of good and bad input, and its commands."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
from tests.calls import Run, runner
from tests.models import SMALL_VIT, fresh


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model folder and pictures, good and bad."""
    root = tmp_path_factory.mktemp("cli")
    clip_jax.save(fresh(SMALL_VIT), root / "model")
    rng = np.random.default_rng(0)
    for name, size in [("a.png", (40, 60)), ("b.jpg", (60, 40)), ("dot.png", (1, 1))]:
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / name)
    Image.new("RGB", (5000, 1), "red").save(root / "line.png")
    (root / "empty.png").touch()
    (root / "text.png").write_text("not a picture")
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:3000])
    (root / "bomb.png").write_bytes(_bomb())
    (root / "other").mkdir()
    (root / "other" / "notes.txt").write_text("not a model")
    return root


def _bomb() -> bytes:
    """A PNG that says it has 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.fixture
def run(folder, monkeypatch, capsys) -> Run:
    """Runs a command in this process, in the folder of the pictures."""
    monkeypatch.chdir(folder)
    return runner(capsys)
