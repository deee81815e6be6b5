"""From a mapped file to arrays on a device, touching as few pages twice as possible."""

import concurrent.futures
import contextlib
import itertools
import math
import mmap
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from clip_jax.memory import round_up
from clip_jax.nn import flatten, unflatten


def on_device(params: Mapping[str, Any], *, adopt: bool) -> dict[str, Any]:
    """The tree's arrays as float32 JAX arrays.

    Args:
        params: views of a mapped file, used by nobody else.
        adopt: whether float32 arrays may stay where they are. A device whose memory is the host's
            then computes on the mapped file; others get a copy anyway.
    """
    arrays = flatten(params)
    if adopt and all(array.dtype == np.float32 for array in arrays.values()):
        hosts = list(arrays.values())
    else:
        # Half of the time goes into page faults, which run beside each other in threads.
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            hosts = list(pool.map(_float32, arrays.values(), _memory(arrays.values())))
    return unflatten(dict(zip(arrays, jax.device_put(hosts), strict=True)))


def _memory(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    """New float32 arrays of the same shapes, aligned so that a CPU device can adopt them.

    They lie in one mapping of large pages: much of what allocating each by itself would take is
    spent on finding such pages.
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
    # Page by page, on first touch, mapping costs more than converting.
    _advise(array, _POPULATE_READ)
    np.copyto(target, array)
    # Pages count as our memory once they were read.
    _advise(array, getattr(mmap, "MADV_DONTNEED", None))
    return target


# Linux's number; Python has no name for it yet.
_POPULATE_READ = 22 if sys.platform == "linux" else None


def _advise(array: np.ndarray, advice: int | None) -> None:
    """Tells the system about the pages of a mapped array; does nothing where it can't."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, mmap.mmap) or advice is None:
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    base = np.frombuffer(owner, np.uint8).ctypes.data
    # Whole pages of this array only: its neighbours' are still to be read.
    begin = -(-(low - base) // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (high - base) // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end:
        with contextlib.suppress(OSError):  # an older kernel
            owner.madvise(advice, begin, end - begin)
