"""Reading checkpoints: right to the bit, without a copy; tensors that do not fit are refused."""

import os
import socket
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.convert.reader import read_checkpoint
from tests.checkpoint_files import (
    arrays_of_every_dtype,
    assert_same,
    fast,
    refusal,
    root_of,
    survives,
)
from tests.pickles import (
    FIVE,
    Raw,
    W,
    call,
    encode,
    entries_of,
    parts,
    program,
    record,
    tensor,
    write,
    zipped,
)

# ---- what is read -------------------------------------------------------------------------------


def test_state_dict_of_every_dtype(path):
    arrays = arrays_of_every_dtype()
    assert_same(read_checkpoint(write(path, *parts(arrays))), arrays)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_state_dict_nested_in_a_training_checkpoint(path, wrapper):
    arrays = arrays_of_every_dtype()
    tensors, storages = parts(arrays)
    optimizer = {"state": {0: {"step": 1.0, "exp_avg": next(iter(tensors.values()))}}}
    prefixed = {f"module.{name}": value for name, value in tensors.items()}
    root = {"epoch": 3, "optimizer": optimizer, "name": "run", wrapper: prefixed}
    assert_same(read_checkpoint(write(path, root, storages)), arrays)


def test_module_prefix_stays_unless_all_names_have_it(path):
    assert list(read_checkpoint(write(path, {"module.a": W, "b": W}, FIVE))) == ["module.a", "b"]


def test_two_nested_state_dicts_are_ambiguous(path):
    message = refusal(write(path, {"model": {"a": W}, "state_dict": {"a": W}}, FIVE))
    assert "model: 1 array, state_dict: 1 array" in message


def test_ordered_dict_with_metadata_and_parameters(path):
    metadata = encode({"_metadata": call("collections", "OrderedDict")})
    ordered = Raw(
        call("collections", "OrderedDict")
        + b"("
        + encode("w")
        + call("torch._utils", "_rebuild_parameter", W, True, call("collections", "OrderedDict"))
        + b"u"
        + metadata
        + b"b"
    )
    assert read_checkpoint(write(path, ordered, FIVE))["w"].tolist() == [0, 1, 2, 3, 4]


def test_protocol_4_with_framed_stack_globals(path):
    def stack_global(module: str, name: str) -> bytes:
        short = [b"\x8c" + bytes([len(s)]) + s.encode() + b"\x94" for s in (module, name)]
        return b"".join(short) + b"\x93\x94"

    pid = b"(" + encode("storage") + stack_global("torch", "FloatStorage")
    pid += encode("0") + encode("cpu") + encode(5) + b"tQ"
    arguments = b"(" + pid + encode(1) + encode((2, 2)) + encode((2, 1)) + b"\x89}t"
    body = b"}" + encode("w") + stack_global("torch._utils", "_rebuild_tensor_v2")
    body += arguments + b"Rs."
    pickle = b"\x80\x04\x95" + struct.pack("<Q", len(body)) + body
    assert read_checkpoint(write(path, pickle, FIVE))["w"].tolist() == [[1, 2], [3, 4]]


def test_torchscript_names_are_paths(path):
    linear = record("Linear", {"weight": W, "bias": None, "training": False, "in_features": 7})
    root = record(
        "Model",
        {
            "logit_scale": tensor("FloatStorage", "0", 5, 3, (), ()),
            "input_resolution": 224,
            "context_length": tensor("LongStorage", "1", 1, 0, (), ()),
            "training": True,
            "names": ["a", 1.5, (None,)],
            "sizes": call("torch.jit._pickle", "build_intlist", [1, 2]),
            "table": call("torch.jit._pickle", "restore_type_tag", {"a": 1}, "Dict[str, int]"),
            "device": call("torch", "device", "cuda", 0),
            "shape": call("torch", "Size", (1, 2)),
            "visual": record("Visual", {"0": linear, "proj": W}),
        },
    )
    found = read_checkpoint(write(path, root, FIVE | {"1": struct.pack("<q", 77)}))
    assert list(found) == [
        "logit_scale",
        "input_resolution",
        "context_length",
        "visual.0.weight",
        "visual.proj",
    ]
    assert all(found[name].shape == () for name in list(found)[:3])
    assert (found["logit_scale"], found["input_resolution"], found["context_length"]) == (
        3,
        224,
        77,
    )


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "expected"),
    [
        (0, (), (), 0),
        (4, (), (), 4),
        (1, (2, 2), (2, 1), [[1, 2], [3, 4]]),
        (0, (2, 2), (1, 3), [[0, 3], [1, 4]]),
        (0, (2, 3), (0, 2), [[0, 2, 4], [0, 2, 4]]),
        (3, (1, 2), (2**40, 1), [[3, 4]]),
        (0, (0, 3), (3, 1), np.zeros((0, 3)).tolist()),
        (5, (3, 0), (1, 1), np.zeros((3, 0)).tolist()),
    ],
)
def test_window_on_a_storage(path, offset, shape, strides, expected):
    value = {"w": tensor("FloatStorage", "0", 5, offset, shape, strides)}
    found = read_checkpoint(write(path, value, FIVE))["w"]
    assert found.shape == shape and found.tolist() == expected


def test_storage_may_lie_at_an_odd_offset(path):
    for top in ("x", "xy", "xyz", "wxyz"):
        entries = [(f"{top}/data.pkl", program({"w": W})), (f"{top}/data/0", FIVE["0"])]
        path.write_bytes(zipped(entries))
        assert read_checkpoint(path)["w"].tolist() == [0, 1, 2, 3, 4]


def test_folder_entries_and_compressed_code_are_no_trouble(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/", b"")
        archive.writestr("x/code/a.py", b"raise SystemExit\n" * 99, zipfile.ZIP_DEFLATED)
        for name, data in entries_of(program({"w": W}), FIVE):
            archive.writestr(name, data)
    assert list(read_checkpoint(path)) == ["w"]


def test_content_decides_not_the_name(tmp_path):
    path = write(tmp_path / "model.safetensors", {"w": W}, FIVE)
    assert list(read_checkpoint(str(path))) == ["w"]


# ---- memory -------------------------------------------------------------------------------------


def test_arrays_are_read_only_views_of_the_map(path):
    found = read_checkpoint(
        write(path, {"a": W, "b": W, "e": tensor("FloatStorage", "0", 5, 0, (0,), (1,))}, FIVE)
    )
    assert np.shares_memory(found["a"], found["b"])
    assert isinstance(root_of(found["a"]), np.memmap)
    for array in found.values():
        assert not array.flags.writeable
    for array in (found["a"], found["b"]):
        with pytest.raises(ValueError, match="read-only|WRITEABLE"):
            array.flags.writeable = True


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux only")
def test_reading_300_megabytes_takes_no_memory(path):
    block, blocks = np.full(1 << 20, 0x3C00, "<u2").tobytes(), 150
    names = {
        f"w{i}": tensor("HalfStorage", str(i), 1 << 20, 0, (1 << 20,), (1,)) for i in range(blocks)
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program(names))
        for i in range(blocks):
            archive.writestr(f"x/data/{i}", block)
    assert path.stat().st_size > 300_000_000
    before = resident_bytes()
    found = read_checkpoint(path)
    assert resident_bytes() - before < 20_000_000
    assert float(found["w149"][-1]) == 1


# ---- files that are something else --------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\x00", "begins with"),
        (b"\n <!DOCTYPE html><html>404", "HTML"),
        (b"\xef\xbb\xbf<html>", "HTML"),
        (b"<?xml version='1.0'?><Error>", "HTML or XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "cut short"),
        (bytes(257) + b"ustar\x0000", "torch.save"),
        (b"\x80\x04N.", "bare pickle"),
        (np.random.default_rng(0).bytes(999), "begins with"),
        (b"PK\x03\x04", "cut short"),
        (b"PK\x05\x06" + bytes(18), "begins with"),
    ],
)
def test_other_kinds_of_file(path, content, said):
    path.write_bytes(content)
    assert said in refusal(path)


def test_every_truncation_is_refused(path):
    whole = zipped(entries_of(program({"w": W}), FIVE))
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refusal(path)


def test_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match="model.pt"):
        read_checkpoint(path)


def test_folder_and_socket_are_refused(tmp_path, monkeypatch):
    assert "folder" in refusal(tmp_path)
    monkeypatch.chdir(tmp_path)  # socket paths are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        assert "pipe" in refusal(tmp_path / "s")


def test_permission_problem_is_refused(path, monkeypatch):
    write(path, {"w": W}, FIVE)

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)  # root may read anything, so chmod shows nothing
    assert "Permission denied" in refusal(path)


# ---- hostile tensors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "count", "offset", "shape", "strides", "said"),
    [
        ("FloatStorage", 5, 0, (6,), (1,), "needs a storage of 6"),
        ("FloatStorage", 5, 1, (5,), (1,), "needs a storage of 6"),
        ("FloatStorage", 5, 5, (), (), "needs a storage of 6"),
        ("FloatStorage", 5, 6, (0,), (1,), "needs a storage of 6"),
        ("FloatStorage", 5, 0, (2, 3), (3, 2), "needs a storage of 8"),
        ("FloatStorage", 5, 0, (2,), (-1,), "negative"),
        ("FloatStorage", 5, 4, (2,), (-1,), "negative"),
        ("FloatStorage", 5, -1, (2,), (1,), "negative"),
        ("FloatStorage", 5, 0, (-2,), (1,), "negative"),
        ("FloatStorage", 5, 0, (1,), (-1,), "negative"),
        ("FloatStorage", 5, 0, (2,), (2**62,), "needs a storage"),
        ("FloatStorage", 5, 2**62, (4,), (1,), "needs a storage"),
        ("FloatStorage", 5, 2**64, (1,), (1,), "64 bits"),
        ("FloatStorage", 5, 0, (2,), (2**64,), "64 bits"),
        ("FloatStorage", 5, 0, (1,), (2**700,), "64 bits"),
        ("FloatStorage", 5, 0, (2**63, 2), (0, 1), "64 bits"),
        ("FloatStorage", 5, 0, (2**32, 2**32), (0, 0), "16 times"),
        ("FloatStorage", 5, 0, (10**12,), (0,), "16 times"),
        ("FloatStorage", 5, 0, (0, 2**62, 2**62), (1, 1, 1), "w"),
        ("FloatStorage", 5, 0, (5,), (1, 1), "one stride an axis"),
        ("FloatStorage", 5, 0, (5,), (), "one stride an axis"),
        ("FloatStorage", 5, 0, (1,) * 65, (1,) * 65, "65 dimensions"),
        ("FloatStorage", 5, 0.0, (5,), (1,), "float"),
        ("FloatStorage", 5, None, (5,), (1,), "NoneType"),
        ("FloatStorage", 5, 0, [5], (1,), "list"),
        ("FloatStorage", 5, 0, (True,), (1,), "bool"),
        ("FloatStorage", 5, 0, ("5",), (1,), "str"),
        ("FloatStorage", 4, 0, (4,), (1,), "of 20 bytes"),
        ("FloatStorage", 6, 0, (6,), (1,), "of 20 bytes"),
        ("FloatStorage", -5, 0, (), (), "needs a storage|of 20 bytes"),
        ("FloatStorage", 2**70, 0, (5,), (1,), "of 20 bytes"),
        ("HalfStorage", 5, 0, (5,), (1,), "of 20 bytes"),
        ("DoubleStorage", 5, 0, (5,), (1,), "of 20 bytes"),
    ],
)
def test_tensors_outside_their_storage_are_refused(path, kind, count, offset, shape, strides, said):
    value = {"w": tensor(kind, "0", count, offset, shape, strides)}
    message = refusal(write(path, value, FIVE))
    assert any(s in message for s in said.split("|"))


def test_many_expanded_tensors_together_are_refused(path):
    one = {f"w{i}": tensor("FloatStorage", "0", 5, 0, (1 << 20,), (0,)) for i in range(40)}
    assert "16 times" in refusal(write(path, one, FIVE))


def test_every_bad_tensor_is_listed(path):
    value = {
        "good": W,
        "missing": tensor("FloatStorage", "9", 5, 0, (5,), (1,)),
        "outside": tensor("FloatStorage", "../0", 5, 0, (5,), (1,)),
        "long": tensor("FloatStorage", "0", 5, 0, (7,), (1,)),
        "text": "hello",
    }
    message = refusal(write(path, value, FIVE))
    assert all(name in message for name in ("missing", "outside", "long", "text"))
    assert "good" not in message


@pytest.mark.parametrize(("value", "kind"), [("hello", "str"), (None, "NoneType"), (0.5, "float")])
def test_value_beside_the_arrays_is_no_damage(path, value, kind):
    message = refusal(write(path, {"w": W, "x": value}, FIVE))
    assert f"x is a {kind}, not a tensor; take" in message and "damaged" not in message


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[2J", "\udc80", "n" * 2_000])
def test_names_that_would_garble_a_terminal_are_refused(path, name):
    assert "no name" in refusal(write(path, {name: W}, FIVE))


@pytest.mark.parametrize("value", [None, 7, [1], {}, {"a": 1}, {1: W}, W, record("M", {"a": 1})])
def test_files_without_a_model_are_refused(path, value):
    refusal(write(path, value, FIVE))


@fast
@given(content=st.binary(max_size=300), magic=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02"]))
def test_random_bytes_never_crash(path, content, magic):
    path.write_bytes(magic + content)
    survives(path)
