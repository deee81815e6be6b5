"""Pickles in checkpoints: nothing in them ever runs."""

import copyreg
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.convert.pickled import MODELLED
from tests.checkpoint_files import EDITS, SMALL, STORAGES, edited, fast, refusal, survives
from tests.pickles import FIVE, Raw, W, call, encode, glob, program, record, storage, write

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
        "torch.ComplexFloatStorage",
        "torch.QInt8Storage",
        "torch.storage.UntypedStorage",
    ],
)
def test_globals_that_would_act_and_other_tensors_are_refused_by_name(path, name):
    for cut in [i for i, c in enumerate(name) if c == "."]:
        module, attribute = name[:cut], name[cut + 1 :]
        if (module, attribute) in MODELLED:
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
