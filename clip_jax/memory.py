"""Host arrays that a CPU device can use in place, and pages of mapped files."""

import contextlib
import math
import mmap
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

# Bytes. XLA copies arrays that are aligned to less. Arrays in our files are aligned to this too.
ALIGNMENT = 64


def aligned_empty(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """Returns an uninitialised C-contiguous array that a CPU device adopts instead of copying."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize * math.prod(shape)
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def round_up(size: int) -> int:
    """Rounds up to a multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def float32_copy(array: ArrayLike) -> np.ndarray:
    """Returns a C-contiguous float32 copy that a CPU device adopts instead of copying again."""
    copy = aligned_empty(np.shape(array), np.float32)
    np.copyto(copy, np.asarray(array))
    return copy


def populate(array: np.ndarray) -> None:
    """Reads the pages of a mapped array at once: faults page by page cost more than a copy."""
    _advise(array, _POPULATE_READ)


def release(array: np.ndarray) -> None:
    """Gives back the pages of a mapped array, which count as memory of this process once read.

    They are read again on use. Of an array that isn't mapped nothing changes.
    """
    _advise(array, getattr(mmap, "MADV_DONTNEED", None))


# MADV_POPULATE_READ of Linux, which Python has no name for yet.
_POPULATE_READ = 22 if sys.platform == "linux" else None


def _advise(array: np.ndarray, advice: int | None) -> None:
    """Calls madvise for the pages of a mapped array, where the system has it."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, mmap.mmap) or advice is None:
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    base = np.frombuffer(owner, np.uint8).ctypes.data
    # Only pages that lie entirely in this array: its neighbours are still to be read.
    begin = -(-(low - base) // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (high - base) // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end:
        with contextlib.suppress(OSError):  # an older kernel
            owner.madvise(advice, begin, end - begin)
