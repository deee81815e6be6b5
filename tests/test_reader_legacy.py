"""Files of torch.save before PyTorch 1.6: read to the bit, as views of the map, within bounds."""

import functools
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clip_jax.convert import legacy as format_before_zip
from clip_jax.convert.reader import read_checkpoint
from tests.checkpoint_files import (
    EDITS,
    arrays_of_every_dtype,
    assert_same,
    edited,
    fast,
    refusal,
    root_of,
    survives,
)
from tests.pickles import (
    STORAGE_NAMES,
    Raw,
    W,
    call,
    encode,
    glob,
    legacy,
    parts,
    program,
    tensor,
)

FIVE = (5, np.arange(5, dtype=np.float32).tobytes())


def old_storage(kind: str, key: str, count: int, view: tuple | None = None) -> Raw:
    """A reference to a storage, as it was before 1.6: with a window on it, or none."""
    pid = ("storage", glob("torch", kind), key, "cuda:0", count, view)
    return Raw(encode(pid) + b"Q")


def write(path: Path, value: object, storages: dict[str, tuple[int, bytes]]) -> Path:
    path.write_bytes(legacy(value, storages))
    return path


def written(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    tensors, storages = parts(arrays)
    sizes = [array.size for array in arrays.values()]
    return write(
        path,
        {"state_dict": tensors, "epoch": 3},
        {k: (n, storages[k]) for k, n in zip(storages, sizes, strict=True)},
    )


def test_every_dtype_is_read_to_the_bit(path):
    arrays = arrays_of_every_dtype()
    assert_same(read_checkpoint(written(path, arrays)), arrays)


def test_arrays_are_views_of_the_file(path):
    found = read_checkpoint(written(path, arrays_of_every_dtype()))
    assert all(isinstance(root_of(array), np.memmap) for array in found.values())
    assert not any(array.flags.writeable for array in found.values())


@pytest.mark.torch
@fast
@given(hnp.arrays(
    st.sampled_from([np.dtype(n) for n in STORAGE_NAMES if n != "bfloat16"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)),
    st.sampled_from([2, 3, 4, 5]), st.data())  # fmt: skip
def test_what_torch_writes_is_read_to_the_bit(path, array, protocol, data):
    torch = pytest.importorskip("torch")
    whole = torch.from_numpy(array.copy())
    view = whole.permute(data.draw(st.permutations(range(array.ndim))))
    if array.ndim and len(view):
        view = view[data.draw(st.integers(0, len(view) - 1)) :: data.draw(st.integers(1, 3))]
    tensors = {"whole": whole, "view": view, "expanded": view.expand(3, *view.shape)}
    save = functools.partial(torch.save, pickle_protocol=protocol)
    save({"model": tensors}, path, _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(path), {name: value.numpy() for name, value in tensors.items()})


def test_a_window_on_a_storage_is_read_and_kept_to(path):
    def shown(first: int, size: int, offset: int, shape: tuple) -> Raw:
        part = old_storage("FloatStorage", "0", 5, ("part", first, size))
        return call("torch._utils", "_rebuild_tensor", part, offset, shape, (1,) * len(shape))

    found = read_checkpoint(write(path, {"w": shown(1, 3, 1, (2,))}, {"0": FIVE}))
    assert found["w"].tolist() == [2, 3]
    assert "needs a storage of 4" in refusal(write(path, {"w": shown(1, 3, 1, (3,))}, {"0": FIVE}))
    for first, size in ((3, 3), (-1, 3), (6, 0), (0, -1), (2**70, 1)):
        message = refusal(write(path, {"w": shown(first, size, 0, ())}, {"0": FIVE}))
        assert "for its storage, which has (5)" in message


def test_names_as_python_2_wrote_them_are_read(path):
    short = b"U" + bytes([1]) + b"w"
    pairs = Raw(b"]](" + short + W + b"ea")
    ordered = call("collections", "OrderedDict", pairs)
    assert read_checkpoint(write(path, ordered, {"0": FIVE}))["w"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d[:-1], "expected at least .* it was cut short"),
        (lambda d: d[:-21], "expected at least .* it was cut short"),
        (lambda d: d[: len(d) // 2], "ends inside of a pickle"),
        (lambda d: d + b"\0", "1 bytes after its last storage"),
        (lambda d: d.replace(program(1001), program(1002)), "version 1002 .* expected 1001"),
        (lambda d: d.replace(encode("little_endian") + b"\x88", encode("little_endian") + b"\x89"),
         "little-endian machine"),
        (lambda d: d.replace(program(["0"]), program(["1"])), "storage 1 without its dtype"),
        (lambda d: d.replace(program(["0"]), program(["0", "0"])), "storage 0 twice"),
        (lambda d: d.replace(program(["0"]), program({})), "no list of its storages"),
        (lambda d: d.replace(program(["0"]), program([0])), "no list of its storages"),
        (lambda d: d.replace(struct.pack("<q", 5) + FIVE[1], struct.pack("<q", 4) + FIVE[1][4:]),
         "of 16 bytes"),
        (lambda d: d.replace(struct.pack("<q", 5), struct.pack("<q", -1)), "cut short"),
    ],
)  # fmt: skip
def test_damage_is_named(path, change, said):
    whole = write(path, {"w": W}, {"0": FIVE}).read_bytes()
    read_checkpoint(path)
    changed = change(whole)
    assert changed != whole
    path.write_bytes(changed)
    assert re.search(said, refusal(path))


def test_a_storage_of_two_kinds_is_refused(path):
    value = {"w": W, "v": tensor("HalfStorage", "0", 5, 0, (5,), (1,))}
    assert "as (5) float32 elements and as (5)" in refusal(write(path, value, {"0": FIVE}))


def test_a_storage_that_is_missing_is_named(path):
    value = {"w": W, "v": tensor("HalfStorage", "9", 5, 0, (5,), (1,))}
    assert "v needs storage 9, which is missing" in refusal(write(path, value, {"0": FIVE}))


def test_its_pickles_are_bounded(path, monkeypatch):
    monkeypatch.setattr(format_before_zip, "MAX_INDEX_BYTES", 400)
    value = {"w": W, "x": "y" * 1_000}
    assert "pickles of more than 400 bytes" in refusal(write(path, value, {"0": FIVE}))


def test_nothing_in_it_is_executed(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    for at in range(5):
        pickles = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"w": W}, ["0"]]
        pickles[at] = Raw(glob("os", "system") + encode(("touch ran",)) + b"R")
        head = b"".join(map(program, pickles))
        path.write_bytes(head + struct.pack("<q", 5) + FIVE[1])
        said = "os.system" if at else "refused"
        message = refusal(path)
        assert said in message or "begins with" in message or "bare pickle" in message
    assert not Path("ran").exists()


@pytest.mark.torch
def test_a_whole_module_in_it_is_refused_with_the_way_out(path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 3), path, _use_new_zipfile_serialization=False)
    message = refusal(path)
    assert "torch.nn.modules.linear.Linear" in message and "state_dict()" in message


@fast
@given(edits=EDITS)
def test_damaged_files_never_crash(path, edits):
    whole = write(path, {"model": {"a.w": W}, "epoch": 1}, {"0": FIVE}).read_bytes()
    path.write_bytes(edited(whole, edits))
    survives(path)


def test_every_truncation_is_refused(path):
    whole = write(path, {"w": W}, {"0": FIVE}).read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refusal(path)
