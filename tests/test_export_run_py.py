"""`run.py` of an exported folder refuses what its programs would take for something else."""

import re
import runpy
import sys

import numpy as np
import pytest

from clip_jax import export
from tests.models import TINY_VIT, random_images, random_tokens, relative_error, small

N = TINY_VIT.vision.image_size
IMAGES, TOKENS = np.zeros((2, N, N, 3), np.float32), random_tokens(2)


@pytest.fixture(scope="module")
def model():
    return small(TINY_VIT)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    export.export(model, root / "pixels", platforms=["cpu"])
    frames = {"image_input": "frames", "frame_size": (9, 7)}
    export.export(model, root / "frames", platforms=["cpu"], **frames)
    return root


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Runs the program on an array or a file's content; gives its status, error and embeddings."""

    def call(kind: str, given, *options, program="pixels", out="y.npy"):
        monkeypatch.chdir(tmp_path)
        if isinstance(given, bytes):
            (tmp_path / "x.npy").write_bytes(given)
        elif given is not None:
            np.save(tmp_path / "x.npy", given)
        argv = ["run.py", f"--{kind}", "x.npy", "--out", out, *map(str, options)]
        monkeypatch.setattr(sys, "argv", argv)
        status = 0
        try:
            runpy.run_path(str(folder / program / "run.py"), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        written = tmp_path / out
        rows = np.load(written) if written.is_file() else None
        return status, capsys.readouterr().err.strip().splitlines()[-1:], rows

    return call


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        # Bytes in another dtype would be taken for normalised images.
        ("images", IMAGES.astype(np.int64), "uint8 pixels, or normalised floats. Got int64"),
        ("images", IMAGES.astype(np.uint16), "Got uint16"),
        ("images", IMAGES.astype(np.complex64), "Got complex64"),
        ("images", np.zeros((2, 3, N, N)), r"Got \[2, 3, "),
        # JAX clamps an id that is out of range, and wraps a long one.
        ("texts", np.full((1, 5), 60000), "token ids must be 0 to 49407. Got 60000 to 60000"),
        ("texts", np.full((1, 5), -3), "Got -3 to -3"),
        ("texts", np.full((1, 5), 2**40), "Got 1099511627776"),
        ("texts", TOKENS.astype(np.float32), "whole numbers. Got float32"),
        ("texts", np.zeros((1, 78), np.int32), "texts must have 1 to 77 ids. Got 78"),
        ("texts", np.zeros((1, 0), np.int32), "Got 0"),
        ("images", None, "x.npy is no file with one array"),
        ("images", b"", "x.npy is no file with one array"),
        ("images", b"hello", "x.npy is no file with one array"),
        ("images", np.array([[None]]), "x.npy is no file with one array"),
    ],
)
def test_rows_that_a_program_would_misread_are_refused_in_a_line(run, kind, given, message):
    status, (error,), rows = run(kind, given)
    assert status == 2 and rows is None
    assert re.search(message, error), error


def test_frames_are_bytes(run):
    status, (error,), rows = run("images", np.ones((1, 9, 7, 3), np.float32), program="frames")
    assert status == 2 and rows is None and "images must be uint8. Got float32" in error


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_no_rows_would_lose_them_all(run, batch):
    status, (error,), rows = run("images", IMAGES, "--batch", batch)
    assert status == 2 and rows is None and "--batch must be at least 1" in error


def test_the_result_has_the_name_that_was_asked_for(run, model, tmp_path):
    pixels = random_images(3, N)
    status, _, rows = run("images", pixels, "--batch", 2, out="y")
    assert status == 0 and relative_error(rows, model.encode_image(pixels)) < 1e-6
    (tmp_path / "there").mkdir()
    for name in ("there", "none/y.npy"):
        status, (error,), _ = run("images", pixels, out=name)
        assert status == 2 and "--out must be a file in a folder that exists" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "x.npy", "y"]


@pytest.mark.parametrize("order", [">", "<"])
def test_either_byte_order_is_read(run, model, order):
    status, _, rows = run("texts", TOKENS.astype(f"{order}i8"))
    assert status == 0 and relative_error(rows, model.encode_text(TOKENS)) < 1e-6


def test_a_folder_for_another_platform_says_so(run, folder, model):
    export.export(model, folder / "tpu", platforms=["tpu"])
    status, (error,), _ = run("images", IMAGES, program="tpu")
    assert status == 2 and "these programs are for tpu; JAX computes on cpu here" in error
