"""Arrays to a `.pt` file, by PyTorch itself: the one place that imports it."""

import contextlib
import errno
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

_DTYPES = {np.dtype(kind) for kind in "f2 f4 f8 i8 i4 i2 i1 u1 ?".split()}
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def write_pytorch(
    arrays: Mapping[str, np.ndarray], path: str | os.PathLike[str], *, replace: bool = True
) -> None:
    """Writes a state dictionary that `torch.load(path, weights_only=True)` reads, bit for bit.

    The file appears under its name complete or not at all.

    Args:
        arrays: by name.
        path: of the file.
        replace: whether it takes the place of one that is there by then.

    Raises:
      FileExistsError: there is one, which was not to be replaced.
      ModuleNotFoundError: PyTorch is not installed.
      OSError: it can't be written; nothing is left behind.
      ValueError: an array has a dtype that the reader of this package would refuse; lists them all.
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
        # A fresh copy each: torch.save would store arrays that share memory as one storage, and
        # from_numpy takes neither read-only nor foreign-endian memory.
        copy = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        if copy.dtype == _BFLOAT16:  # unknown to from_numpy
            return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(copy)

    path = Path(path)
    state = {name: tensor(array) for name, array in arrays.items()}
    # In the same folder, so that the rename can't cross file systems. Not from `tempfile`, whose
    # files only their owner may read.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(unfinished, "xb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path) if replace else _put_new(unfinished, path)
    except OSError as error:  # its own message names the unfinished file, or none
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def _put_new(unfinished: Path, path: Path) -> None:
    """Gives a file its name, unless another has it: which a rename would replace."""
    try:
        os.link(unfinished, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists already", str(path)) from None
        os.replace(unfinished, path)
