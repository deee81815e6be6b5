"""Writes arrays to a `.pt` file with PyTorch itself: the only place here that imports it."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from clip_jax.unfinished import put_new, written_aside

_DTYPES = {np.dtype(kind) for kind in "f2 f4 f8 i8 i4 i2 i1 u1 ?".split()}
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def write_pytorch(
    arrays: Mapping[str, np.ndarray], path: str | os.PathLike[str], *, replace: bool = True
) -> None:
    """Writes a state dictionary that `torch.load(path, weights_only=True)` reads, bit for bit.

    The write is atomic.

    Args:
        arrays: arrays by name.
        path: the path of the file.
        replace: whether to replace a file that exists at the end of the write.

    Raises:
      FileExistsError: the file exists and `replace` is False.
      ModuleNotFoundError: PyTorch is not installed.
      OSError: it can't be written; nothing is left behind.
      ValueError: dtypes that the reader of this package would refuse; lists all of them.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "writing a .pt file needs PyTorch: pip install 'clip-jax-flax[torch]', or write "
            "safetensors instead",
            name="torch",
        ) from None

    bad = {
        name: str(array.dtype)
        for name, array in arrays.items()
        if array.dtype.newbyteorder("=") not in _DTYPES | {_BFLOAT16}
    }
    if bad:
        raise ValueError(
            f"dtypes must be among {sorted(map(str, _DTYPES))} and bfloat16. Got {bad}."
        )

    def tensor(array: np.ndarray) -> torch.Tensor:
        # A separate copy of each: torch.save would store arrays that share memory as one storage,
        # and from_numpy takes neither read-only nor foreign-endian memory.
        copy = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        if copy.dtype == _BFLOAT16:  # unknown to from_numpy
            return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(copy)

    path = Path(path)
    state = {name: tensor(array) for name, array in arrays.items()}
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
    with written_aside(str(path), lambda file: torch.save(state, file)) as unfinished:
        if replace:
            os.replace(unfinished, path)
        elif not put_new(unfinished, str(path)):
            raise FileExistsError(errno.EEXIST, "exists already", str(path))
