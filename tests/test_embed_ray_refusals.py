"""What the Ray engine refuses before work starts, and how its commands end."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip_jax.embed import embed
from clip_jax.embed.engines import places, ray_cluster
from tests import processes, ray_clusters
from tests.embedding_jobs import QUIET, contents

pytestmark = pytest.mark.long

pytest.importorskip("ray")
# Marks the clusters that commands start.
OWN = f"{os.getpid()} alone"


@pytest.mark.parametrize("address", ["somewhere", "ray://localhost:10001", "localhost:", ":1"])
def test_an_address_that_is_none_is_refused(pictures, model, tmp_path, address):
    with pytest.raises(ValueError, match="address must be auto or HOST:PORT"):
        embed(pictures, model, tmp_path / "out", engine="ray", address=address, **QUIET)
    assert not (tmp_path / "out").exists()


def test_no_cluster_at_an_address_is_told_at_once(pictures, model, tmp_path):
    begin, address = time.monotonic(), f"localhost:{processes.free_port()}"
    with pytest.raises(ConnectionError, match=f"no Ray cluster at {address}") as caught:
        embed(pictures, model, tmp_path / "out", engine="ray", address=address, **QUIET)
    assert "ray start --head" in str(caught.value)
    assert time.monotonic() - begin < 20  # Ray's own time is a minute


def test_without_ray_the_extra_is_named(pictures, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'clip-jax-flax\[ray\]'"):
        embed(pictures, model, tmp_path / "out", engine="ray", **QUIET)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"engine": "spark"}, "engine must be one of 'local', 'ray'. Got 'spark'."),
        ({"encoders": 2}, "encoders: for engine='ray'. Got engine='local'."),
        ({"engine": "ray", "decoders": 0}, "decoders must be an int of at least 1. Got 0."),
    ],
)
def test_options_that_dont_fit_are_refused(pictures, model, tmp_path, options, expected):
    with pytest.raises(ValueError) as caught:
        embed(pictures, model, tmp_path / "out", **options)
    assert str(caught.value) == expected


def test_a_dry_run_needs_no_cluster(pictures, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    summary = embed(pictures, model, tmp_path / "out", engine="ray", dry_run=True, **QUIET)
    assert (summary.rows_to_do, summary.parts_to_do) == (40, 1)


@pytest.fixture(scope="module")
def cluster():
    with ray_clusters.cluster_of(1) as found:
        yield found


def test_one_of_another_python_is_refused_with_both_named(cluster, pictures, model, tmp_path):
    from ray._private import ray_constants
    from ray._raylet import GcsClient

    store = GcsClient(address=cluster.address)
    place = b"CLUSTER_METADATA", ray_constants.KV_NAMESPACE_CLUSTER
    before = store.internal_kv_get(*place)
    assert before is not None
    other = before.replace(b'"python_version": "3.1', b'"python_version": "3.9')
    assert other != before
    store.internal_kv_put(place[0], other, True, place[1])
    try:
        with pytest.raises(ValueError, match="has other versions: ") as caught:
            embed(
                pictures,
                model,
                tmp_path / "out",
                engine="ray",
                address=cluster.address,
                **QUIET,
            )
    finally:
        store.internal_kv_put(place[0], before, True, place[1])
    here = ".".join(map(str, sys.version_info[:3]))
    assert f"Python 3.9{here[3:]} there" in str(caught.value)
    assert f"Python {here} here" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_one_of_another_version_of_this_package_is_refused_with_both_named(
    cluster, pictures, model, tmp_path, monkeypatch
):
    ours = places.versions()
    mine = ours | {"clip-jax-flax": "9.9"}
    monkeypatch.setattr(ray_cluster, "versions", lambda: mine)
    with pytest.raises(ValueError) as caught:
        embed(pictures, model, tmp_path / "out", engine="ray", address=cluster.address, **QUIET)
    assert f"clip-jax-flax {ours['clip-jax-flax']} there, clip-jax-flax 9.9 here" in str(
        caught.value
    )
    assert not (tmp_path / "out").exists()


def test_another_cluster_than_the_joined_one_is_refused(cluster, pictures, model, tmp_path):
    with ray_clusters.joined(cluster.address):
        with pytest.raises(ValueError, match=r"call ray.shutdown\(\)"):
            embed(pictures, model, tmp_path, engine="ray", address="localhost:1", **QUIET)


def test_a_path_of_a_model_that_a_node_has_not_is_named(cluster, pictures, tmp_path):
    from clip_jax.embed.engines.places import check_here

    with pytest.raises(ValueError, match="has no /nowhere/model: give paths that all nodes"):
        check_here("/", ["/", "/nowhere/model"], places.versions())


def test_python_may_differ_in_its_last_number_alone():
    ours = {"Python": "3.11.7", "jax": "0.10.2"}
    assert not places.unlike({"Python": "3.11.9", "jax": "0.10.2"}, ours)
    other = places.unlike({"Python": "3.12.7", "jax": "0.10.3"}, ours)
    assert other == "Python 3.12.7, jax 0.10.3 there, Python 3.11.7, jax 0.10.2 here"
    assert places.unlike({"Python": "3.11.7"}, ours) == "jax missing there, jax 0.10.2 here"


def test_errors_arrive_from_other_processes_as_they_were_raised():
    from clip_jax.errors import NotFiniteError, Unreachable

    error = pickle.loads(pickle.dumps(NotFiniteError("rows 1", [1])))
    assert (str(error), error.rows) == ("rows 1", [1])
    unreachable = Unreachable("no answer")
    unreachable.is_silent = True
    assert pickle.loads(pickle.dumps(unreachable)).is_silent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return ray_clusters.command_folder(tmp_path_factory.mktemp("command"))


def start(folder: Path, out: Path, *options: str) -> subprocess.Popen:
    """The command as a user starts it, in the folder of its input."""
    root = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "clip_jax", "embed", "in", "--out", str(out), "--model"]
        + ["model", "--rows-per-part", "20", "--batch-size", "2", *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root, ray_clusters.MARK: OWN},
    )


def without_progress(complained: str) -> list[str]:
    """The lines on standard error that aren't progress, which slow machines have."""
    return [line for line in complained.splitlines() if not line.startswith('{"rows"')]


def test_is_quiet_and_leaves_what_the_local_engine_leaves(folder, tmp_path):
    local = start(folder, tmp_path / "local")
    ray = start(folder, tmp_path / "ray", "--engine", "ray")
    (said, complained), _ = ray.communicate(timeout=200), local.communicate(timeout=200)
    assert (ray.returncode, without_progress(complained)) == (0, [])
    assert said.startswith("400 rows in 20 parts, 0 rows before, 0 errors; ")
    assert len(said.splitlines()) == 2
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    processes.wait_until(lambda: not ray_clusters.processes_of("raylet", OWN))


def test_ends_with_130_on_ctrl_c_and_its_cluster_with_it(folder, tmp_path):
    out = tmp_path / "out"
    process = start(folder, out, "--engine", "ray")
    processes.wait_until(lambda: any(out.glob("part-*")) or process.poll() is not None, 120)
    assert ray_clusters.processes_of("raylet", OWN)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, complained = process.communicate(timeout=60)
    assert time.monotonic() - begin < 5  # one second, where nobody else is at work
    assert process.returncode == 130
    (line,) = without_progress(complained)
    assert line.startswith("clip-jax: interrupted; ")
    processes.wait_until(lambda: not ray_clusters.processes_of("ray", OWN))
