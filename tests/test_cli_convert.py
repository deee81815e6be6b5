"""`clip-jax convert`: what it writes, and that bad conversions leave nothing behind."""

import builtins
import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

import clip_jax
from clip_jax.convert import from_pytorch, read_checkpoint, to_pytorch
from clip_jax.weights import read_native
from tests.models import SMALL_RESNET, SMALL_VIT, random_parameters, small, unsaid_options
from tests.reference import available as torch_available

pytest_plugins = ["tests.command_line"]

needs_torch = pytest.mark.skipif(not torch_available(), reason="PyTorch is not installed")


def half(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Some arrays in float16, as official archives have them."""
    return {
        name: array.astype(np.float16)
        if name.endswith(("in_proj_weight", "conv1.weight"))
        else array
        for name, array in arrays.items()
    }


def write_safetensors(config, path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import save_file

    arrays = half(to_pytorch(config, random_parameters(config)))
    save_file(arrays, path)
    return arrays


@pytest.mark.parametrize("config", [SMALL_VIT, SMALL_RESNET], ids=["vit", "resnet"])
def test_state_dict_becomes_a_native_folder(run, tmp_path, config):
    arrays = write_safetensors(config, tmp_path / "model.safetensors")
    status, out, err = run(
        "convert", tmp_path / "model.safetensors", tmp_path / "native", *unsaid_options(config)
    )
    assert (status, err) == (0, [])
    assert "quick_gelu" in out and "parameters" in out
    again = to_pytorch(*read_native(tmp_path / "native"))
    assert_identical(again, arrays)


@needs_torch
@pytest.mark.parametrize("config", [SMALL_VIT, SMALL_RESNET], ids=["vit", "resnet"])
def test_there_and_back_is_identical_to_the_bit(run, tmp_path, config):
    write = clip_jax.convert.write_pytorch
    write(half(to_pytorch(config, random_parameters(config))), tmp_path / "model.pt")
    command = ("convert", tmp_path / "model.pt", tmp_path / "native", *unsaid_options(config))
    assert run(*command)[0] == 0
    assert run("convert", tmp_path / "native", tmp_path / "back.pt")[0] == 0
    back = read_checkpoint(tmp_path / "back.pt")
    assert_identical(back, read_checkpoint(tmp_path / "model.pt"))
    assert from_pytorch(back)[0] == config


@needs_torch
@pytest.mark.filterwarnings("always")
def test_what_a_pt_file_does_not_tell_is_said(run, tmp_path):
    vision = dataclasses.replace(SMALL_VIT.vision, num_heads=2)
    config = dataclasses.replace(SMALL_VIT, activation="gelu", vision=vision)
    clip_jax.save(small(config), tmp_path / "native")
    status, _, err = run("convert", tmp_path / "native", tmp_path / "back.pt")
    assert status == 0
    assert err == [
        "clip-jax: warning: a .pt file can't say which GELU the model has: give --activation gelu "
        'with it, or activation="gelu" to clip_jax.load',
        "clip-jax: warning: a .pt file can't say how many heads there are: give --num-heads 2,1 "
        "with it, or num_heads=(2,1) to clip_jax.load",
    ]


def assert_identical(given: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert given.keys() == expected.keys()
    for name, array in expected.items():
        assert (given[name].dtype, given[name].shape) == (array.dtype, array.shape), name
        assert given[name].tobytes() == array.tobytes(), name


def test_activation_is_stored(run, tmp_path):
    write_safetensors(SMALL_VIT, tmp_path / "m.safetensors")
    source, target = tmp_path / "m.safetensors", tmp_path / "native"
    assert run("convert", source, target, "--activation", "gelu", "--num-heads", 1)[0] == 0
    assert clip_jax.load(target)[0].config.activation == "gelu"


def test_existing_target_is_kept_without_force(run, folder, tmp_path):
    write_safetensors(SMALL_VIT, tmp_path / "m.safetensors")
    target = tmp_path / "native"
    target.mkdir()  # empty: nothing to lose
    command = ("convert", tmp_path / "m.safetensors", target, *unsaid_options(SMALL_VIT))
    assert run(*command)[0] == 0
    before = (target / "model.safetensors").stat().st_ino
    status, out, err = run(*command)
    assert (status, out, len(err)) == (1, "", 1)
    assert "--force" in err[0]
    assert (target / "model.safetensors").stat().st_ino == before
    assert run(*command, "--force")[0] == 0
    assert (target / "model.safetensors").stat().st_ino != before


def test_force_replaces_no_folder_of_something_else(run, folder, tmp_path):
    write_safetensors(SMALL_VIT, tmp_path / "m.safetensors")
    options = ("--force", *unsaid_options(SMALL_VIT))
    status, _, err = run("convert", tmp_path / "m.safetensors", folder / "other", *options)
    assert (status, len(err)) == (1, 1)
    assert (folder / "other" / "notes.txt").exists()


def test_conversion_without_torch_says_how_to_install_it(run, tmp_path, monkeypatch):
    real = builtins.__import__

    def without_torch(name, *rest):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    status, out, err = run("convert", "model", tmp_path / "m.pt")
    assert (status, out, len(err)) == (1, "", 1)
    assert "pip install" in err[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("model", "native"), 2),
        (("text.png", "copy.pt"), 2),
        (("text.png", "copy.safetensors"), 2),
        (("model", "copy.pt", "--activation", "gelu"), 2),
        (("text.png", "native", "--activation", "relu"), 2),
        (("missing", "native"), 1),
        (("text.png", "native"), 1),
        (("empty.png", "native"), 1),
        (("other", "copy.pt"), 1),
        (("model", "nowhere/copy.pt"), 1),
    ],
)
def test_bad_conversions_leave_nothing_behind(run, folder, arguments, expected):
    before = sorted(os.listdir(folder))
    status, out, err = run("convert", *arguments)
    assert (status, out, len(err)) == (expected, "", 1)
    assert sorted(os.listdir(folder)) == before


def test_problems_of_a_checkpoint_are_listed_after_the_first_line(run, tmp_path):
    from safetensors.numpy import save_file

    arrays = to_pytorch(SMALL_VIT, random_parameters(SMALL_VIT))
    del arrays["ln_final.bias"]
    save_file(arrays | {"extra": np.zeros(1, np.float32)}, tmp_path / "m.safetensors")
    status, out, err = run("convert", tmp_path / "m.safetensors", tmp_path / "native")
    assert (status, out) == (1, "")
    assert str(tmp_path / "m.safetensors") in err[0]
    assert {"- ln_final.bias: missing", "+ extra: unexpected"} <= set(err)
    assert not (tmp_path / "native").exists()
