"""Archives of NumPy arrays that are damaged or made to cost: one error, and no memory taken."""

import io
import zipfile

import numpy as np
import pytest

from clip_jax.convert import archive
from clip_jax.convert.npz import read_npz
from clip_jax.errors import CheckpointError


def everything(names):
    return names


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as file:
        for value in (1.0, 2.0):
            file.writestr("params/img/kernel.npy", saved(np.full(3, value)))
    with pytest.raises(CheckpointError, match="params/img/kernel more than once"):
        read_npz(tmp_path / "twice.npz", everything)


def test_compressed_bytes_that_are_damaged_are_named(tmp_path):
    path = tmp_path / "damaged.npz"
    values = np.random.default_rng(0).standard_normal(5_000)
    np.savez_compressed(path, kernel=values, bias=values[:10])
    data = bytearray(path.read_bytes())
    data[2_000:2_100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged\.npz: .*kernel: "):
        read_npz(path, everything)


def test_a_table_of_contents_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    np.savez(tmp_path / "many.npz", **{f"array{i}": np.zeros(1) for i in range(200)})
    monkeypatch.setattr(archive, "MAX_CONTENTS_BYTES", 5_000)
    with pytest.raises(CheckpointError, match="table of contents of more than 5,000 bytes"):
        read_npz(tmp_path / "many.npz", everything)
