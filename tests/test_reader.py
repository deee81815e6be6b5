"""Reading checkpoints: right to the bit, without a copy, and nothing in a file ever runs."""

import copyreg
import json
import os
import socket
import struct
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clip_jax.convert.reader import read_checkpoint
from clip_jax.convert.unpickle import ADMITTED
from clip_jax.convert.writer import write_pytorch
from clip_jax.errors import CheckpointError
from tests.pickles import (
    STORAGE_NAMES,
    Raw,
    call,
    encode,
    entries_of,
    glob,
    parts,
    program,
    record,
    storage,
    tensor,
    write,
    zipped,
)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [BFLOAT16 if name == "bfloat16" else np.dtype(name) for name in STORAGE_NAMES]
FIVE = {"0": np.arange(5, dtype=np.float32).tobytes()}
W = tensor("FloatStorage", "0", 5, 0, (5,), (1,))
fast = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def arrays_of_every_dtype() -> dict[str, np.ndarray]:
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
    assert "state_dict, model" in message


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


def root_of(array: np.ndarray) -> object:
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        assert array.base is not None
        array = array.base
    return array


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
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "torch.save"),
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


# ---- containers ---------------------------------------------------------------------------------


def test_zip_bomb_is_refused_before_anything_is_inflated(path, monkeypatch):
    def inflated(*_, **__):
        raise AssertionError("inflated")

    path.write_bytes(zipped([("x/data.pkl", bytes(1 << 28))], zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(zipfile.ZipFile, "open", inflated)
    monkeypatch.setattr(zipfile.ZipFile, "read", inflated)
    assert "compressed" in refusal(path)


def test_huge_pickle_is_refused_unread(path):
    assert "16,777,216" in refusal(write(path, bytes((16 << 20) + 1)))


def test_compressed_storage_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program({"w": W}))
        archive.writestr("x/data/0", FIVE["0"], zipfile.ZIP_DEFLATED)
    assert "x/data/0 is compressed" in refusal(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_entries_are_refused(path):
    entries = entries_of(program({"w": W}), FIVE)
    path.write_bytes(zipped([*entries, entries[-1]]))
    assert "duplicate entries (x/data/0)" in refusal(path)


def test_duplicate_names_in_the_pickle_are_refused(path):
    twice = Raw(b"}(" + (encode("w") + W) * 2 + b"u")
    assert "duplicate entries for w" in refusal(write(path, twice, FIVE))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["data.pkl"], "one folder"),
        (["x/data.pkl", "y/data/0"], "2 top-level entries"),
        (["x/data.pkl", "stray"], "one folder"),
        (["x/other"], "without x/data.pkl"),
        (["x/y/data.pkl"], "without x/data.pkl"),
        ([], "0 top-level|begins with"),
    ],
)
def test_layout_must_be_one_folder(path, names, said):
    path.write_bytes(zipped([(name, b"N.") for name in names]))
    assert any(s in refusal(path) for s in said.split("|"))


def test_big_endian_is_refused(path):
    path.write_bytes(zipped([*entries_of(program({"w": W}), FIVE), ("x/byteorder", b"big")]))
    assert "big" in refusal(path)
    path.write_bytes(zipped([*entries_of(program({"w": W}), FIVE), ("x/byteorder", b"little")]))
    assert list(read_checkpoint(path)) == ["w"]


def patched(whole: bytes, name: bytes, offset: int, form: str, value: int) -> bytes:
    """The archive with one field of the central directory's entry for `name` changed."""
    at = whole.rindex(name) - 46 + offset
    size = struct.calcsize(form)
    return whole[:at] + struct.pack(form, value) + whole[at + size :]


@pytest.mark.parametrize(
    ("offset", "form", "value", "said"),
    [
        (8, "<H", 1, "encrypted"),
        (10, "<H", 12, "compressed"),
        (20, "<I", 1 << 20, "stores 1,048,576"),
        (24, "<I", 1 << 20, "claims 1,048,576"),
        (42, "<I", 0, "is not where"),
        (42, "<I", 1 << 30, "is not where"),
        (42, "<I", 5, "is not where"),
    ],
)
def test_lying_table_of_contents_is_refused(path, offset, form, value, said):
    whole = zipped(entries_of(program({"w": W}), FIVE))
    path.write_bytes(patched(whole, b"x/data/0", offset, form, value))
    assert said in refusal(path)


def test_entry_past_the_end_of_the_file_is_refused(path):
    whole = zipped(entries_of(program({"w": W}), FIVE))
    for offset in (20, 24):
        whole = patched(whole, b"x/data/0", offset, "<I", 1 << 20)
    path.write_bytes(whole)
    assert "is not where" in refusal(path)


def test_overlapping_entries_are_refused(path):
    whole = zipped(entries_of(program({"w": W}), FIVE | {"1": bytes(8)}))
    for offset in (20, 24):  # now reaches over the next entry's header and bytes
        whole = patched(whole, b"x/data/0", offset, "<I", 80)
    path.write_bytes(whole)
    assert "overlap" in refusal(path)


def test_damaged_pickle_fails_its_checksum(path):
    whole = zipped(entries_of(program({"weight": W}), FIVE))
    path.write_bytes(whole.replace(b"weight", b"height"))
    assert "checksum" in refusal(path)


# ---- hostile pickles ----------------------------------------------------------------------------

SYSTEM = b"cos\nsystem\n"
STACKED = b"\x8c\x02os\x8c\x06system\x93"
HIDDEN = {
    "GLOBAL": SYSTEM,
    "REDUCE": SYSTEM + encode(("touch ran",)) + b"R",
    "STACK_GLOBAL": STACKED + encode(("touch ran",)) + b"R",
    "STACK_GLOBAL from the memo": b"(\x8c\x06system\x94\x8c\x02os\x94h\x01h\x00\x93"
    + encode(("touch ran",)) + b"Rt",
    "INST": b"(" + encode("touch ran") + b"ios\nsystem\n",
    "OBJ": b"(" + SYSTEM + encode("touch ran") + b"o",
    "OBJ, stacked": b"(" + STACKED + encode("touch ran") + b"o",
    "NEWOBJ": SYSTEM + encode(("touch ran",)) + b"\x81",
    "NEWOBJ_EX": SYSTEM + encode(("touch ran",)) + b"}\x92",
    "BUILD": W + SYSTEM + b"b",
    "a key": b"}" + SYSTEM + b"Ns",
    "a storage type": encode(("storage", Raw(SYSTEM), "0", "cpu", 5)) + b"Q",
    "a tensor's hooks": call(
        "torch._utils", "_rebuild_tensor_v2", storage("FloatStorage", "0", 5), 0, (5,), (1,),
        False, Raw(SYSTEM + encode(("touch ran",)) + b"R"),
    ),
    "a module": record("M", {"w": W, "x": Raw(SYSTEM + encode(("touch ran",)) + b"R")}),
    "an unused value": SYSTEM + encode(("touch ran",)) + b"R0}",
}  # fmt: skip


@pytest.mark.parametrize("where", HIDDEN)
def test_os_system_is_refused_by_name_in_any_opcode(path, where, monkeypatch):
    monkeypatch.chdir(path.parent)
    message = refusal(write(path, b"\x80\x04" + HIDDEN[where] + b".", FIVE))
    assert "os.system" in message
    assert not Path("ran").exists()


@pytest.mark.parametrize("opcode", [b"\x82\x77", b"\x83\x77\x00", b"\x84\x77\x00\x00\x00"])
@pytest.mark.parametrize("cached", [False, True])
def test_extension_codes_are_refused_by_name(path, opcode, cached, monkeypatch):
    monkeypatch.chdir(path.parent)
    copyreg.add_extension("os", "system", 0x77)
    try:
        if cached:  # Python's unpickler takes these without asking find_class
            copyreg._extension_cache[0x77] = os.system
        pickle = b"\x80\x02" + opcode + encode(("touch ran",)) + b"R."
        assert "os.system" in refusal(write(path, pickle))
    finally:
        copyreg.remove_extension("os", "system", 0x77)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        "posix.system",
        "builtins.eval",
        "builtins.exec",
        "builtins.getattr",
        "__builtin__.eval",
        "torch.load",
        "torch.storage._load_from_bytes",
        "torch.serialization.load",
        "torch.hub.load",
        "torch._utils._rebuild_tensor_v2.__globals__",
        "torch._utils.sys",
        "collections.OrderedDict.fromkeys",
        "collections.namedtuple",
        "argparse.Namespace",
        "numpy.core.multiarray._reconstruct",
        "_codecs.encode",
        "copyreg._reconstructor",
        "torchx.FloatStorage",
        "__torch__x.Module",
        "torch.ComplexFloatStorage",
        "torch.QInt8Storage",
        "torch.storage.UntypedStorage",
    ],
)
def test_globals_outside_the_list_are_refused_by_name(path, name):
    for cut in [i for i, c in enumerate(name) if c == "."]:
        module, attribute = name[:cut], name[cut + 1 :]
        if (module, attribute) in ADMITTED:
            continue
        for value in (
            glob(module, attribute),
            Raw(encode(module) + encode(attribute) + b"\x93"),
            record("M", {"w": W, "x": call(module, attribute, "1+1")}),
        ):
            message = refusal(write(path, value, FIVE))
            assert "refused global" in message and name in message


@pytest.mark.parametrize(
    "value",
    [
        # Nothing but what PyTorch does with the admitted names.
        Raw(glob("torch._utils", "_rebuild_tensor_v2") + encode({"__code__": 1}) + b"b"),
        Raw(
            glob("torch._utils", "_rebuild_tensor_v2")
            + encode((None, {"__defaults__": ()}))
            + b"b"
        ),
        Raw(glob("collections", "OrderedDict") + encode({"items": 1}) + b"b"),
        Raw(call("collections", "OrderedDict") + encode((None, {"items": 1})) + b"b"),
        Raw(glob("collections", "OrderedDict") + b")\x81"),
        Raw(glob("torch", "FloatStorage") + b")\x81"),
        Raw(glob("torch", "FloatStorage") + encode((1 << 40,)) + b"R"),
        Raw(glob("__torch__", "M") + b")R"),
        Raw(glob("__torch__", "M") + encode((1,)) + b"\x81"),
        Raw(glob("__torch__", "M") + b")}\x92"),
        Raw(b"(i__torch__\nM\n"),
        Raw(record("M", {"w": W}) + encode({"w": 1}) + b"b"),
        Raw(record("M", {"w": W}) + encode((None, {"w": 1})) + b"b"),
        Raw(record("M", {"w": W}) + encode("k") + b"Ns"),
        Raw(W + encode({"storage": 1}) + b"b"),
        Raw(W + encode([1]) + b"R"),
        Raw(b"P0\n"),
        # References to storages that are none.
        *(
            Raw(encode(pid) + b"Q")
            for pid in [
                "0",
                None,
                (),
                ("storage",),
                ("module", glob("torch", "FloatStorage"), "0", "cpu", 5),
                ("storage", "FloatStorage", "0", "cpu", 5),
                ("storage", glob("collections", "OrderedDict"), "0", "cpu", 5),
                ("storage", glob("torch", "FloatStorage"), 0, "cpu", 5),
                ("storage", glob("torch", "FloatStorage"), "0", "cpu", 5.0),
                ("storage", glob("torch", "FloatStorage"), "0", "cpu", True),
                ("storage", glob("torch", "FloatStorage"), "0", "cpu", 5, None),
                ["storage", glob("torch", "FloatStorage"), "0", "cpu", 5],
            ]
        ),
        # A lazily negated tensor would come out with the wrong sign.
        call("torch._utils", "_rebuild_tensor_v2", storage("FloatStorage", "0", 5), 0, (5,), (1,),
             False, {}, {"neg": True}),
    ],
)  # fmt: skip
def test_admitted_names_can_only_be_used_as_pytorch_does(path, value):
    refusal(write(path, {"w": W, "x": value}, FIVE))


@pytest.mark.parametrize(
    "pickle",
    [
        b"",
        b".",
        b"N",
        b"0.",
        b"NN.",
        b"(N.",
        b"t.",
        b"u.",
        b"R.",
        b"}N\x85Ns.",
        b"}]Ns.",
        b"}(Nu.",
        b"h\x07.",
        b"\x93.",
        b"NN\x93.",
        b"X\xff\xff\xff\xffabc.",
        b"B\xff\xff\xff\xffabc.",
        b"\x8e" + b"\xff" * 8 + b"abc.",
        b"\x96" + b"\xff" * 7 + b"\x7fabc.",
        b"\x95" + b"\xff" * 8 + b".",
        b"\x8b\xff\xff\xff\x7f.",
        b"I" + b"9" * 10_000 + b"\n.",
        b"L" + b"9" * 1_000_000 + b"L\n.",
        b"S'\\q'\n.",
        b"\xff\xfe",
        b"Vx\\U99999999\n.",
        b"X\x01\x00\x00\x00\xff.",
    ],
)
def test_malformed_pickles_are_refused(path, pickle):
    refusal(write(path, b"\x80\x02" + pickle))


def nested(count: int, step: bytes) -> bytes:
    return b"\x80\x02)" + step * count


@pytest.mark.parametrize(
    "pickle",
    {
        # Python's own unpickler would allocate a memo of 2^33 pointers.
        "memo": b"\x80\x02}r\xff\xff\xff\xff.",
        "deep tuple": nested(1_000_000, b"\x85") + b".",
        "deep tuple as a key": nested(1_000_000, b"\x85") + b"q\x00}h\x00Ns.",
        "deep list": b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
        "deep marks": b"\x80\x02" + b"(" * 1_000_000,
        "billion laughs": nested(64, b"q\x00h\x00\x86") + b".",
        "billion laughs as a key": nested(64, b"q\x00h\x00\x86") + b"q\x00}h\x00Ns.",
        "list in itself": b"\x80\x02]q\x00h\x00a.",
        "long integer": b"\x80\x02\x8b" + struct.pack("<I", 1 << 20) + b"\xff" * (1 << 20) + b".",
    }.items(),
    ids=lambda item: item[0],
)
def test_pickle_bombs_are_refused_quickly(path, pickle):
    refusal(write(path, pickle[1]))


def test_dictionary_in_itself_ends(path):
    refusal(write(path, b"\x80\x02}q\x00" + encode("state_dict") + b"h\x00s."))


def test_module_in_itself_is_refused(path):
    pickle = glob("__torch__", "M") + b")\x81q\x00" + b"}" + encode("a") + b"h\x00sb"
    assert "deep" in refusal(write(path, Raw(pickle)))


def test_modules_with_exponentially_many_paths_are_refused(path):
    # A tuple keeps the modules on the way, each of which has the one before it as both children.
    body, memo = record("M", {"w": W}) + b"q\x00", 0
    for _ in range(40):
        body += glob("__torch__", "M") + b")\x81q" + bytes([memo + 1]) + b"}("
        body += encode("a") + b"h" + bytes([memo]) + encode("b") + b"h" + bytes([memo]) + b"ub"
        memo += 1
    root = glob("__torch__", "M") + b")\x81}(" + encode("z") + b"h" + bytes([memo]) + b"ub"
    value = record("M", Raw(b"}(" + encode("t") + b"(" + body + b"t" + encode("r") + root + b"u"))
    assert "100,000" in refusal(write(path, value, FIVE))


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


# ---- fuzzing ------------------------------------------------------------------------------------


def survives(path: Path) -> None:
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
    result = bytearray(data)
    for at, byte in edits:
        result[at % len(result)] = byte
    return bytes(result)


@settings(fast, max_examples=300)
@given(edits=EDITS, cut=st.integers(0, 3))
def test_damaged_archives_never_crash(path, edits, cut):
    whole = edited(zipped(entries_of(program(SMALL), STORAGES)), edits)
    path.write_bytes(whole[: len(whole) - cut])
    survives(path)


@settings(fast, max_examples=500)
@given(edits=EDITS, module=st.booleans())
def test_damaged_pickles_never_crash(path, edits, module):
    value = record("M", {"a": W, "m": record("N", {"w": SMALL["v.b"]})}) if module else SMALL
    survives(write(path, edited(program(value), edits), STORAGES))


@settings(fast, max_examples=200)
@given(body=st.lists(st.sampled_from(
    [b"(", b")", b"}", b"]", b"N", b"t", b"\x85", b"\x86", b"u", b"s", b"e", b"a", b"R", b"\x81",
     b"b", b"q\x00", b"h\x00", b"Q", b"\x93", b".", bytes(encode("w")), bytes(encode(2)), bytes(W),
     bytes(glob("__torch__", "M")), bytes(glob("collections", "OrderedDict")),
     bytes(glob("torch._utils", "_rebuild_tensor_v2"))]), max_size=30))  # fmt: skip
def test_random_programs_never_crash(path, body):
    survives(write(path, b"\x80\x02" + b"".join(body) + b".", FIVE))


@fast
@given(content=st.binary(max_size=300), magic=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02"]))
def test_random_bytes_never_crash(path, content, magic):
    path.write_bytes(magic + content)
    survives(path)


# ---- safetensors --------------------------------------------------------------------------------


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


# ---- PyTorch ------------------------------------------------------------------------------------


@pytest.mark.torch
@fast
@given(hnp.arrays(
    st.sampled_from([np.dtype(n) for n in STORAGE_NAMES if n != "bfloat16"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)), st.data())  # fmt: skip
def test_what_torch_saves_is_read_to_the_bit(path, array, data):
    torch = pytest.importorskip("torch")
    whole = torch.from_numpy(array.copy())
    view = whole.permute(data.draw(st.permutations(range(array.ndim))))
    if array.ndim and len(view):
        view = view[data.draw(st.integers(0, len(view) - 1)) :: data.draw(st.integers(1, 3))]
    tensors = {"whole": whole, "view": view, "expanded": view.expand(3, *view.shape)}
    torch.save(tensors, path)
    assert_same(read_checkpoint(path), {name: value.numpy() for name, value in tensors.items()})


@pytest.fixture
def module():
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1 = nn.LayerNorm(3)
            self.attn = nn.MultiheadAttention(3, 1)

        def forward(self, x):
            return self.attn(x, x, x)[0] + self.ln_1(x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(Block(), Block())
            self.norm = nn.BatchNorm1d(3)
            self.narrow = nn.Linear(3, 2).half()
            self.tied = self.narrow.weight
            self.transposed = nn.Parameter(torch.randn(2, 3).t())
            self.register_buffer("input_resolution", torch.tensor(224))
            self.register_buffer("mask", torch.zeros(1).expand(4, 4), persistent=False)
            self.none, self.number, self.names = None, 5, ["a", "b"]
            self.sizes, self.pair, self.table = [1, 2], (1, 2.5), {"a": 1}

        def forward(self, x):
            return self.norm(self.blocks(x)[0]) + self.transposed.sum()

    return Model().eval()


def numpy_of(state) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in state.items()}


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # the tracer's, and that TorchScript is deprecated
@pytest.mark.parametrize("how", ["trace", "script"])
def test_torchscript_archives_are_read_as_torch_reads_them(path, module, how):
    torch = pytest.importorskip("torch")
    inputs = {"forward": torch.randn(2, 1, 3)}
    saved = torch.jit.trace_module(module, inputs) if how == "trace" else torch.jit.script(module)
    torch.jit.save(saved, path)
    expected = numpy_of(torch.jit.load(path).state_dict())
    found = read_checkpoint(path)
    # The one thing beside tensors that comes along: integers of the root.
    assert found.pop("number", 5) == 5
    # Whether a buffer was persistent isn't written.
    for state in (found, expected):
        state.pop("mask", None)
    assert {"tied", "norm.running_mean", "blocks.1.attn.in_proj_weight"} <= {*found}
    assert_same({name: found[name] for name in sorted(found)}, dict(sorted(expected.items())))


@pytest.mark.torch
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_training_checkpoints_are_read(path, module, protocol):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.AdamW(module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {"module." + name: value for name, value in module.state_dict().items()}
    checkpoint = {"epoch": 3, "name": "run", "state_dict": state, "best": torch.Size([1])}
    checkpoint |= {"optimizer": optimizer.state_dict(), "parameter": module.transposed}
    torch.save(checkpoint, path, pickle_protocol=protocol)
    assert_same(read_checkpoint(path), numpy_of(module.state_dict()))


@pytest.mark.torch
def test_old_torch_save_says_what_to_do(path, module):
    torch = pytest.importorskip("torch")
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=False)
    assert "old torch.save" in refusal(path)


@pytest.mark.torch
def test_a_whole_pickled_module_is_refused_with_the_way_out(path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 3), path)
    message = refusal(path)
    assert "torch.nn.modules.linear.Linear" in message and "state_dict()" in message


@pytest.mark.torch
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor, torch: tensor.to(torch.float8_e4m3fn),
        lambda tensor, torch: tensor.to_sparse(),
        lambda tensor, torch: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    ],
    ids=["float8", "sparse", "quantised"],
)
@pytest.mark.filterwarnings("ignore")  # that quantised tensors are deprecated
def test_tensors_of_other_kinds_are_refused_with_the_way_out(path, change):
    torch = pytest.importorskip("torch")
    torch.save({"w": change(torch.ones(3, 2), torch)}, path)
    message = refusal(path)
    assert "refused global torch._utils._rebuild_" in message
    assert ".float(), .to_dense(), .dequantize()" in message and "just its" not in message


@pytest.mark.torch
def test_checksums_that_were_left_out_are_not_missed(path):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(path)["w"].tolist() == [1, 1, 1]


@pytest.mark.torch
def test_written_state_dicts_are_read_by_torch_and_by_us(path):
    torch = pytest.importorskip("torch")
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    frozen = base.copy()
    frozen.flags.writeable = False
    arrays = arrays_of_every_dtype() | {
        "transposed": base.T,
        "strided": base[::-1, :, ::2],
        "shared": base[0],
        "read_only": frozen,
        "big_endian": np.arange(3, dtype=">f4"),
        "scalar": np.float32(3) * np.ones(()),
        "empty": np.zeros((0, 3), np.float16),
        "nan_payload": np.array([0x7FC1, 0xFF81], np.uint16).view(BFLOAT16),
    }
    write_pytorch(arrays, path)
    native = {k: np.asarray(a, a.dtype.newbyteorder("=")) for k, a in arrays.items()}
    assert_same(read_checkpoint(path), native)
    loaded = torch.load(path, weights_only=True)
    assert loaded["transposed"].shape == (4, 3, 2) and loaded["nan_payload"].dtype == torch.bfloat16
    assert (loaded["strided"].numpy() == arrays["strided"]).all()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.torch
def test_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    torch = pytest.importorskip("torch")
    path.write_bytes(b"old")

    def disk_full(state, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="no space"):
        write_pytorch({"w": np.ones(3, np.float32)}, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.torch
def test_place_that_cannot_be_written_is_named_as_the_user_did(path):
    pytest.importorskip("torch")
    path.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_pytorch({"w": np.ones(3, np.float32)}, path)
    assert caught.value.filename == str(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.torch
def test_unwritable_dtypes_are_all_named(path):
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match="complex64.*uint32") as caught:
        write_pytorch({"c": np.ones(1, np.complex64), "u": np.ones(1, np.uint32)}, path)
    assert "bfloat16" in str(caught.value)
    assert not path.exists()


def test_writing_without_torch_says_how_to_get_it(path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"clip-jax-flax\[torch\]"):
        write_pytorch({"w": np.ones(1, np.float32)}, path)
    assert not path.exists()
