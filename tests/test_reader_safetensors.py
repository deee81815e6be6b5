"""Safetensors are read as the library writes them; bad ones are refused."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clip_jax.convert.reader import read_checkpoint
from tests.checkpoint_files import (
    BFLOAT16,
    DTYPES,
    EDITS,
    assert_same,
    edited,
    fast,
    refusal,
    root_of,
    survives,
)


def safetensors(header: object, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@fast
@given(st.dictionaries(
    st.text("ab.", min_size=1, max_size=4),
    st.sampled_from([d for d in DTYPES if d != BFLOAT16]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))),
    min_size=1, max_size=3))  # fmt: skip
def test_safetensors_are_read_as_the_library_writes_them(path, arrays):
    from safetensors.numpy import save_file

    save_file(arrays, path)
    found = read_checkpoint(path)
    assert_same({name: found[name] for name in arrays}, arrays)
    assert all(not array.flags.writeable for array in found.values())


def test_safetensors_are_mapped_and_know_bfloat16(tmp_path):
    array = np.arange(6, dtype=BFLOAT16).reshape(2, 3)
    path = tmp_path / "model.pt"
    header = {"__metadata__": {"format": "pt"}, "w": entry("BF16", (2, 3), (0, 12))}
    path.write_bytes(safetensors(header, array.tobytes()))
    found = read_checkpoint(path)
    assert_same(found, {"w": array})
    assert isinstance(root_of(found["w"]), np.memmap)


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"w": entry()}, bytes(7)),
        safetensors({"w": entry()}, bytes(9)),
        safetensors({"w": entry(offsets=(0, 4))}, bytes(8)),
        safetensors({"w": entry(offsets=(-8, 0))}, bytes(8)),
        safetensors({"w": entry(offsets=(8, 0))}, bytes(8)),
        safetensors({"w": entry(offsets=(0,))}, bytes(8)),
        safetensors({"w": entry(offsets=(0.0, 8.0))}, bytes(8)),
        safetensors({"w": entry(shape=(-2,))}, bytes(8)),
        safetensors({"w": entry(shape=(2**62, 4), offsets=(0, 0))}, b""),
        safetensors({"w": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}, b""),
        safetensors({"w": entry(shape=(1,) * 65, offsets=(0, 4))}, bytes(4)),
        safetensors({"w": entry(shape=2)}, bytes(8)),
        safetensors({"w": entry(dtype="F8_E4M3", offsets=(0, 2))}, bytes(2)),
        safetensors({"w": entry(dtype=4)}, bytes(8)),
        safetensors({"w": {**entry(), "extra": 1}}, bytes(8)),
        safetensors({"w": [1]}, bytes(8)),
        safetensors({"a": entry(), "b": entry()}, bytes(8)),
        safetensors({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
        safetensors({"a\n": entry()}, bytes(8)),
        safetensors({}, b""),
        safetensors(b'{"w": 1, "w": 2}', b""),
        safetensors(b'{"w"', b""),
        safetensors(b'{"w": \xff}', b""),
        safetensors(b'{"w": ' + b"[" * 100_000, b""),
        safetensors(b'{"w": ' + b"9" * 10_000 + b"}", b""),
        struct.pack("<Q", 1 << 20) + b"{}",
        struct.pack("<Q", 20 << 20) + b"{" + bytes(20 << 20),
    ],
)
def test_bad_safetensors_are_refused(path, content):
    path.write_bytes(content)
    refusal(path)


def test_module_prefix_of_all_names_is_dropped_in_safetensors(path):
    both = {"module.a": entry(), "module.b": entry(offsets=(8, 16))}
    path.write_bytes(safetensors(both, bytes(16)))
    assert list(read_checkpoint(path)) == ["a", "b"]
    path.write_bytes(safetensors({"module.a": entry(), "b": entry(offsets=(8, 16))}, bytes(16)))
    assert list(read_checkpoint(path)) == ["module.a", "b"]


def test_dtype_that_is_not_read_is_no_damage(path):
    path.write_bytes(safetensors({"w": entry("F8_E4M3", (2,), (0, 2))}, bytes(2)))
    message = refusal(path)
    assert "F8_E4M3" in message and ".float()" in message and "damaged" not in message


@settings(fast, max_examples=200)
@given(edits=EDITS)
def test_damaged_safetensors_never_crash(path, edits):
    path.write_bytes(
        edited(safetensors({"w": entry(), "v": entry(offsets=(8, 16))}, bytes(16)), edits)
    )
    survives(path)
