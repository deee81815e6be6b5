"""What wrappers and training scripts put around the weights is taken off, or its names are told."""

import numpy as np
import pytest

from clip_jax.convert.pytorch import from_pytorch, to_pytorch
from clip_jax.convert.reader import read_checkpoint
from clip_jax.errors import CheckpointError
from clip_jax.weights import load
from tests.checkpoint_files import refusal
from tests.checkpoint_mutations import VIT, arrays
from tests.pickles import (
    FIVE,
    Raw,
    W,
    call,
    encode,
    entries_of,
    glob,
    program,
    record,
    write,
    zipped,
)
from tests.pickles import parts as parts_of

MOMENTS = {"state": {0: {"step": W, "exp_avg": W}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def names(path) -> list[str]:
    return list(read_checkpoint(path))


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module."],
)
def test_prefixes_of_parallelism_and_compilation_are_dropped(path, prefix):
    write(path, {f"{prefix}visual.proj": W, f"{prefix}logit_scale": W}, FIVE)
    assert names(path) == ["visual.proj", "logit_scale"]


def test_marks_of_wrapped_parts_are_dropped_inside_of_names(path):
    inside = "visual._orig_mod.transformer._checkpoint_wrapped_module.w"
    write(path, {inside: W, "module.b": W}, FIVE)
    assert names(path) == ["visual.transformer.w", "module.b"]
    write(path, {"my_orig_mod.w": W}, FIVE)
    assert names(path) == ["my_orig_mod.w"]


def test_two_arrays_of_one_name_are_named(path):
    message = refusal(write(path, {"_orig_mod.w": W, "w": W}, FIVE))
    assert "two arrays for w, _orig_mod.w and w" in message


@pytest.mark.parametrize(
    "key",
    ["model_state", "net", "network", "module", "weights", "ema", "model_ema", "state_dict_ema",
     "ema_state_dict", "net_state_dict", "ema_model", "params", "my_clip"],
)  # fmt: skip
def test_weights_under_any_key_are_found(path, key):
    root = {"epoch": 3, "optimizer": MOMENTS, "lr_scheduler": {"last": W}, key: {"a.b": W}}
    assert names(write(path, root, FIVE)) == ["a.b"]


def test_weights_two_keys_deep_are_found(path):
    root = {"checkpoint": {"model": {"a.b": W}, "optimizer": MOMENTS}, "args": {"lr": 0.1}}
    assert names(write(path, root, FIVE)) == ["a.b"]


def test_weights_by_a_known_key_win_over_others(path):
    assert names(write(path, {"state_dict": {"a.b": W}, "queue": {"x": W}}, FIVE)) == ["a.b"]


@pytest.mark.parametrize("pair", [("model", "ema"), ("state_dict", "state_dict_ema"), ("a", "b")])
def test_several_sets_of_weights_are_named_with_their_sizes(path, pair):
    root = {pair[0]: {"x": W}, pair[1]: {"x": W, "y": W}, "optimizer": MOMENTS}
    message = refusal(write(path, root, FIVE))
    assert f"2 sets of weights ({pair[0]}: 1 array, {pair[1]}: 2 arrays)" in message


def test_content_that_shares_itself_is_looked_at_once(path):
    body = encode({"x": 1}) + b"q\x00"
    for _ in range(60):  # each holds the one before it a hundred times
        items = b"".join(encode(f"k{i}") + b"h\x00" for i in range(100))
        body += b"}(" + items + b"uq\x00"
    last = Raw(b"(" + body + b"th\x00\x86")  # a pair: all of them, and the last
    root = Raw(b"}(" + encode("kept") + last + encode("last") + b"h\x00u")
    assert "holds no tensors" in refusal(write(path, root))


# ---- models below a prefix ----------------------------------------------------------------------


@pytest.fixture
def official() -> dict[str, np.ndarray]:
    return arrays(VIT)


@pytest.mark.parametrize("prefix", ["model.", "net.", "model.module.", "student.clip."])
def test_a_model_that_is_a_part_of_another_is_found(tmp_path, official, prefix):
    tensors, storages = parts_of({f"{prefix}{name}": a for name, a in official.items()})
    path = write(tmp_path / "last.ckpt", {"state_dict": tensors, "epoch": 1}, storages)
    model, _ = load(path, activation="quick_gelu", num_heads=1)
    assert model.config.embed_dim == VIT.embed_dim
    config, params = from_pytorch(read_checkpoint(path))
    for name, array in to_pytorch(config, params).items():
        np.testing.assert_array_equal(array, official[name])


def test_what_lies_beside_the_model_is_told(official):
    wrapped = {f"model.{name}": a for name, a in official.items()}
    with pytest.warns(UserWarning, match=r"1 array beside the model in model.\* is left out: loss"):
        from_pytorch(wrapped | {"loss.weight": np.zeros(3, np.float32)})


def test_the_counter_of_averaged_weights_is_no_array_of_the_model(official):
    averaged = {f"module.{name}": a for name, a in official.items()}
    assert from_pytorch(averaged | {"n_averaged": np.array(7)})[0].embed_dim == VIT.embed_dim


def test_several_models_are_named(official):
    both = {f"{part}.{name}": a for part in ("student", "teacher") for name, a in official.items()}
    with pytest.raises(CheckpointError, match=r"2 models \(student.: \d+ arrays, teacher.: \d+"):
        from_pytorch(both)
    averaged = {f"ema.{name}": a for name, a in official.items()}
    with pytest.raises(CheckpointError, match=r"2 models \(no prefix: \d+ arrays, ema.: \d+"):
        from_pytorch(official | averaged)


# ---- values beside the weights ------------------------------------------------------------------

SETTINGS = {
    "a NumPy number": call(
        "numpy.core.multiarray", "scalar",
        Raw(call("numpy", "dtype", "f8", False, True) + encode((3, "<", None)) + b"b"),
        call("_codecs", "encode", "8 bytes", "latin1"),
    ),
    "a NumPy array": Raw(
        glob("numpy.core.multiarray", "_reconstruct") + b"(" + glob("numpy", "ndarray")
        + encode((0,)) + b"C\x01btR" + encode((1, (2,), "<f8")) + b"b"
    ),
    "argparse's": Raw(glob("argparse", "Namespace") + b")\x81" + encode({"lr": 0.1}) + b"b"),
    "a path": call("pathlib", "PosixPath", "/", "data"),
    "a set": Raw(b"\x8f(" + encode(1) + encode(2) + b"\x90"),
    "a frozen set": Raw(b"(" + encode(1) + b"\x91"),
    "a set of Python 2": call("__builtin__", "set", [1]),
    "a dictionary of a class": Raw(
        call("collections", "defaultdict", glob("builtins", "list")) + b"(" + encode("a")
        + encode([1]) + b"u"
    ),
    "a list of a class": Raw(glob("mine", "Names") + b")\x81(" + encode("a") + b"e"),
    "an object of old": call(
        "copy_reg", "_reconstructor", glob("mine", "Config"), glob("__builtin__", "object"), None
    ),
    "an object with named arguments": Raw(glob("mine", "Config") + b")}\x92"),
    "an enumeration": call("__main__", "Mode", 2),
    "a dtype of torch": glob("torch", "float16"),
    "a schedule of torch": Raw(glob("torch.optim.lr_scheduler", "LambdaLR") + b")\x81"),
    "a dictionary with pairs for keys": Raw(b"}" + encode((1, 2)) + encode(3) + b"s"),
    "a dictionary with numbers for keys": {1: 0.5},
}  # fmt: skip


@pytest.mark.parametrize("what", SETTINGS)
def test_other_values_beside_the_weights_are_passed_over(path, what):
    root = {"args": SETTINGS[what], "state_dict": {"w": W}, "groups": [{"lr": SETTINGS[what]}]}
    assert read_checkpoint(write(path, root, FIVE))["w"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("what", ["a NumPy array", "argparse's", "a schedule of torch"])
def test_such_a_value_among_the_weights_is_named(path, what):
    message = refusal(write(path, {"w": W, "x": SETTINGS[what]}, FIVE))
    kind = {"a NumPy array": "numpy.core.multiarray._reconstruct", "argparse's": "argparse."}
    assert f"x is a {kind.get(what, 'torch.optim.')}" in message and "take what is" in message


def test_a_pickled_object_in_place_of_the_weights_is_named(path):
    module = Raw(glob("ultra.nn", "Model") + b")\x81" + encode({"w": W}) + b"b")
    message = refusal(write(path, {"epoch": 1, "model": module}, FIVE))
    assert "model is a ultra.nn.Model" in message and "state_dict()" in message


# ---- TorchScript --------------------------------------------------------------------------------

CODE = """class Model(Module):
  __parameters__ = ["w", ]
  __buffers__ = ["mean", ]
  w : Tensor
  mean : Tensor
  scratch : Tensor
  def forward(self: __torch__.Model) -> Tensor:
    return self.w
"""


@pytest.mark.parametrize("is_packed", [False, True])
def test_only_parameters_and_buffers_of_torchscript_are_read(path, is_packed):
    attributes = {"w": W, "mean": W, "scratch": W, "input_resolution": 4, "steps": 9}
    entries = entries_of(program(record("Model", attributes)), FIVE)
    data = zipped([*entries, ("x/code/__torch__.py", CODE.encode())])
    path.write_bytes(packed(data, "x/code/__torch__.py", CODE.encode()) if is_packed else data)
    assert names(path) == ["w", "mean", "input_resolution"]


def packed(archive: bytes, name: str, content: bytes) -> bytes:
    """The archive with that one entry compressed, as PyTorch compresses code."""
    import io
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.namelist():
            if entry != name:
                new.writestr(entry, old.read(entry))
        new.writestr(name, content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def test_code_that_unpacks_to_too_much_is_refused(path):
    archive = zipped(entries_of(program(record("Model", {"w": W})), FIVE))
    bomb = b" " * (40 << 20)
    path.write_bytes(packed(archive, "x/code/__torch__.py", bomb))
    assert "can't be unpacked to at most 33,554,432 bytes" in refusal(path)


def test_without_code_all_tensors_are_read(path):
    write(path, record("Model", {"w": W, "scratch": W}), FIVE)
    assert names(path) == ["w", "scratch"]
