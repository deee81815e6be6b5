"""Ray clusters of several nodes on this machine, and what can befall them."""

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import clip_jax
from tests.embedding_jobs import write_pictures
from tests.models import SMALL_VIT, small
from tests.processes import wait_until
from tests.ray_site import sitecustomize

# Marks the processes of a cluster, which inherit it.
MARK = "CLIP_JAX_TEST_CLUSTER"
NODE = {"num_cpus": 2, "object_store_memory": 200 << 20}


def command_folder(folder: Path) -> Path:
    """A folder with a small `model`, and pictures enough for a job in `in` to be interrupted."""
    clip_jax.save(small(SMALL_VIT), folder / "model")
    write_pictures(folder / "in", 400)
    return folder


@contextlib.contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """A cluster of nodes of two CPUs each, besides a head that has none."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv(MARK, str(os.getpid()))
        from ray.cluster_utils import Cluster

        warnings.simplefilter("ignore")  # of the forks by which Ray starts its processes
        head = NODE | {"num_cpus": 0, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(nodes):
                cluster.add_node(**NODE)
            yield cluster
        finally:
            cluster.shutdown()


@contextlib.contextmanager
def faulty(folder: Path) -> Iterator[Path]:
    """Has clusters that start in the block know faults; gives the file that makes disks full."""
    full, site = folder / "full", Path(sitecustomize.__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(sitecustomize.FULL, str(full))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
        yield full


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """This process is a driver of the cluster."""
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        try:
            yield
        finally:
            ray.shutdown()


def processes_of(kind: str, mark: str = "") -> list[int]:
    """The processes of the cluster that this one has started, by what Ray calls them.

    A command that starts a cluster of its own is given another mark.
    """
    found, marked = [], f"{MARK}={mark or os.getpid()}".encode()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdecimal() and kind.encode() in (folder / "cmdline").read_bytes():
                if marked in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def kill(kind: str) -> int:
    """Kills the processes of that kind; returns how many there were."""
    found = processes_of(kind)
    for number in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    return len(found)


@contextlib.contextmanager
def once(condition: Callable[[], object], act: Callable[[], object]) -> Iterator[list]:
    """Does something, once it is time, while the block runs; gives a list of what came of it."""
    done: list = []

    def wait() -> None:
        wait_until(condition, 60)
        done.append(act())

    thread = threading.Thread(target=wait)
    thread.start()
    yield done
    thread.join()
