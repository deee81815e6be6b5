"""A training run as its user starts it: checkpoints, kills, and what comes out."""

import io
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.cli import main
from clip_jax.sources import open_pairs
from clip_jax.train import compiler_options, read_config, run, train
from clip_jax.train.data import batches
from clip_jax.train.metrics import Metrics
from tests import processes, quickly
from tests.archives import write_tar
from tests.models import SMALL_VIT, small
from tests.pictures import picture
from tests.training_runs import COLORS, COUNT, TOML, ListPairs, checkpoints_of, read_metrics

pytest.importorskip("grain")
pytest.importorskip("orbax.checkpoint")

pytestmark = pytest.mark.usefixtures("compiles_quickly")


def test_a_run_gives_a_model_metrics_and_a_plot(toml, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "compiler_options", compiler_options)  # as its user has it
    assert main(["train", str(toml)]) == 0
    folder = tmp_path / "run"
    assert capsys.readouterr().out.strip() == str(folder / "model")
    model, preprocess = clip_jax.load(folder / "model")
    assert model.config == SMALL_VIT
    assert preprocess.image_size == 32
    records = read_metrics(folder)
    assert [record["step"] for record in records] == list(range(4, 25, 4))
    assert records[0].keys() == {
        "step",
        "loss",
        "accuracy",
        "gradient_norm",
        "learning_rate",
        "logit_scale",
        "pairs_per_second",
        "skipped",
    }
    assert records[-1]["loss"] < records[0]["loss"]
    with Image.open(folder / "training.png") as image:
        assert image.size[0] > 500
    assert checkpoints_of(folder) == [20, 24]
    before = (folder / "model" / "model.safetensors").read_bytes()
    train(read_config(toml), progress=False)  # there is nothing left to do
    assert (folder / "model" / "model.safetensors").read_bytes() == before


def start(toml, log):
    return subprocess.Popen(
        [sys.executable, "-m", "clip_jax", "train", str(toml)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"} | quickly.ENVIRONMENT,
        cwd=toml.parent,
        stdout=log,
        stderr=log,
    )


@pytest.mark.long
def test_killed_runs_end_with_the_same_bits(toml, tmp_path, shards):
    other = tmp_path / "undisturbed.toml"
    other.write_text(TOML.format(out=tmp_path / "undisturbed", shards=shards))
    rng, kills = random.Random(0), 0
    with (tmp_path / "log").open("w") as log:
        assert start(other, log).wait(timeout=240) == 0, (tmp_path / "log").read_text()[-3000:]
        metrics = tmp_path / "run" / "metrics.jsonl"
        for lines in (1, 3):  # killed some time after that many lines
            process = start(toml, log)
            deadline = time.monotonic() + 200
            while not metrics.exists() or len(metrics.read_text().splitlines()) < lines:
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.08))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.wait()
        assert start(toml, log).wait(timeout=240) == 0, (tmp_path / "log").read_text()[-3000:]
    assert kills == 2
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("run", "undisturbed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    records = [read_metrics(tmp_path / name) for name in ("run", "undisturbed")]
    assert [r["step"] for r in records[0]] == [r["step"] for r in records[1]]
    assert [r["loss"] for r in records[0]] == [r["loss"] for r in records[1]]


def test_a_run_stopped_by_the_keyboard_reads_no_more(toml, monkeypatch):
    """A thread that reads on while Python ends makes it crash, now and then."""

    def readers() -> list[str]:
        names = (thread.name for thread in threading.enumerate())
        return [name for name in names if name.startswith("grain")]

    def stop(self, record):
        assert readers()
        raise KeyboardInterrupt

    monkeypatch.setattr(Metrics, "add", stop)
    # Kept, because the frames in its traceback keep what would else be closed by itself.
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(read_config(toml, ["data.num_threads=1"]), progress=False)
    assert not readers()
    del stopped


@pytest.mark.long
def test_two_processes_train_and_go_on_after_a_kill_with_the_same_bits(tmp_path, shards):
    models = []
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        run = folder / "run"
        (folder / "run.toml").write_text(TOML.format(out=run, shards=shards))
        if name == "killed":

            def is_half_way(run=run):
                return (run / "checkpoints" / "12").exists()

            processes.kill_two(folder, "run", is_half_way)
            assert not (run / "model").exists()
        assert [str(r["folder"]) for r in processes.run_two(folder, "run")] == [f"{run}/model"] * 2
        models.append((run / "model" / "model.safetensors").read_bytes())
        assert [record["step"] for record in read_metrics(run)] == [4, 8, 12, 16, 20, 24]
    assert models[0] == models[1]


@pytest.mark.long
def test_a_folder_of_another_run_is_refused(toml, tmp_path):
    options = ["optimizer.total_steps=4"]
    train(read_config(toml, options), progress=False)
    with pytest.raises(ValueError, match="another run(.|\n)*optimizer.learning_rate: there 0.001"):
        train(read_config(toml, [*options, "optimizer.learning_rate=5e-3"]), progress=False)
    with pytest.raises(ValueError, match="model.embed_dim: there 16, here 8"):
        train(read_config(toml, [*options, "model.embed_dim=8"]), progress=False)
    train(read_config(toml, [*options, "run.log_every=2"]), progress=False)  # changes no number


def test_training_starts_from_a_checkpoint(toml, tmp_path):
    clip_jax.save(small(SMALL_VIT), tmp_path / "start")
    text = toml.read_text()
    begin, end = text.index("[model]"), text.index("[data]")
    toml.write_text(f'{text[:begin]}[model]\nfrom = "{tmp_path / "start"}"\n{text[end:]}')
    options = ["optimizer.total_steps=4", "optimizer.freeze_text=all"]
    model, _ = clip_jax.load(train(read_config(toml, options), progress=False))
    before = small(SMALL_VIT)
    assert np.array_equal(model.ln_final.bias[...], before.ln_final.bias[...])
    assert not np.array_equal(model.visual.proj[...], before.visual.proj[...])


@pytest.mark.long
def test_the_last_steps_see_whole_pictures(toml, tmp_path):
    seen = {}
    for name, dropped, whole in (("none", 0, 0), ("all", 0.5, 0), ("some", 0.5, 2)):
        options = [f"out={tmp_path / name}", "optimizer.total_steps=4", "run.log_every=1"]
        options += [f"step.patch_dropout={dropped}", f"run.whole_steps={whole}"]
        train(read_config(toml, options), progress=False)
        seen[name] = [record["loss"] for record in read_metrics(tmp_path / name)]
    assert seen["some"][:2] == seen["all"][:2] and seen["some"][2:] != seen["all"][2:]
    train(
        read_config(toml, [*options, "run.whole_steps=4", f"out={tmp_path / 'late'}"]),
        progress=False,
    )
    assert [record["loss"] for record in read_metrics(tmp_path / "late")] == seen["none"]


@pytest.mark.long
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_last_good_checkpoint(toml, tmp_path):
    train(read_config(toml, ["optimizer.total_steps=24"]), progress=False)
    # As if it had been killed at step 20, and the rest goes wrong.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "24")
    make_step = run.make_step

    def broken(*args, **options):
        step = make_step(*args, **options)

        def step_(state, batch, key):
            state, metrics = step(state, batch, key)
            return state, metrics | {"loss": metrics["loss"] * np.nan}

        return step_

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_step", broken)
        with pytest.raises(ValueError, match="nan at step 21.*checkpoint is of step 20"):
            train(read_config(toml), progress=False)
    assert not (tmp_path / "run" / "checkpoints" / "24").exists()


def test_too_many_pictures_that_can_not_be_read_stop_the_run(tmp_path, toml):
    members = {}
    for i in range(40):
        members[f"{i:02d}.png"] = picture() if i % 2 else b"no picture"
        members[f"{i:02d}.txt"] = b"x"
    bad = write_tar(tmp_path / "bad.tar", members)
    options = [f"data.train={bad}", "run.batch_size=8"]
    with pytest.raises(ValueError, match="pictures can't be read, more than the share of 0.01"):
        train(read_config(toml, options), progress=False)
    options += ["data.max_skipped=0.9", "optimizer.total_steps=4", f"out={tmp_path / 'second'}"]
    train(read_config(toml, options), progress=False)
    (record,) = read_metrics(tmp_path / "second")
    assert record["skipped"] > 4


def test_a_run_of_which_no_picture_can_be_read_stops_too():
    images = [b"no picture"] * COUNT
    iterator, _ = batches(
        ListPairs(images), batch_size=8, image_size=8, text_length=8, max_skipped=0.1
    )
    with pytest.raises(ValueError, match="pictures can't be read, more than the share of 0.1"):
        next(iterator)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_a_disk_that_takes_no_more_is_said_with_the_last_good_checkpoint(toml, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    with (tmp_path / "log").open("w") as log:
        process = start(toml, log)
        deadline = time.monotonic() + 200
        while not (checkpoints / "4").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        # From here on the system refuses to write large files, as it does on a full disk.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        assert process.wait(timeout=200) == 1
    log = (tmp_path / "log").read_text()
    # Anywhere in a line, because TensorStore's threads print word by word into the same file.
    found = re.findall(r"clip-jax: (.*)", log)
    assert len(found) == 1, log[-3000:]
    (said,) = found
    last = int(re.search(r"can't be written to .*, the last good one is of step (\d+): ", said)[1])
    assert "Make room, and run the same command again." in said
    assert "ERROR:absl" not in log
    assert last == max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    with (tmp_path / "log").open("w") as log:
        assert start(toml, log).wait(timeout=240) == 0, (tmp_path / "log").read_text()[-3000:]
    assert [record["step"] for record in read_metrics(tmp_path / "run")][-1] == 24


def test_batches_and_devices_must_fit(toml):
    with pytest.raises(ValueError, match="multiple of the 8 devices. Got 12"):
        train(read_config(toml, ["run.batch_size=12"]), progress=False)
    with pytest.raises(ValueError, match="at most the context, 77. Got 78"):
        train(read_config(toml, ["data.text_length=78"]), progress=False)


def test_sources_are_found_by_their_path(shards):
    assert len(open_pairs(shards)) == COUNT
    with Image.open(io.BytesIO(open_pairs(shards)[5].image)) as image:
        assert image.getpixel((0, 0)) == COLORS[5]
    assert jax.device_count() == 8
