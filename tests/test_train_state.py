"""What belongs to a training run: its data, its model, what it has counted, and its last bits."""

import contextlib
import errno
import json
import os
import re
import shutil
import threading
import time
import warnings

import jax.numpy as jnp
import pytest

import clip_jax
from clip_jax.cli import main
from clip_jax.sources import Pair, TarPairs, open_pairs
from clip_jax.train import TrainState, read_config, run, train
from clip_jax.train.data import batches
from clip_jax.train.identity import identity_of
from tests import quickly, training
from tests.models import SMALL_VIT, small
from tests.training import files_of, flip_one_bit, model_of
from tests.training_runs import read_metrics

pytest.importorskip("orbax.checkpoint")
grain = pytest.importorskip("grain")

# --- whose run it is


def identity(tmp_path, data, *settings, model=None):
    config = read_config(training.write_toml(tmp_path, data), settings)
    return identity_of(config, open_pairs(data), model or small(SMALL_VIT))


def test_a_run_is_told_by_its_data_and_model_and_not_by_where_they_lie(tmp_path, data):
    noted = identity(tmp_path, data).document()
    json.dumps(noted)
    assert str(tmp_path) not in json.dumps(noted) and str(data) not in json.dumps(noted)
    moved = training.write(tmp_path / "moved")
    os.utime(moved, (0, 0))
    settings = ("out=elsewhere", "data.max_skipped=0.5", "data.num_threads=7", "run.log_every=3")
    assert identity(tmp_path, moved, *settings).differences(noted) == []
    (line,) = identity(tmp_path, data, "run.seed=1").differences(noted)
    assert line == "- run.seed: there 0, here 1"


def test_captions_that_changed_places_are_other_data(tmp_path, data):
    noted = identity(tmp_path, data).document()
    swapped = training.write(tmp_path, swapped=(3, 20))
    assert os.path.getsize(swapped) == os.path.getsize(data)
    (line,) = identity(tmp_path, swapped).differences(noted)
    assert line.startswith("- data.fingerprint: there ")


def test_pictures_of_one_size_that_changed_places_are_other_data(tmp_path):
    bmp = [training.picture((i, 9, 9), (8, 8), "BMP") for i in range(3)]
    folders = []
    for order in ((0, 1, 2), (0, 2, 1)):
        folder = tmp_path / "".join(map(str, order))
        folder.mkdir()
        for i, which in enumerate(order):
            (folder / f"{i}.bmp").write_bytes(bmp[which])
        rows = "".join(f"{i}.bmp,same\n" for i in range(3))
        (folder / "captions.csv").write_text(f"image,caption\n{rows}")
        folders.append(folder)
    noted = identity(tmp_path, folders[0]).document()
    (line,) = identity(tmp_path, folders[1]).differences(noted)
    assert line == "- data.samples: 2 of the pictures looked at have other bytes"


def test_a_picture_that_can_not_be_read_for_a_moment_makes_no_other_data(
    tmp_path, data, monkeypatch
):
    noted = identity(tmp_path, data).document()
    read = TarPairs.__getitem__

    def fails_now_and_then(pairs, index):
        if index % 5 == 2:
            raise OSError(errno.EIO, "Input/output error")
        return read(pairs, index)

    monkeypatch.setattr(TarPairs, "__getitem__", fails_now_and_then)
    fewer = identity(tmp_path, data)
    assert "-" in fewer.document()["data.samples"].split()
    assert fewer.differences(noted) == []


def test_a_model_to_start_from_is_told_by_its_parameters(tmp_path, data):
    settings = ("model={from = 'a'}",)
    noted = identity(tmp_path, data, *settings).document()
    assert identity(tmp_path, data, "model={from = 'b'}").differences(noted) == []
    other = small(SMALL_VIT)
    other.ln_final.bias.set_value(other.ln_final.bias[...].at[3].add(1e-6))
    (line,) = identity(tmp_path, data, *settings, model=other).differences(noted)
    assert line.startswith("- model.digest: there ")


def test_settings_that_came_later_had_their_default_before(tmp_path, data):
    noted = identity(tmp_path, data).document()
    later = {name: v for name, v in noted.items() if name != "augment.hue"}
    assert identity(tmp_path, data).differences(later) == []
    (line,) = identity(tmp_path, data, "augment.hue=5").differences(later)
    assert line == "- augment.hue: there 0.0, here 5"


def test_a_run_of_an_earlier_version_is_told_by_where_its_data_lie(tmp_path, data):
    here = identity(tmp_path, data)
    noted = {**here.settings, "out": "elsewhere", "data.train": str(data), "data.max_skipped": 0.3}
    assert here.differences(noted) == []
    (line,) = here.differences({**noted, "data.train": "other.tar"})
    assert line == f"- data.train: there 'other.tar', here {str(data)!r}"
    (line,) = here.differences({**noted, "run.seed": 5})
    assert line == "- run.seed: there 5, here 0"


# --- runs


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setattr(run, "make_step", training.make_step)
    monkeypatch.setattr(run, "compiler_options", lambda platform: quickly.OPTIONS)


def lines_of(run) -> list[dict]:
    records = read_metrics(run)
    for record in records:
        del record["pairs_per_second"]
    return records


def stop_after(step, patch):
    """Has runs end with that step's line, as if they were killed."""
    add = run.Metrics.add

    def add_and_stop(self, record):
        add(self, record)
        if record["step"] == step:
            raise RuntimeError("killed")

    patch.setattr(run.Metrics, "add", add_and_stop)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run over data of which two pictures can't be read: stopped half way, and to the end."""
    folder = tmp_path_factory.mktemp("trained")
    data = training.write(folder / "data", unreadable=(5, 17))
    config = read_config(training.write_toml(folder, data), ["data.max_skipped=0.3"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_step", training.make_step)
        patch.setattr(run, "compiler_options", lambda platform: quickly.OPTIONS)
        with patch.context() as inner:
            stop_after(6, inner)
            with pytest.raises(RuntimeError, match="killed"):
                train(config, progress=False)
        shutil.copytree(folder / "run", folder / "stopped")
        shutil.rmtree(folder / "run")
        train(config, progress=False)
    return folder


def test_a_stopped_run_goes_on_in_another_place_with_the_same_bits_and_counts(trained, tmp_path):
    """Also what was skipped: 2 of each 24, counted on and by the step, not as far as was read."""
    shutil.copytree(trained / "stopped", tmp_path / "run")
    data = shutil.copytree(trained / "data", tmp_path / "moved") / "pairs.tar"
    config = read_config(training.write_toml(tmp_path, data), ["data.max_skipped=0.3"])
    train(config, progress=False)
    assert model_of(tmp_path / "run") == model_of(trained / "run")
    assert lines_of(tmp_path / "run") == lines_of(trained / "run")
    skipped = [record["skipped"] for record in lines_of(tmp_path / "run")]
    assert skipped == sorted(skipped) and 6 <= skipped[-1] <= 10


def test_a_run_refuses_other_data_and_takes_its_own_again(trained, tmp_path, capsys):
    shutil.copytree(trained / "stopped", tmp_path / "run")
    data = training.write(tmp_path, swapped=(3, 20), unreadable=(5, 17))
    toml = str(training.write_toml(tmp_path, data))
    command = ["train", toml, "--set", "data.max_skipped=0.3"]
    before = files_of(tmp_path / "run")
    assert main(command) == 1
    first, *lines = capsys.readouterr().err.splitlines()
    assert "another run: go on with what that one had, or give another `out`." in first
    assert [line.split(":")[0] for line in lines] == ["- data.fingerprint"]
    assert files_of(tmp_path / "run") == before
    # Both ways that it names.
    assert main([*command, "--set", f"out={tmp_path / 'other'}"]) == 0
    assert model_of(tmp_path / "other") != model_of(trained / "run")
    training.write(tmp_path, unreadable=(5, 17))
    assert main(command) == 0
    assert model_of(tmp_path / "run") == model_of(trained / "run")


def test_a_damaged_checkpoint_costs_no_bit_and_one_line(trained, tmp_path, capsys):
    shutil.copytree(trained / "run", tmp_path / "run")
    flip_one_bit(max((tmp_path / "run/checkpoints/12/state/d").iterdir()))
    toml = training.write_toml(tmp_path, trained / "data" / "pairs.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["train", str(toml), "--set", "data.max_skipped=0.3"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "clip-jax:" in line]
    assert len(said) == 1 and "warning: the checkpoint of step 12 is damaged" in said[0]
    assert model_of(tmp_path / "run") == model_of(trained / "run")
    assert lines_of(tmp_path / "run") == lines_of(trained / "run")


def test_a_run_begun_by_an_earlier_version_goes_on_and_is_noted(trained, tmp_path):
    folder = shutil.copytree(trained / "stopped", tmp_path / "run")
    data = trained / "data" / "pairs.tar"
    noted = json.loads((folder / "run.json").read_text())
    noted = {name: v for name, v in noted.items() if name not in ("processes", "data.pairs")}
    for name in ("data.fingerprint", "data.samples"):
        del noted[name]
    noted |= {"out": str(trained / "run"), "data.train": str(data), "data.max_skipped": 0.3}
    (folder / "run.json").write_text(json.dumps(noted))
    for path in folder.glob("checkpoints/*/checksums.json"):
        path.unlink()
    config = read_config(training.write_toml(tmp_path, data), ["data.max_skipped=0.3"])
    with pytest.warns(UserWarning) as said:
        train(config, progress=False)
    texts = [str(warning.message) for warning in said]
    assert len(texts) == 2
    assert "begun by an earlier version" in texts[0] and "4 has no checksums" in texts[1]
    assert model_of(folder) == model_of(trained / "run")
    assert json.loads((folder / "run.json").read_text())["data.fingerprint"]


def test_more_pictures_may_be_unreadable_once_max_skipped_is_raised(trained, tmp_path):
    """What the error names may be changed: no number depends on it."""
    data = training.write(tmp_path, unreadable=tuple(range(12)))
    toml = training.write_toml(tmp_path, data)
    with pytest.raises(ValueError, match="more than the share of 0.01 that max_skipped admits"):
        train(read_config(toml), progress=False)
    train(read_config(toml, ["data.max_skipped=0.9"]), progress=False)
    assert lines_of(tmp_path / "run")[-1]["skipped"] > 80


def test_a_run_that_diverges_keeps_its_last_finite_state_and_trains_again_elsewhere(
    tmp_path, data, monkeypatch
):
    """Parameters that a step has made infinite are seen where its loss was still a number."""

    def diverging(*args, **options):
        light = training.make_step(*args, **options)

        def take_step(state, batch, key):
            state, metrics = light(state, batch, key)
            grown = {
                k: v * jnp.where(state.step == 8, jnp.inf, 1) for k, v in state.parameters.items()
            }
            return TrainState(state.step, grown, state.statistics, state.optimizer), metrics

        return take_step

    toml = training.write_toml(tmp_path, data)
    with monkeypatch.context() as patch:
        patch.setattr(run, "make_step", diverging)
        with pytest.raises(
            ValueError, match="after step 8 .*of step 4, in .* another `out`"
        ) as error:
            train(read_config(toml), progress=False)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["4"]
    for name in re.findall(r"optimizer\.\w+", str(error.value)):
        train(read_config(toml, [f"{name}=1e-5", f"out={tmp_path / name}"]), progress=False)
        assert clip_jax.load(tmp_path / name / "model")


def test_a_run_into_no_folder_is_refused(tmp_path, data):
    with pytest.raises(ValueError, match="out must be a folder's path. Got ''"):
        read_config(training.write_toml(tmp_path, data), ["out="])


# --- what a machine has no more of


class Exhausted:
    """Pairs of which no more than one can be read at a time."""

    def __init__(self, error: Exception):
        self.error, self.lock = error, threading.Lock()

    def __len__(self):
        return 64

    def captions(self, index):
        return ("a",)

    def __getitem__(self, index):
        if not self.lock.acquire(blocking=False):
            raise self.error
        with contextlib.ExitStack() as stack:
            stack.callback(self.lock.release)
            time.sleep(0.02)
            return Pair(str(index), training.picture(), ("a",))


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "Too many open files", "7.png"), MemoryError()],
    ids=["descriptors", "memory"],
)
def test_descriptors_and_memory_that_run_out_are_no_picture_s_fault(error):
    options = {"batch_size": 8, "image_size": 8, "text_length": 8, "max_skipped": 1.0}
    iterator, skipped = batches(Exhausted(error), **options, num_threads=8)
    said = "(7.png: Too many open files|pair .*: out of memory): raise .* or lower data.num_threads"
    with pytest.raises(OSError, match=said):
        next(iterator)
    iterator.close()
    assert skipped.count == 0
    iterator, _ = batches(Exhausted(error), **options, num_threads=1)  # as it says
    assert next(iterator)["images"].shape == (8, 8, 8, 3)
    iterator.close()


def test_a_run_of_which_no_picture_can_be_read_stops_however_many_may_be_skipped(tmp_path):
    data = training.write(tmp_path, unreadable=tuple(range(training.COUNT)))
    toml = training.write_toml(tmp_path, data)
    with pytest.raises(ValueError, match="none of the pictures can be read; the last one: "):
        train(read_config(toml, ["data.max_skipped=1"]), progress=False)


@pytest.mark.parametrize("how", ["removed", "another's"])
def test_a_folder_that_is_not_the_runs_any_more_is_left_alone(tmp_path, data, how, monkeypatch):
    config = read_config(training.write_toml(tmp_path, data))
    add = run.Metrics.add

    def add_and_lose_the_folder(self, record):
        add(self, record)
        if record["step"] == 2:
            shutil.rmtree(tmp_path / "run")
            if how == "another's":
                with monkeypatch.context() as patch:
                    patch.setattr(run.Metrics, "add", add)
                    train(read_config(tmp_path / "run.toml", ["run.seed=1"]), progress=False)

    monkeypatch.setattr(run.Metrics, "add", add_and_lose_the_folder)
    message = "run.json|removed during the run" if how == "removed" else "holds another run"
    with pytest.raises((OSError, ValueError), match=message):
        train(config, progress=False)
    monkeypatch.setattr(run.Metrics, "add", add)
    if how == "another's":
        train(read_config(tmp_path / "run.toml", ["run.seed=1"]), progress=False)
        assert [line["step"] for line in lines_of(tmp_path / "run")] == list(range(1, 13))
    else:
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
        train(config, progress=False)
