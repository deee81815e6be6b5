"""Saving: a model is replaced whole or not at all, whatever happens meanwhile."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clip_jax import replace
from clip_jax.cli import main
from clip_jax.nn import flatten, unflatten
from clip_jax.weights import read_native, save, save_parameters
from tests.limits import files_end_at
from tests.model_files import VIT, names_below, same
from tests.models import random_parameters, small


def test_save_refuses_a_folder_of_something_else(model_folder):
    (model_folder / "notes.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="something else"):
        save(small(VIT), model_folder)
    assert (model_folder / "notes.txt").read_text() == "precious"


def test_save_refuses_a_file(tmp_path):
    (tmp_path / "model").write_text("precious")
    with pytest.raises(FileExistsError, match="something else"):
        save(small(VIT), tmp_path / "model")


def test_save_takes_an_empty_folder_and_follows_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    save(small(VIT), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names_below(tmp_path / "real") == ["config.json", "model.safetensors"]


def test_save_refuses_arrays_that_do_not_fit(tmp_path):
    arrays = flatten(random_parameters(VIT))
    arrays["extra"] = arrays.pop("visual/proj")
    with pytest.raises(ValueError, match="- visual/proj: missing\n[+] extra: unexpected"):
        save_parameters(VIT, unflatten(arrays), tmp_path / "model")
    assert names_below(tmp_path) == []


def test_folder_in_the_place_of_a_pt_file_is_named(model_folder, capsys):
    target = model_folder.parent / "d.pt"
    target.mkdir()
    assert main(["convert", str(model_folder), str(target)]) == 1
    assert capsys.readouterr().err == f"clip-jax: {target}: is a folder: name a file in it\n"


def test_save_refuses_what_is_no_array(tmp_path):
    params = random_parameters(VIT)
    params["logit_scale"] = 3.0
    with pytest.raises(ValueError, match="! logit_scale: .*np.asarray.*. Got builtins.float"):
        save_parameters(VIT, params, tmp_path / "model")


def test_full_disk_leaves_the_old_model_and_nothing_else(model_folder):
    before = (model_folder / "model.safetensors").read_bytes()
    with files_end_at(50_000), pytest.raises(OSError, match="model"):
        save(small(VIT, seed=1), model_folder)
    assert (model_folder / "model.safetensors").read_bytes() == before
    assert names_below(model_folder.parent) == [
        "model",
        "model/config.json",
        "model/model.safetensors",
    ]


@pytest.mark.parametrize("failing", [1, 2])
def test_interrupt_while_folders_are_exchanged(model_folder, monkeypatch, failing):
    before = (model_folder / "model.safetensors").read_bytes()
    rename, calls = os.rename, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(replace, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(small(VIT, seed=1), model_folder)
    assert (model_folder / "model.safetensors").read_bytes() == before
    assert names_below(model_folder.parent)[1:] == ["model/config.json", "model/model.safetensors"]


MODEL = ["model", "model/config.json", "model/model.safetensors"]


def save_and_die(folder: Path, preparation: str) -> None:
    """Another process saves a model that it loaded, and is killed where it calls `die`."""
    program = (
        "import os, signal, sys; import clip_jax\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "model = clip_jax.load(sys.argv[1])[0]; rename = os.rename\n"
        f"{preparation}\nclip_jax.save(model, sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=False)


REPLACE = "from clip_jax import replace"


RENAMES_ONCE = "os.rename = lambda *names: (rename(*names), die())"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges folders in one step")
def test_a_model_is_at_its_place_whenever_a_save_is_killed(model_folder):
    save_and_die(model_folder, RENAMES_ONCE)
    assert same(read_native(model_folder)[1], random_parameters(VIT))


def test_a_model_moved_away_by_a_killed_save_is_brought_back(model_folder):
    save_and_die(model_folder, f"{REPLACE}; replace._exchange = lambda *_: False; {RENAMES_ONCE}")
    assert not model_folder.exists()
    with files_end_at(50_000), pytest.raises(OSError):
        save(small(VIT, seed=1), model_folder)
    assert same(read_native(model_folder)[1], random_parameters(VIT))
    assert names_below(model_folder.parent) == MODEL


@pytest.mark.parametrize("exchanges", [True, False])
def test_remains_of_killed_saves_are_removed(model_folder, monkeypatch, exchanges):
    save_and_die(model_folder, f"{REPLACE}; replace._put = die")
    left = [name for name in names_below(model_folder.parent) if name.endswith(".part")]
    assert len(left) == 1
    if not exchanges:
        monkeypatch.setattr(replace, "_exchange", lambda one, other: False)
    save(small(VIT, seed=1), model_folder)
    assert names_below(model_folder.parent) == MODEL
    assert same(read_native(model_folder)[1], random_parameters(VIT, seed=1))


def test_a_save_leaves_alone_what_others_are_writing(model_folder):
    other = model_folder.with_name(".model.x.0123.part")  # of a folder "model.x"
    other.mkdir()
    with pytest.raises(KeyboardInterrupt), replace.replacing(model_folder) as new:
        save(small(VIT, seed=1), model_folder)
        assert new.is_dir() and other.is_dir()
        raise KeyboardInterrupt
    assert not new.exists()


def test_mounted_disk_cannot_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "disk")
    with pytest.raises(OSError, match="name a folder in it"):
        save(small(VIT), tmp_path / "disk")
    save(small(VIT), tmp_path / "disk" / "model")


def test_place_where_no_folder_can_be_made_is_named_as_the_user_did(tmp_path, monkeypatch):
    def refuse(path, **options):
        if "exist_ok" not in options:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (tmp_path / "model").mkdir()
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match="Permission denied.*a folder in it") as error:
        save(small(VIT), tmp_path / "model")
    assert error.value.filename == str(tmp_path / "model")
