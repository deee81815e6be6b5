"""Memory that XLA computes on in place, on a device whose memory is the host's."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

# XLA copies what begins elsewhere. Arrays in our files begin at multiples of this, too.
ALIGNMENT = 64


def aligned_empty(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """A new C-contiguous array, not filled, that a CPU device adopts instead of copying it."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize * math.prod(shape)
    memory = np.empty(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(shape)


def round_up(size: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT
