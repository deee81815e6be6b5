"""Checkpoints of a run: what is damaged is noticed, and nothing that isn't finite is saved."""

import errno
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.train import TrainState
from clip_jax.train import checkpoints as checkpoints_module
from clip_jax.train import checksums as checksums_module
from clip_jax.train.checkpoints import Checkpoints
from clip_jax.train.identity import Identity
from tests.training import files_of, flip_one_bit

pytest.importorskip("orbax.checkpoint")
grain = pytest.importorskip("grain")

WHOSE = Identity(contents={"data.fingerprint": "a"})


def numbers():
    """A place in some data, without any."""
    return iter(grain.MapDataset.range(1000).to_iter_dataset())


def state_of(step: int, value: float | None = None) -> TrainState:
    number = float(step) if value is None else value
    arrays = {"a/kernel": jnp.full((8, 3), number), "a/bias": jnp.arange(3) * number}
    return TrainState(jnp.int32(step), arrays, {}, {"mu": jnp.full(5, -number), "none": None})


def write(folder, steps=(4, 8), states=None):
    """Checkpoints of these steps, each with as many numbers read."""
    with Checkpoints(folder, WHOSE, keep=3) as checkpoints:
        iterator = numbers()
        for step in steps:
            while next(iterator) < step - 1:
                pass
            checkpoints.save(step, (states or {}).get(step, state_of(step)), iterator)


def restore(folder) -> tuple[int, int]:
    """The step of the state that is restored, whose numbers are right, and the next number."""
    with Checkpoints(folder, WHOSE, keep=3) as checkpoints:
        iterator = numbers()
        state = checkpoints.restore(state_of(0), iterator)
        expected = state_of(int(state.step))
        jax.tree.map(np.testing.assert_array_equal, state, expected)
        return int(state.step), int(next(iterator))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run with checkpoints of steps 4 and 8; to be copied."""
    folder = tmp_path_factory.mktemp("two") / "run"
    write(folder)
    return folder


@pytest.fixture
def folder(two, tmp_path):
    return shutil.copytree(two, tmp_path / "run")


DAMAGES = {
    "flipped": flip_one_bit,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_whole_one_before_it_taken(two, tmp_path, kind):
    checked = json.loads((two / "checkpoints" / "8" / "checksums.json").read_text())
    assert len(checked) > 8
    names = [*checked, *([] if kind == "missing" else ["checksums.json"])]
    for i, name in enumerate(names):
        if kind != "missing" and not (two / "checkpoints" / "8" / name).stat().st_size:
            continue  # there is nothing to damage
        if kind in ("zeros", "cut") and i % 3:
            continue  # fewer of those
        folder = shutil.copytree(two, tmp_path / str(i))
        DAMAGES[kind](folder / "checkpoints" / "8" / name)
        said = f"step 8 is damaged .* moved to {folder}/damaged/8; training goes on from step 4$"
        with pytest.warns(UserWarning, match=said):
            assert restore(folder) == (4, 4), name
        assert files_of(folder / "damaged" / "8")
        assert restore(folder) == (4, 4)  # there is no more to be said


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_orbax_notes_of_a_checkpoint_beside_its_state_may_be_damaged(folder, kind):
    checked = json.loads((folder / "checkpoints" / "8" / "checksums.json").read_text())
    notes = {*files_of(folder / "checkpoints" / "8")} - {*checked, "checksums.json"}
    assert notes >= {"_CHECKPOINT_METADATA"} and not any("/" in name for name in notes)
    for name in notes:
        DAMAGES[kind](folder / "checkpoints" / "8" / name)
    assert restore(folder) == (8, 8)


def test_after_a_damaged_checkpoint_the_same_step_is_written_again(folder):
    for name in ("8", "8-2"):
        flip_one_bit(next((folder / "checkpoints" / "8").rglob("process_0-of-1.json")))
        with pytest.warns(UserWarning, match=f"moved to {folder}/damaged/{name}; "):
            assert restore(folder) == (4, 4)
        write(folder, (8,))
        assert restore(folder) == (8, 8)
    assert sorted(path.name for path in (folder / "damaged").iterdir()) == ["8", "8-2"]


def test_a_checkpoint_without_checksums_is_taken_and_that_is_said(folder):
    """As versions before wrote them."""
    (folder / "checkpoints" / "8" / "checksums.json").unlink()
    with pytest.warns(UserWarning, match="checkpoints/8 has no checksums: it is taken as it is"):
        assert restore(folder) == (8, 8)


def test_a_checkpoint_without_checksums_that_can_not_be_read_is_damaged(folder):
    shutil.rmtree(folder / "checkpoints" / "8" / "state")
    (folder / "checkpoints" / "8" / "checksums.json").unlink()
    with pytest.warns(UserWarning, match="step 8 is damaged .* goes on from step 4"):
        assert restore(folder) == (4, 4)


def test_a_run_without_a_whole_checkpoint_is_refused_and_goes_on_as_it_is_told(folder):
    for step in ("4", "8"):
        (folder / "checkpoints" / step / "checksums.json").write_text("{")
    before = files_of(folder)
    refusal = (
        r"none of the checkpoints in .* is whole \(8: checksums.json can't be read; 4: .*\): "
        "bring one back, or move that folder away to begin again at the first step"
    )
    with pytest.raises(ValueError, match=refusal):
        restore(folder)
    assert files_of(folder) == before
    (folder / "checkpoints").rename(folder / "old")
    assert restore(folder) == (0, 0)


def test_a_checkpoint_that_can_not_be_read_now_is_not_taken_for_damaged(folder, monkeypatch):
    def fails(*args, **options):
        raise OSError(errno.EMFILE, "Too many open files", "manifest.ocdbt")

    before = files_of(folder)
    with monkeypatch.context() as patch:
        patch.setattr(checksums_module, "_digest", fails)
        with pytest.raises(OSError, match="Too many open files"):
            restore(folder)
    with monkeypatch.context() as patch:
        patch.setattr(grain.checkpoint.CheckpointHandler, "restore", fails)
        with pytest.raises(OSError, match="8 can't be read now: .*Too many open files"):
            restore(folder)
        assert files_of(folder) == before
        # As versions before wrote them, too.
        (folder / "checkpoints" / "8" / "checksums.json").rename(folder / "checksums.json")
        with pytest.raises(OSError, match="8 can't be read now: .*Too many open files"):
            restore(folder)
        (folder / "checksums.json").rename(folder / "checkpoints" / "8" / "checksums.json")
    assert files_of(folder) == before
    assert restore(folder) == (8, 8)


@pytest.mark.parametrize("where", ["parameters", "optimizer"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_that_is_not_finite_is_saved(tmp_path, where, value):
    bad = state_of(8)
    arrays = {**getattr(bad, where)}
    name = "a/bias" if where == "parameters" else "mu"
    arrays[name] = arrays[name].at[2].set(value)
    bad = TrainState(**{**vars(bad), where: arrays})
    with pytest.raises(ValueError, match="after step 8 .* inf or nan. The last good .* of step 4"):
        write(tmp_path / "run", states={8: bad})
    assert restore(tmp_path / "run") == (4, 4)


def test_of_checkpoints_that_are_not_finite_the_one_before_is_taken(tmp_path, monkeypatch):
    """As versions before wrote them."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module, "_is_finite", lambda state: True)
        write(tmp_path / "run", states={8: state_of(8, np.nan)})
    with pytest.warns(UserWarning, match="step 8 is damaged .its numbers aren't finite."):
        assert restore(tmp_path / "run") == (4, 4)


def test_a_damaged_note_of_whose_run_it_is_is_removed_as_the_error_says(folder):
    (folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is damaged .* Remove it if they are this run's"):
        restore(folder)
    (folder / "run.json").unlink()
    assert restore(folder) == (8, 8)
