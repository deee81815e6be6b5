"""A Ray cluster of several nodes on this machine, which a module's tests share."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

ADVICE = "Ray's own code leaves sockets and processes to the end of the process"


@contextlib.contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """A cluster of nodes of two CPUs each; the head has none, as drivers go where they like."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the forks by which Ray starts its processes
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 200 << 20}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(nodes):
                add_node(cluster)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def add_node(cluster: Any) -> Any:
    """Adds a node of two CPUs."""
    return cluster.add_node(num_cpus=2, object_store_memory=200 << 20)


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
