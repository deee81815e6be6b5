"""The programs in examples/ run as their docstrings say."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
from tests.models import SMALL_RESNET, fresh

EXAMPLES = Path(__file__).parents[1] / "examples"
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 210)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ten pictures of each of three colours, sorted into folders."""
    root = tmp_path_factory.mktemp("examples") / "pictures"
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(10):
            noisy = np.array(colour) + rng.normal(0, 15, (50, 70, 3))
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example in this process and gives what it printed."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    clip_jax.save(fresh(SMALL_RESNET), path)
    return path


def test_untrained_makes_a_model_and_a_picture_that_classify(run, tmp_path, capsys):
    from clip_jax.cli import main

    assert "untrained" in run("untrained.py", tmp_path / "new")
    model, picture = (str(tmp_path / "new" / name) for name in ("model", "picture.png"))
    assert main(["classify", picture, "--labels", "a dog", "a cat", "--model", model]) == 0
    assert "a dog" in capsys.readouterr().out


def test_zero_shot_predicts_every_picture_of_a_folder(run, folder, model):
    out = run("zero_shot.py", folder, "--model", model)
    assert out.count("Top predictions:") == 30
    assert re.search(r"Right: \d+ of 30$", out.strip())
    block = out.split("Top predictions:")[1]
    percents = [float(p) for p in re.findall(r"([\d.]+)%", block)]
    assert len(percents) == 3 and percents == sorted(percents, reverse=True)
    assert sum(percents) == pytest.approx(100, abs=0.02)


def test_zero_shot_predicts_one_picture(run, folder, model):
    out = run("zero_shot.py", folder / "red" / "3.png", "--model", model)
    assert out.count("Top predictions:") == 1
    assert all(f"{name}: " in out for name in COLOURS)


def test_linear_probe_separates_colours(run, folder, tmp_path):
    """Random features tell colours apart; a probe that mixed up its rows would not."""
    assert run("untrained.py", tmp_path)
    out = run("linear_probe.py", folder, "--model", tmp_path / "model", "--batch-size", 7)
    train, test = (float(p) for p in re.findall(r"accuracy: ([\d.]+)%", out))
    assert train >= 95 and test >= 95
