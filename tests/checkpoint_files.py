"""Checkpoints as files: arrays of every dtype, how they are refused, and how they are damaged."""

import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from clip_jax.convert.reader import read_checkpoint
from clip_jax.errors import CheckpointError
from tests.pickles import FIVE, STORAGE_NAMES, W, tensor

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


DTYPES = [BFLOAT16 if name == "bfloat16" else np.dtype(name) for name in STORAGE_NAMES]


fast = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a checkpoint may be written."""
    return tmp_path / "model.pt"


def arrays_of_every_dtype() -> dict[str, np.ndarray]:
    """An array of each dtype that PyTorch has a storage for."""
    rng = np.random.default_rng(0)
    return {f"a.{dtype}": rng.integers(0, 2, (2, 3, 5)).astype(dtype) for dtype in DTYPES}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def refusal(path: Path) -> str:
    """The one-line error that a file gets, within the time that an error may take."""
    started = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert time.monotonic() - started < 20  # one that works takes minutes; two tests run at a time
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 3_000
    return message


def root_of(array: np.ndarray) -> object:
    """Whose memory an array is a view of."""
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        assert array.base is not None
        array = array.base
    return array


def survives(path: Path) -> None:
    """The file is read or refused, and nothing else happens."""
    try:
        found = read_checkpoint(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        for array in found.values():
            array.tobytes()


SMALL = {"w": W, "v.b": tensor("HalfStorage", "1", 6, 0, (2, 3), (3, 1))}
STORAGES = FIVE | {"1": bytes(12)}
EDITS = st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 255)), min_size=1, max_size=4)


def edited(data: bytes, edits: list[tuple[int, int]]) -> bytes:
    """Some bytes replaced by others."""
    result = bytearray(data)
    for at, byte in edits:
        result[at % len(result)] = byte
    return bytes(result)
