"""`flax_model.msgpack`: right to the bit, mapped, in PyTorch's names; what else may be in it."""

import struct
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest

from clip_jax.convert.reader import read_checkpoint
from tests import fuzz_checkpoints
from tests.checkpoint_files import arrays_of_every_dtype, refusal, root_of
from tests.container_mutations import flax_bytes


def write(path: Path, tree: dict) -> Path:
    path.write_bytes(flax_bytes(tree))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flax_model.msgpack"


def test_arrays_get_the_names_and_the_layout_of_pytorch(path):
    rng = np.random.default_rng(0)
    kernel, patch = rng.normal(size=(2, 3)), rng.normal(size=(5, 7, 3, 2)).astype(np.float32)
    layer = {"fc1": {"kernel": kernel, "bias": kernel[0]}, "layer_norm1": {"scale": kernel[1]}}
    tree = {
        "text_model": {
            "encoder": {"layers": {"0": layer}},
            "embeddings": {"token_embedding": {"embedding": kernel}},
        },
        "vision_model": {
            "embeddings": {"class_embedding": kernel[0], "patch_embedding": {"kernel": patch}}
        },
        "logit_scale": np.array(2.5, np.float32),
    }
    expected = {
        "text_model.encoder.layers.0.fc1.weight": kernel.T,
        "text_model.encoder.layers.0.fc1.bias": kernel[0],
        "text_model.encoder.layers.0.layer_norm1.weight": kernel[1],
        "text_model.embeddings.token_embedding.weight": kernel,
        "vision_model.embeddings.class_embedding": kernel[0],
        "vision_model.embeddings.patch_embedding.weight": patch.transpose(3, 2, 0, 1),
        "logit_scale": np.array(2.5, np.float32),
    }
    found = read_checkpoint(write(path, tree))
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert np.array_equal(found[name], array)


def test_every_dtype_is_read_to_the_bit_and_mapped(path):
    arrays = {name.replace(".", "_"): a for name, a in arrays_of_every_dtype().items()}
    found = read_checkpoint(write(path, arrays))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes()
        assert isinstance(root_of(found[name]), np.memmap) and not found[name].flags.writeable


def test_flax_itself_writes_what_is_read(path):
    from flax.serialization import to_bytes

    tree = {
        "a": {"kernel": np.ones((2, 3), ml_dtypes.bfloat16)},
        "s": np.float32(7),
        "e": np.zeros((0, 4), np.float16),
        **{f"block_{i}": {"bias": np.full(i, i, np.float32)} for i in range(1, 40)},
    }
    path.write_bytes(to_bytes(tree))
    found = read_checkpoint(path)
    assert found["a.weight"].shape == (3, 2) and found["e"].shape == (0, 4) and found["s"] == 7
    assert np.array_equal(found["block_39.bias"], np.full(39, 39, np.float32))


def test_shapes_of_any_width_of_number_are_read(path):
    big = np.arange(70_000, dtype=np.uint8)
    found = read_checkpoint(write(path, {"a": big[:200], "b": big, "c": big.reshape(2, 35_000)}))
    assert [found[name].shape for name in "abc"] == [(200,), (70_000,), (2, 35_000)]
    assert np.array_equal(found["b"], big)


def raw(tree) -> bytes:
    return msgpack.packb(tree)


def extension(kind: int, *content) -> msgpack.ExtType:
    return msgpack.ExtType(kind, msgpack.packb(list(content)))


def nested(depth: int) -> bytes:
    return b"\x81\xa1a" * depth + raw({"a": extension(1, [1], "float32", bytes(4))})


BAD = {
    "a second type of extension": (raw({"a": extension(2, 0.0, 1.0)}), "a is an extension of type"),
    "an unknown dtype": (raw({"a": extension(1, [1], "complex64", bytes(8))}), "dtype complex64"),
    "fewer bytes than the shape": (raw({"a": extension(1, [9], "float32", bytes(4))}), "shape"),
    "a shape of text": (raw({"a": extension(1, ["x"], "float32", b"")}), "not of sizes"),
    "a shape below zero": (raw({"a": extension(1, [-1], "float32", b"")}), "not of sizes"),
    "a shape beyond 64 bits": (raw({"a": extension(1, [2**64 - 1, 0], "int8", b"")}), "64 bits"),
    "axes that overflow": (raw({"a": extension(1, [2**62, 2**62, 0], "int8", b"")}), "a "),
    "many axes": (raw({"a": extension(1, [1] * 65, "int8", b"a")}), "65 dimensions"),
    "two arrays only": (raw({"a": extension(1, [1], "int8")}), "not (shape, dtype, bytes)"),
    "a kernel of three axes": (
        raw({"kernel": extension(1, [1, 1, 1], "int8", b"a")}),
        "2 or 4 axes",
    ),
    "a list": (raw({"a": [1, 2]}), "holds a list in a"),
    "nothing": (raw({"a": {"b": None}}), "holds nothing (nil) in a/b"),
    "a number": (raw({"step": 70_000}), "holds a number in step"),
    "a number for a name": (raw({"a": {1: {}}}), "has a number for a name"),
    "a name that clears the screen": (raw({"\x1b[2J": extension(1, [1], "int8", b"a")}), "no name"),
    "a name of a megabyte": (raw({"a" * 1_000_000: {}}), "a name of 1,000,000 bytes"),
    "a name that is not UTF-8": (b"\x81\xa1\xff\x80", "not UTF-8"),
    "a name twice": (b"\x82\xa1a\x80\xa1a\x80", "has a twice"),
    "two names of one array": (
        raw(
            {"scale": extension(1, [1], "int8", b"a"), "embedding": extension(1, [1], "int8", b"b")}
        ),
        "second array for weight",
    ),
    "no arrays": (raw({"a": {"b": {}}}), "holds no arrays"),
    "more after the end": (raw({"a": extension(1, [1], "int8", b"a")}) + b"x", "1 bytes after"),
    "a map of four billion": (b"\xdf\xff\xff\xff\xff\xa1a\x80", "ends at byte"),
    "an extension of four gigabytes": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "cut short"),
    "a million maps in maps": (nested(1_000_000), "more than 64 deep"),
    "a million empty maps": (
        b"\xdf\x00\x10\x00\x00" + b"".join(b"\xa4" + struct.pack(">I", i) for i in range(1 << 20)),
        "",
    ),
    "a chunked array": (
        raw({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {}}}),
        "splits array a into chunks",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_array_is_refused_in_one_line(path, what):
    data, expected = BAD[what]
    path.write_bytes(data)
    assert expected in refusal(path)


def test_a_hundred_thousand_names_are_the_most(path):
    names = b"".join(b"\xa6" + f"{i:06d}".encode() + b"\x80" for i in range(100_001))
    path.write_bytes(b"\xdf" + struct.pack(">I", 100_001) + names)
    assert "more than 100,000 names" in refusal(path)


def test_every_bad_array_is_in_one_error(path):
    bad = {f"a{i}": extension(1, [i + 2], "int8", b"x") for i in range(3)}
    path.write_bytes(raw(bad))
    message = refusal(path)
    assert all(f"a{i} has int8 of shape ({i + 2})" in message for i in range(3))


def test_every_cut_of_a_file_is_said_to_be_one(path):
    data = flax_bytes({"text_model": {"a": {"kernel": np.ones((3, 5), np.float32)}}})
    for end in range(1, len(data)):
        path.write_bytes(data[:end])
        refusal(path)


def test_changed_files_are_read_or_refused(tmp_path):
    counts, failures = fuzz_checkpoints.fuzz(
        "msgpack", 1, tmp_path, range(400), read=read_checkpoint
    )
    assert failures == {} and counts["refused"] > 100 and counts["loaded"] > 10
