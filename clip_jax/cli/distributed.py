"""`--distributed`: joins the same command on the other hosts of a pod or cluster."""

import os
from typing import Any

NUM_PROCESSES, PROCESS_ID = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join(otherwise: str, *, agrees_on_sigterm: bool = False, **options: Any) -> None:
    """Waits for the other processes, and joins them.

    JAX finds out by itself who takes part on TPU pods and under Slurm, Open MPI and Kubernetes
    (with the package `kubernetes`). Elsewhere three environment variables say so:
    JAX_COORDINATOR_ADDRESS, the host and port of process 0, the same for all; JAX_NUM_PROCESSES;
    and JAX_PROCESS_ID, from 0.

    Args:
        otherwise: advice for the error if there is no pod or cluster.
        agrees_on_sigterm: whether JAX handles SIGTERM and tells all processes at which step to
            stop; otherwise SIGTERM ends each process by itself.
        **options: for `jax.distributed.initialize`.

    Raises:
        ValueError: there is no pod or cluster, or a variable is not a number.
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
