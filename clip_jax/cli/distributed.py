"""`--distributed`: meeting the same command on the other hosts of a pod or cluster."""

import argparse
import os
from typing import Any

NUM_PROCESSES, PROCESS_ID = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def add(parser: argparse.ArgumentParser, what: str) -> None:
    """Declares the option; `what` says what is done with the others."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help=f"{what} with the same command on the other hosts of a pod or cluster",
    )


def join(otherwise: str, *, agrees_on_sigterm: bool = False, **options: Any) -> None:
    """Waits for the other processes, and becomes one of them.

    TPU pods, Slurm, Open MPI and Kubernetes (with the package `kubernetes`) tell JAX by themselves
    who they are. Elsewhere three variables of the environment do: JAX_COORDINATOR_ADDRESS, the
    host and port of process 0, the same for all; JAX_NUM_PROCESSES; and JAX_PROCESS_ID, from 0.

    Args:
        otherwise: what to do where there is no pod or cluster.
        agrees_on_sigterm: whether JAX takes SIGTERM, and tells all processes a step to stop at;
            else it ends each by itself.
        **options: for `jax.distributed.initialize`.

    Raises:
        ValueError: there is no pod or cluster, or a variable is no number.
    """
    import jax

    jax.config.update("jax_enable_preemption_service", agrees_on_sigterm)
    try:
        jax.distributed.initialize(
            num_processes=_number(NUM_PROCESSES), process_id=_number(PROCESS_ID), **options
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed finds no pod or cluster here ({error}): {otherwise}"
        ) from None


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise ValueError(f"{name} must be a whole number from 0 on. Got {text!r}")
    return int(text)
