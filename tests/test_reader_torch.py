"""What PyTorch writes is read to the bit, and what we write is read by PyTorch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clip_jax.convert.reader import read_checkpoint
from clip_jax.convert.writer import write_pytorch
from tests.checkpoint_files import BFLOAT16, arrays_of_every_dtype, assert_same, fast, refusal
from tests.pickles import STORAGE_NAMES


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
