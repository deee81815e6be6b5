"""The same training twice, and trainings that are asked to stop: real processes, real signals."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip_jax.cli import main
from tests import quickly, training
from tests.processes import free_port
from tests.training import flip_one_bit, model_of
from tests.training_runs import checkpoints_of, read_metrics

pytest.importorskip("orbax.checkpoint")
pytest.importorskip("grain")


def start(toml, log, *settings, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training", str(toml), *settings],
        env=os.environ | quickly.ENVIRONMENT | environment,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=log,
    )


def steps_of(folder) -> list[int]:
    there = (folder / "metrics.jsonl").exists()
    return [record["step"] for record in read_metrics(folder)] if there else []


def wait_for_step(step, folder, *processes):
    deadline = time.monotonic() + 100
    while step not in steps_of(folder):
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stop(process, number, folder) -> int:
    """The exit status of a run that waits, after that signal; it has 10 seconds."""
    process.send_signal(number)
    (folder / "go").touch()
    status = process.wait(timeout=10)
    (folder / "go").unlink()
    return status


def lines_of(log) -> list[str]:
    """What the command itself says, without the bar and the libraries' own."""
    lines = log.read_text().replace("\r", "\n").splitlines()
    return [line.partition("clip-jax: ")[2] for line in lines if "clip-jax: " in line]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("undisturbed")
    # As the others, in a process of its own: it compiles as they do.
    with (folder / "log").open("w") as log:
        assert start(training.write_toml(folder, data), log).wait(timeout=200) == 0
    return folder / "run"


def test_a_second_training_is_refused_and_stopped_ones_go_on_with_the_same_bits(
    tmp_path, data, undisturbed
):
    toml, folder, log = training.write_toml(tmp_path, data), tmp_path / "run", tmp_path / "log"
    with log.open("w") as file:
        # As it compiles its first step, there is nothing to be saved.
        early = start(toml, file)
        while not (folder / "metrics.jsonl").exists():
            assert early.poll() is None
            time.sleep(0.002)
        assert stop(early, signal.SIGTERM, tmp_path) == 143
    assert len(lines_of(log)) == 1 and not (folder / "model").exists()

    with log.open("w") as file:
        first = start(toml, file, PAUSE="5")
        wait_for_step(5, folder, first)
        with (tmp_path / "second").open("w") as second:
            assert start(toml, second).wait(timeout=100) == 1
        (said,) = lines_of(tmp_path / "second")
        holder = f"{first.pid} on {socket.gethostname()}"
        assert said.startswith(f"another process ({holder}) is at work in {folder}: wait until it ")
        assert stop(first, signal.SIGTERM, tmp_path) == 143
    # The step that the signal came in is saved, whatever its number is.
    assert steps_of(folder) == [1, 2, 3, 4, 5, 6] and checkpoints_of(folder) == [4, 6]
    assert lines_of(log) == [f"terminated; the same command goes on from step 6, in {folder}"]

    with log.open("w") as file:
        again = start(toml, file, PAUSE="9")
        wait_for_step(9, folder, again)
        assert stop(again, signal.SIGINT, tmp_path) == 130
    assert checkpoints_of(folder) == [8, 10]
    assert lines_of(log) == [f"interrupted; the same command goes on from step 10, in {folder}"]

    with log.open("w") as file:
        assert start(toml, file).wait(timeout=100) == 0
    assert lines_of(log) == []
    assert steps_of(folder) == list(range(1, 13))
    assert model_of(folder) == model_of(undisturbed)


def test_a_folder_that_can_not_be_locked_is_named(tmp_path, data, monkeypatch, capsys):
    def refuse(descriptor, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert main(["train", str(training.write_toml(tmp_path, data))]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"clip-jax: {tmp_path}/run/run.lock: Input/output error"


# --- two processes that train together


def start_two(toml, logs, settings=((), ()), **environment: str) -> list[subprocess.Popen]:
    own = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        **environment,
    }
    own["JAX_NUM_CPU_DEVICES"] = "2"
    return [start(toml, logs[i], *settings[i], JAX_PROCESS_ID=str(i), **own) for i in range(2)]


def wait_for_both(processes, seconds=100) -> list[int]:
    try:
        return [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.long
def test_two_processes_stop_at_one_step_and_agree_on_the_whole_checkpoint(tmp_path, data):
    toml, folder = training.write_toml(tmp_path, data), tmp_path / "run"
    logs = [tmp_path / "0.log", tmp_path / "1.log"]

    def begin(**environment):
        with logs[0].open("w") as first, logs[1].open("w") as second:
            return start_two(toml, (first, second), **environment)

    running = begin(PAUSE="5")
    wait_for_step(5, folder, *running)
    running[1].send_signal(signal.SIGTERM)  # one of them is enough
    time.sleep(3)  # until JAX has told the other
    (tmp_path / "go").touch()
    assert wait_for_both(running) == [143, 143], [log.read_text()[-2000:] for log in logs]
    last = steps_of(folder)[-1]
    assert checkpoints_of(folder) == [4, last] and last < 12
    said = f"terminated; the same command goes on from step {last}, in {folder}"
    assert [lines_of(log) for log in logs] == [[said], [said]]

    # The first looks for damage: what it finds both of them take.
    flip_one_bit(max((folder / "checkpoints" / str(last) / "state" / "d").iterdir()))
    assert wait_for_both(begin()) == [0, 0], [log.read_text()[-2000:] for log in logs]
    (said,) = lines_of(logs[0])
    assert f"step {last} is damaged" in said and said.endswith("training goes on from step 4")
    assert lines_of(logs[1]) == []
    assert steps_of(folder) == list(range(1, 13))


@pytest.mark.long
def test_two_processes_that_do_not_have_the_same_data_are_refused(tmp_path, data):
    toml, folder = training.write_toml(tmp_path, data), tmp_path / "run"
    other = training.write(tmp_path / "other", swapped=(3, 20))
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    with logs[0].open("w") as first, logs[1].open("w") as second:
        running = start_two(toml, (first, second), settings=((), (f"data.train={other}",)))
        assert wait_for_both(running) == [1, 1], [log.read_text()[-2000:] for log in logs]
    said = "the processes don't train the same: give all of them the same configuration, data and "
    assert [lines_of(log) for log in logs] == [[f"{said}model"]] * 2
    assert not folder.exists()
