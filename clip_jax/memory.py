"""Host arrays that a CPU device can use in place, without a copy."""

import math
from collections.abc import Sequence

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
