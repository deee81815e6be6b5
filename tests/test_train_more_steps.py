"""A run that is given more steps than it had."""

import json

import numpy as np
import pytest

import clip_jax
from clip_jax.cli import main
from clip_jax.train import read_config, train
from tests.training_runs import checkpoints_of, read_metrics

pytest.importorskip("grain")
pytest.importorskip("orbax.checkpoint")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiles_quickly")]


class Stopped(Exception):
    """As if the process had been killed."""


def run_of(toml, steps: int, *options: str, **arguments):
    config = read_config(toml, [f"optimizer.total_steps={steps}", *options])
    return train(config, progress=False, **arguments)


def stopped_after(step: int, monkeypatch) -> None:
    """The next run is killed after its checkpoint of this step."""
    from clip_jax.train.checkpoints import Checkpoints

    save = Checkpoints.save

    def save_and_stop(self, number, *arguments):
        save(self, number, *arguments)
        if number == step:
            self.wait()
            monkeypatch.setattr(Checkpoints, "save", save)
            raise Stopped

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)


def test_a_finished_run_goes_on_to_more_steps_the_same_whenever_it_is_killed(
    toml, tmp_path, monkeypatch
):
    found = []
    for name in ("whole", "killed"):
        out = f"out={tmp_path / name}"
        run_of(toml, 8, out)
        if name == "killed":
            stopped_after(12, monkeypatch)
            with pytest.raises(Stopped):
                run_of(toml, 16, out, more_steps=True)
        found.append(clip_jax.parameters(clip_jax.load(run_of(toml, 16, out, more_steps=True))[0]))
    folder = tmp_path / "killed"
    assert [line["step"] for line in read_metrics(folder)] == [4, 8, 12, 16]
    assert checkpoints_of(folder) == [12, 16]
    noted = json.loads((folder / "run.json").read_text())
    assert noted["optimizer.total_steps"] == 16
    assert noted["continued"] == [{"after_step": 8, "total_steps": 8}]
    one, other = (np.asarray(tree["visual"]["proj"]) for tree in found)
    assert (one == other).all()
    rates = [line["learning_rate"] for line in read_metrics(folder)]
    assert rates[2] > 1e-4  # of the longer schedule: that of the shorter one has come to 0
    with pytest.raises(ValueError, match="optimizer.total_steps: there 16, here 8"):
        run_of(toml, 8, f"out={folder}", more_steps=True)


def test_more_steps_are_told_where_nobody_said_that_they_are_meant(toml, tmp_path):
    run_of(toml, 4)
    with pytest.warns(UserWarning, match="had finished after 4 steps: it goes on to step 8"):
        run_of(toml, 8)
    run_of(toml, 8)  # it has finished again, and nothing is left to say
    with pytest.raises(ValueError, match="optimizer.b2"):
        run_of(toml, 12, "optimizer.b2=0.9", more_steps=True)
    noted = json.loads((tmp_path / "run" / "run.json").read_text())
    assert noted["optimizer.total_steps"] == 8


def test_a_run_that_has_not_finished_gets_more_steps_only_where_that_is_said(
    toml, monkeypatch, capsys
):
    stopped_after(4, monkeypatch)
    with pytest.raises(Stopped):
        run_of(toml, 8)
    words = ["train", str(toml), "--set", "optimizer.total_steps=12"]
    assert main(words) == 1
    assert "optimizer.total_steps: there 8, here 12" in capsys.readouterr().err
    assert main([*words, "--continue"]) == 0
