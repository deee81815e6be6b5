"""Signals to a command that has a Ray cluster of its own, and clusters that let nobody in."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import processes, ray_clusters

pytestmark = pytest.mark.long

pytest.importorskip("ray")
MARK = f"{os.getpid()} signals"
ROOT = str(Path(__file__).parents[1])
# Whatever an extension makes of the exception of a signal is raised in its place.
TURNED = """
import os, signal, sys
from clip_jax import signals

def say(line):
    print(line, file=sys.stderr)

try:
    with signals.handled(say):
        signals.keeps("the rest is kept")
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            while True:
                pass
        except signals.Terminated:
            {raised}
except signals.Terminated as stop:
    print(stop.__notes__)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return ray_clusters.command_folder(tmp_path_factory.mktemp("command"))


def start(folder: Path, out: Path) -> subprocess.Popen:
    """A command in a process group of its own, as a shell or a scheduler starts it."""
    options = ["--model", "model", "--rows-per-part", "20", "--batch-size", "2", "--engine", "ray"]
    return subprocess.Popen(
        [sys.executable, "-m", "clip_jax", "embed", "in", "--out", str(out), *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": ROOT, ray_clusters.MARK: MARK},
    )


def terminate(process: subprocess.Popen) -> list[str]:
    """Ends the whole group within seconds, and its cluster; returns what is said."""
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    _, complained = process.communicate(timeout=60)
    assert process.returncode == 143, complained
    assert time.monotonic() - begin < 9
    processes.wait_until(lambda: not ray_clusters.processes_of("ray", MARK))
    return [line for line in complained.splitlines() if not line.startswith('{"rows"')]


def test_a_cluster_that_is_being_started_is_ended_in_order_and_leaves_no_folder(folder, tmp_path):
    process = start(folder, tmp_path / "out")
    processes.wait_until(lambda: ray_clusters.processes_of("gcs_server", MARK), 60)
    (line,) = terminate(process)
    assert line.startswith("clip-jax: terminated; ")
    assert not list(Path("/tmp/ray").glob(f"session_*_{process.pid}"))
    assert not (tmp_path / "out").exists()


def test_a_signal_to_the_whole_group_ends_a_job_as_one_to_the_command_does(folder, tmp_path):
    out = tmp_path / "out"
    process = start(folder, out)
    processes.wait_until(lambda: any(out.glob("part-*")) or process.poll() is not None, 120)
    assert os.getpgid(ray_clusters.processes_of("raylet", MARK)[0]) != process.pid
    (line,) = terminate(process)
    assert line.startswith("clip-jax: terminated; ")
    assert "written before are kept; the same command goes on from there" in line
    assert not list(Path("/tmp/ray").glob(f"session_*_{process.pid}"))


def test_a_version_of_ray_without_its_private_names_starts_all_the_same(monkeypatch):
    from ray._private import services, utils, worker

    from clip_jax.embed.engines import ray_cluster

    monkeypatch.delattr(services, "ConsolePopen")
    monkeypatch.delattr(utils, "set_sigterm_handler")
    monkeypatch.delattr(worker, "print_to_stdstream")
    with ray_cluster._starting_apart(), ray_cluster._silent():
        assert not hasattr(services, "ConsolePopen")


def test_a_cluster_that_lets_nobody_in_without_a_token_is_not_said_to_be_none(monkeypatch):
    import ray

    from clip_jax.embed.engines import ray_cluster

    def refuse(**_):
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr(ray, "init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="set RAY_AUTH_MODE=token") as caught:
            with ray_cluster.connected(address, 0):
                pass
    assert address in str(caught.value)


@pytest.mark.parametrize(
    "raised, notes",
    [
        ("e = KeyboardInterrupt(); e.add_note('3 parts'); raise e", ["3 parts"]),
        ("raise RuntimeError('an extension of C')", ["the rest is kept"]),
    ],
)
def test_what_is_kept_is_said_whatever_an_extension_makes_of_a_signal(raised, notes):
    script = TURNED.format(raised=raised)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == f"{notes}\n", done.stderr
