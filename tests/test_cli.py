"""The command line: what it prints, where, and with which exit status."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.catalog import CATALOG
from clip_jax.cli import main
from clip_jax.cli import models as models_command
from clip_jax.cli.dispatch import COMMANDS
from clip_jax.errors import DownloadError
from clip_jax.nn import normalize
from clip_jax.weights import save_parameters
from tests.models import SMALL_VIT, random_parameters

pytest_plugins = ["tests.command_line"]

SCRIPT = Path(sys.executable).with_name("clip-jax")


def installed(*argv: object, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    """Runs the installed command."""
    return subprocess.run(
        [SCRIPT, *map(str, argv)], cwd=cwd, capture_output=True, text=True, timeout=120, **options
    )


# --- the frame


def test_installed_command_classifies_from_another_folder(folder):
    command = ("classify", "a.png", "--labels", "a dog", "a cat", "--model", "model", "--json")
    done = installed(*command, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    (result,) = json.loads(done.stdout)
    assert result["image"] == "a.png"
    assert {score["label"] for score in result["scores"]} == {"a dog", "a cat"}


def test_module_runs_as_the_command_does(folder):
    done = subprocess.run(
        [sys.executable, "-m", "clip_jax", "--version"], cwd=folder, capture_output=True, text=True
    )
    assert done.stdout == f"clip-jax {clip_jax.__version__}\n"


def test_bad_pictures_through_the_installed_command(folder):
    bad = ["empty.png", "text.png", "cut.png", "bomb.png", "missing.png", "other"]
    good = ["a.png", "dot.png", "line.png"]
    mixed = ["empty.png", "a.png", "text.png", "cut.png", "dot.png", "bomb.png", "line.png"]
    mixed += ["missing.png", "other"]
    arguments = (*mixed, "--labels", "x", "y", "--model", "model", "--json")
    done = installed("classify", *arguments, cwd=folder)
    assert done.returncode == 1
    assert [result["image"] for result in json.loads(done.stdout)] == good
    complaints = done.stderr.splitlines()
    assert len(complaints) == len(bad)
    for name in bad:
        assert [line for line in complaints if line.startswith(f"clip-jax: {name}: ")], name


def test_closed_pipe_is_no_error(folder):
    command = f"'{SCRIPT}' models | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
    assert done.stdout.strip() in ("141", "0")
    assert done.stderr == ""


@pytest.mark.parametrize(
    "command",
    [command.__name__.split(".")[-1].replace("evaluate", "eval") for command in COMMANDS],
)
def test_every_command_has_help_with_an_example(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"example: clip-jax {command} " in " ".join(out.split())


@pytest.mark.parametrize("argv", [(), ("clasify",), ("models", "--jsn"), ("classify", "a.png")])
def test_bad_arguments_exit_with_2_and_one_line(run, argv):
    status, out, err = run(*argv)
    assert (status, out, len(err)) == (2, "", 1)
    assert "--help" in err[0]


def test_interrupt_is_one_line(run, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(models_command, "run", interrupt)
    assert run("models") == (130, "", ["clip-jax: interrupted"])


def test_defects_of_ours_keep_their_traceback(monkeypatch):
    def fail(args):
        raise AssertionError

    monkeypatch.setattr(models_command, "run", fail)
    with pytest.raises(AssertionError):
        main(["models"])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
@pytest.mark.parametrize(
    ("command", "status", "unbuffered"),
    [
        ("models >&-", 0, ""),
        ("nope 2>&-", 2, ""),
        ("nope 2>/dev/full", 2, ""),
        ("--help >/dev/full", 1, "1"),  # argparse itself takes no notice of what fails at once
        ("models >/dev/full 2>&1", 1, ""),
    ],
)
def test_the_exit_status_is_right_where_nothing_can_be_said(folder, command, status, unbuffered):
    done = subprocess.run(
        ["bash", "-c", f"'{SCRIPT}' {command}"],
        cwd=folder,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr


# --- models


def test_models_lists_every_name(run, monkeypatch, tmp_path):
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ViT-B-32.pt").touch()
    status, out, err = run("models", "--json")
    assert (status, err) == (0, [])
    found = {model["name"]: model for model in json.loads(out)}
    assert list(found) == clip_jax.available_models()
    assert found["ViT-B/32"] == {
        "name": "ViT-B/32",
        "parameters": 151_277_313,
        "image_size": 224,
        "embed_dim": 512,
        "cached": True,
    }
    assert not found["RN50"]["cached"]

    status, out, _ = run("models")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == ["name", "parameters", "image", "D", "cached"]
    assert len(lines) == 1 + len(CATALOG)
    assert "ViT-B/32 151,277,313 224 512 yes".split() in [line.split() for line in lines]


# --- classify


def test_probabilities_are_the_softmax_of_scaled_cosines(run, folder):
    labels = ["a dog", "a cat", "!"]
    command = ("classify", "b.jpg", "a.png", "--labels", *labels, "--model", "model", "--json")
    status, out, err = run(*command)
    assert (status, err) == (0, [])

    model, preprocess = clip_jax.load(folder / "model")
    images = np.stack([preprocess(clip_jax.open_image(folder / n)) for n in ("b.jpg", "a.png")])
    text = normalize(model.encode_text(clip_jax.tokenize(labels)))
    logits = np.exp(model.logit_scale[...]) * normalize(model.encode_image(images)) @ text.T
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    results = json.loads(out)
    assert [result["image"] for result in results] == ["b.jpg", "a.png"]
    for result, row in zip(results, expected, strict=True):
        scores = result["scores"]
        found = [score["probability"] for score in scores]
        assert found == sorted(found, reverse=True)
        for score in scores:
            np.testing.assert_allclose(
                score["probability"], row[labels.index(score["label"])], rtol=1e-5
            )


def test_template_goes_around_labels_with_braces(run):
    """str.format would stumble over both."""
    command = ("classify", "a.png", "--model", "model", "--json", "--labels")
    _, plain, _ = run(*command, "a {x} photo {0}", "a y photo {0}")
    status, out, _ = run(*command, "{x}", "y", "--template", "a {} photo {0}")
    assert status == 0
    assert [score["probability"] for score in json.loads(out)[0]["scores"]] == [
        score["probability"] for score in json.loads(plain)[0]["scores"]
    ]


@pytest.mark.parametrize(("top", "shown"), [(1, 1), (2, 2), (9, 3)])
def test_top_prints_the_best(run, top, shown):
    command = ("classify", "a.png", "--labels", "x", "y", "z", "--model", "model", "--json")
    _, everything, _ = run(*command)
    status, out, _ = run(*command, "--top", top)
    assert status == 0
    assert json.loads(out)[0]["scores"] == json.loads(everything)[0]["scores"][:shown]


def test_human_output_is_a_table_for_each_picture(run):
    command = ("classify", "a.png", "b.jpg", "--labels", "x", "long", "--model", "model")
    status, out, err = run(*command)
    assert (status, err) == (0, [])
    blocks = out.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["a.png", "b.jpg"]
    for block in blocks:
        rows = [re.fullmatch(r"  (\w+) +(\d+\.\d\d)%", row) for row in block.splitlines()[1:]]
        assert sum(float(row[2]) for row in rows) == pytest.approx(100, abs=0.02)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--labels", ""),
        ("--labels", "a dog", " \t"),
        ("--labels", "same", "same"),
        ("--labels", "x", "--template", "no place"),
        ("--labels", "x", "--template", ""),
        ("--labels", "x", "--top", "0"),
        ("--labels", "x", "--top", "-1"),
        ("--labels", "x", "--top", "many"),
        ("--labels", "\udcff"),
    ],
)
def test_bad_labels_templates_and_counts_exit_with_2(run, arguments):
    status, out, err = run("classify", "a.png", "--model", "model", *arguments)
    assert (status, out, len(err)) == (2, "", 1)


def test_label_that_is_too_long_is_quoted(run):
    status, out, err = run("classify", "a.png", "--labels", "dog " * 100, "--model", "model")
    assert (status, out, len(err)) == (1, "", 1)
    assert "dog dog" in err[0] and "77" in err[0]


@pytest.mark.parametrize("model", ["ViT-B/33", "nowhere", "other", "text.png", "empty.png"])
def test_what_is_no_model_is_one_line(run, model):
    status, out, err = run("classify", "a.png", "--labels", "x", "--model", model)
    assert (status, out, len(err)) == (1, "", 1)
    assert model in err[0]


def test_without_a_network_the_model_that_needs_none_is_named(run, monkeypatch):
    def load(name, **_):
        raise DownloadError(f"{name} could not be downloaded: no connection")

    monkeypatch.setattr(clip_jax, "load", load)
    status, out, err = run("classify", "a.png", "--labels", "x")
    assert (status, out, len(err)) == (1, "", 1)
    assert "ViT-B/32 could not be downloaded: no connection" in err[0]
    assert "--model emoji" in err[0]


@pytest.mark.filterwarnings("default")
def test_a_compile_cache_on_a_cpu_is_left_out_with_a_word(run, tmp_path):
    command = ("classify", "a.png", "--labels", "x", "y", "--model", "model", "--compile-cache")
    status, out, err = run(*command, str(tmp_path / "programs"))
    assert status == 0 and "x" in out
    assert len(err) == 1 and "for GPUs and TPUs" in err[0]
    assert not (tmp_path / "programs").exists()


def test_no_weights_are_loaded_for_pictures_that_do_not_exist(run, monkeypatch):
    def load(*_, **__):
        raise AssertionError

    monkeypatch.setattr(clip_jax, "load", load)
    status, out, err = run("classify", "missing\n.png", "--labels", "x", "--json")
    assert (status, json.loads(out), len(err)) == (1, [], 1)


def test_more_pictures_than_a_batch_keep_their_order(run, folder, tmp_path):
    names = []
    for i in range(35):
        names.append(str(tmp_path / f"{i}.png"))
        Image.new("RGB", (33, 33), (7 * i, 0, 0)).save(names[-1])
    names.insert(34, str(folder / "empty.png"))  # between the last two
    status, out, err = run("classify", *names, "--labels", "x", "y", "--model", "model", "--json")
    assert (status, len(err)) == (1, 1)
    assert [r["image"] for r in json.loads(out)] == [n for n in names if "empty" not in n]


def test_weights_that_are_not_finite_are_an_error(run, tmp_path):
    params = random_parameters(SMALL_VIT)
    params["visual"]["proj"] = np.full_like(params["visual"]["proj"], np.nan)
    save_parameters(SMALL_VIT, params, tmp_path / "broken")
    command = ("classify", "a.png", "--labels", "x", "y", "--model", tmp_path / "broken")
    status, out, err = run(*command)
    assert (status, out, len(err)) == (1, "", 1)
    assert "not finite" in err[0]


def test_parity_without_torch_says_how_to_install_it(run, monkeypatch):
    for name in ("torch", "torchvision", "clip"):
        monkeypatch.setitem(sys.modules, name, None)
    status, out, err = run("parity", "model")
    assert (status, out, len(err)) == (1, "", 1)
    assert "pip install torch==2.13.0 torchvision==0.28.0 clip-anytorch" in err[0]
