"""Joins a Ray cluster, or starts one on this machine; refuses one that can't do the work."""

import contextlib
import functools
import logging
import os
import re
import shutil
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.embed.engines.local import num_cores
from clip_jax.embed.engines.places import unlike, versions
from clip_jax.signals import deferred

# Seconds in which a cluster must answer, and each of its nodes.
ANSWER, NODES = 5.0, 60.0
# Accelerators of a node, by Ray's names.
ACCELERATORS = ("GPU", "TPU")
# What Ray reads when it is imported or started: it is quiet, and tells nobody that it is used.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_raylet_start_wait_time_s": "15",
    # A handler of SIGTERM in place of Python's, which prints a stack and may crash.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    # A message for each task that is lost with its process, and done again.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
# The same of a cluster of our own. Its history of tasks, which nobody would read, is what the end
# of a driver waits for where a signal has ended the cluster, too.
_OWN = {"RAY_task_events_report_interval_ms": "0"}


@contextlib.contextmanager
def connected(address: str | None, memory: int) -> Iterator[bool]:
    """Joins a cluster for the block; without an address, starts one that ends with the block.

    A connection that this process has already is used, and left.

    Args:
        address: "auto" for the cluster that this node belongs to, or HOST:PORT; None for none.
        memory: the bytes that a new cluster should have for objects.

    Yields:
        Whether the connection ends with the block, and with it all processes of the job.

    Raises:
        ModuleNotFoundError: Ray isn't installed.
        ValueError: the address is malformed; or the cluster has another version of Python, Ray,
            this package or what it computes with.
        OSError: there is no cluster at the address.
    """
    for name, value in (_QUIET if address else _QUIET | _OWN).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the engine 'ray' needs Ray: pip install 'clip-jax-flax[ray]'"
        ) from None
    if ray.is_initialized():
        _check_same(address, ray.get_runtime_context().gcs_address)
        _check_nodes(address or "that this process has joined")
        yield False
        return
    if address is not None:
        _check_answers(address)
    own = None
    try:
        # What is half started could not be ended in order.
        with contextlib.nullcontext() if address else deferred(None):
            with _handlers_kept(), _starting_apart(), warnings.catch_warnings():
                _join(address, memory)
            own = None if address else _folder()
        with _silent():
            if address is not None:
                _check_nodes(address)
            yield True
    except OSError:
        own = None  # its logs may say more
        raise
    finally:
        ray.shutdown()
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)


def nodes() -> list[Mapping[str, Any]]:
    """Returns the nodes of the cluster that can run something."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]


def accelerators() -> tuple[str, int]:
    """Returns the kind of the cluster's accelerators, and how many there are; "CPU", its nodes."""
    import ray

    found = ray.cluster_resources()
    for kind in ACCELERATORS:
        if count := int(found.get(kind, 0)):
            return kind, count
    return "CPU", len(nodes())


def _folder() -> str | None:
    """Returns the folder in which a cluster of this machine keeps its logs and sockets."""
    import ray

    sockets = (node.get("ObjectStoreSocketName", "") for node in ray.nodes())
    found = [os.path.dirname(os.path.dirname(path)) for path in sockets]
    # Nothing is removed that isn't certainly Ray's.
    return next((f for f in found if os.path.basename(f).startswith("session_")), None)


def _join(address: str | None, memory: int) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        # JAX's warning is of processes that go on as copies of this one.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        if address is None:
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=num_cores(),
                object_store_memory=memory,
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except ConnectionError:
        if address in (None, "auto"):
            raise _none_at(address, "none is running") from None
        raise ConnectionError(
            f"what listens at {address} is no Ray cluster that lets this process in: if it asks "
            "for a token, as Ray says when it starts, set RAY_AUTH_MODE=token, and have "
            "the same ~/.ray/auth_token here"
        ) from None
    except RuntimeError as error:
        raise _refusal(address, error) from None


def _refusal(address: str | None, error: RuntimeError) -> Exception:
    """Returns the error to raise for Ray's own."""
    said = " ".join(str(error).split())
    found = re.findall(r"(Ray|Python): (\S+?)(?=\s|$)", said)
    if "ersion mismatch" in said and len(found) >= 4:
        there, here = (", ".join(f"{n} {v}" for n, v in pair) for pair in (found[:2], found[2:4]))
        return ValueError(
            f"the Ray cluster at {address} has other versions: {there} there, {here} here. Start "
            "it with the same, or start this from its environment"
        )
    where = "a Ray cluster can't be started here" if address is None else f"Ray at {address}"
    return OSError(f"{where}: {said}")


def _check_answers(address: str) -> None:
    """Checks within seconds that something listens at an address; Ray itself takes minutes."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if address.startswith("ray://") or not (host and colon and port.isdecimal()):
        raise ValueError(
            f"address must be auto or HOST:PORT, that of the cluster's head as `ray start` prints "
            f"it. Got {address!r}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise _none_at(address, str(error)) from None


def _none_at(address: str | None, reason: str) -> OSError:
    return ConnectionError(
        f"no Ray cluster at {address} ({reason}): start one with `ray start --head`, or leave out "
        "the address for one on this machine"
    )


def _check_same(address: str | None, ours: str) -> None:
    if address not in (None, "auto", ours):
        raise ValueError(
            f"this process has joined the Ray cluster at {ours}: call ray.shutdown() before "
            f"another address is given. Got {address!r}"
        )


def _check_nodes(where: str) -> None:
    """Checks that all nodes have the versions of this process.

    Raises:
        ValueError: one has others, or lacks this package.
        OSError: none answers.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    paths = ("clip_jax.embed.engines.places",)

    def probe() -> Any:  # travels by value, as the package may be missing there
        import importlib
        import platform

        try:
            return platform.node(), importlib.import_module(paths[0]).versions()
        except ImportError as error:
            return platform.node(), str(error)

    asked = [
        ray.remote(probe)
        .options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote()
        for node in nodes()
    ]
    if not asked:
        raise ValueError(f"the Ray cluster {where} has no node with CPUs: start one")
    answers, silent = [], ""
    there, _ = ray.wait(asked, num_returns=len(asked), timeout=NODES)
    for answer in there:
        try:
            answers.append(ray.get(answer))
        except RayError as error:  # it has died, which Ray takes some seconds to notice
            silent = str(error).strip().partition("\n")[0]
    if not answers:
        raise OSError(f"no node of the Ray cluster {where} answers: {silent or 'they are busy'}")
    ours = versions()
    for node, theirs in answers:
        if isinstance(theirs, str):
            raise ValueError(
                f"the node {node} of the Ray cluster {where} can't import clip_jax ({theirs}): "
                f"install clip-jax-flax {ours['clip-jax-flax']} there"
            )
        if other := unlike(theirs, ours):
            raise ValueError(
                f"the node {node} of the Ray cluster {where} has other versions: {other}. Install "
                "the same there"
            )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps what befalls processes of the cluster off standard output, where Ray prints it."""
    with _replaced("ray._private.worker", "print_to_stdstream", lambda *_, **__: None):
        yield


@contextlib.contextmanager
def _starting_apart() -> Iterator[None]:
    """Has Ray start its processes in a process group of their own each, and leave SIGTERM alone.

    A signal to the group of this process is for this process, which ends the cluster in order.
    """
    popen: Any = getattr(sys.modules.get("ray._private.services"), "ConsolePopen", None)
    apart = functools.partial(popen, process_group=0) if popen and os.name == "posix" else popen
    with (
        _replaced("ray._private.services", "ConsolePopen", apart),
        _replaced("ray._private.utils", "set_sigterm_handler", lambda *_: None),
    ):
        yield


@contextlib.contextmanager
def _replaced(module: str, name: str, value: Any) -> Iterator[None]:
    """Has a name in a module of Ray's mean something else in the block, where Ray has it.

    These names are private. A version of Ray without them says more, and ends less orderly.
    """
    found = sys.modules.get(module)
    if not hasattr(found, name):
        yield
        return
    before = getattr(found, name)
    setattr(found, name, value)
    try:
        yield
    finally:
        setattr(found, name, before)


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Keeps this process's handlers of signals, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    hook = sys.excepthook
    try:
        yield
    finally:
        for number, handler in kept.items():
            if handler is not None:
                signal.signal(number, handler)
        sys.excepthook = hook
