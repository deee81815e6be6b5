"""Coordination of processes that train together. All of them must make each call."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def by_first(do: Callable[[], Any]) -> Any:
    """Calls a function in the first process only, and returns its result in all.

    Args:
        do: the function, which returns plain JSON.

    Raises:
        OSError: the function raised it; only in the first process, the others raise ValueError.
        ValueError: the function raised it; in all processes.
    """
    if jax.process_count() == 1:
        return do()
    if jax.process_index() != 0:
        answer = json.loads(_from_first(b""))
        if "refused" in answer:
            raise ValueError(answer["refused"])
        return answer["given"]
    try:
        given = do()
    except (OSError, ValueError) as error:
        _from_first(json.dumps({"refused": str(error)}).encode())
        raise
    _from_first(json.dumps({"given": given}).encode())
    return given


def is_same(text: str) -> bool:
    """Whether all processes pass the same text."""
    return all_true(by_first(lambda: text) == text)


def all_true(value: bool) -> bool:
    """Whether the value is true in all processes."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(value)).all())


def total(value: int) -> int:
    """Returns the sum of the value over all processes."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.array(value)).sum())


def _from_first(text: bytes) -> bytes:
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(length, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(padded))
