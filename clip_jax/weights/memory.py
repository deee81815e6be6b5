"""Moves arrays from a mapped file to a device, with few page faults."""

import concurrent.futures
import contextlib
import itertools
import math
import mmap
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from clip_jax.memory import ALIGNMENT, populate, release, round_up
from clip_jax.nn import flatten, unflatten


def on_device(params: Mapping[str, Any], *, adopt: bool) -> dict[str, Any]:
    """Returns the tree with its arrays as float32 JAX arrays.

    Args:
        params: views of a mapped file, used by nothing else.
        adopt: whether float32 arrays may stay where they are. A CPU device then computes on the
            mapped file; other devices get a copy anyway.
    """
    arrays = flatten(params)
    if adopt and all(array.dtype == np.float32 for array in arrays.values()):
        hosts = list(arrays.values())
    else:
        # Half of the time goes into page faults, which threads handle in parallel.
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            hosts = list(pool.map(_float32, arrays.values(), _memory(arrays.values())))
    return unflatten(dict(zip(arrays, jax.device_put(hosts), strict=True)))


def _memory(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Allocates float32 arrays of the same shapes, aligned so that a CPU device can adopt them.

    They share one mapping of huge pages, which is much faster than allocating each by itself.
    """
    shapes = [array.shape for array in arrays]
    sizes = [4 * math.prod(shape) for shape in shapes]
    begins = [0, *itertools.accumulate(map(round_up, sizes))]
    mapping = mmap.mmap(-1, max(begins[-1], 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(mapping, np.uint8)
    return [
        memory[begin : begin + size].view(np.float32).reshape(shape)
        for begin, size, shape in zip(begins, sizes, shapes, strict=False)
    ]


def _float32(array: np.ndarray, target: np.ndarray) -> np.ndarray:
    # Populated at once, because faults page by page cost more than the conversion.
    populate(array)
    _copy(target, array)
    release(array)
    return target


def _copy(target: np.ndarray, array: np.ndarray) -> None:
    """Copies an array; a transposed one, as PyTorch's matrices are to us, a few columns at a time.

    NumPy writes column after column, each element to another cache line. With as many columns as a
    line has numbers, a matrix of 4096 x 1024 takes a seventh of the time.
    """
    if array.ndim != 2 or abs(array.strides[0]) >= abs(array.strides[1]):
        np.copyto(target, array)
        return
    for i in range(0, array.shape[1], _COLUMNS):
        np.copyto(target[:, i : i + _COLUMNS], array[:, i : i + _COLUMNS])


_COLUMNS = ALIGNMENT // 4
