"""The native format: exact, mapped, and refused where a folder does not hold it."""

import dataclasses
import errno
import json
import os
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from clip_jax.convert.pytorch import from_pytorch, to_pytorch
from clip_jax.convert.reader import read_checkpoint
from clip_jax.errors import CheckpointError
from clip_jax.nn import flatten, parameters, unflatten
from clip_jax.weights import load, read_native, save, save_parameters
from tests.model_files import RESNET, VIT, names_below, same
from tests.models import random_parameters


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_native_form_keeps_the_stored_dtype(tmp_path, dtype):
    arrays = {name: array.astype(dtype) for name, array in flatten(random_parameters(VIT)).items()}
    save_parameters(VIT, unflatten(arrays), tmp_path / "model")
    _, params = read_native(tmp_path / "model")
    assert all(array.dtype == dtype for array in flatten(params).values())
    assert same(params, unflatten(arrays))
    loaded = flatten(parameters(load(tmp_path / "model")[0]))
    assert all(np.array_equal(loaded[k], v.astype(np.float32)) for k, v in arrays.items())


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_state_dict_to_native_and_back_is_exact(tmp_path, config):
    state = to_pytorch(config, random_parameters(config))
    state["visual.conv1.weight"] = state["visual.conv1.weight"].astype(np.float16)
    safetensors.numpy.save_file(state, tmp_path / "state.safetensors")
    read = from_pytorch(read_checkpoint(tmp_path / "state.safetensors"))
    save_parameters(*read, tmp_path / "model")
    back = to_pytorch(*read_native(tmp_path / "model"))
    assert back.keys() == state.keys()
    for name, array in state.items():
        assert back[name].dtype == array.dtype
        assert np.array_equal(back[name], array)


def test_transposed_arrays_are_not_scrambled_and_the_library_reads_the_file(tmp_path):
    params = {
        path: np.asfortranarray(array)[::-1] if array.ndim else array
        for path, array in flatten(random_parameters(RESNET)).items()
    }
    save_parameters(RESNET, unflatten(params), tmp_path / "model")
    read = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors")
    assert same(read, params)


def test_library_writes_files_that_we_read(model_folder):
    read = safetensors.numpy.load_file(model_folder / "model.safetensors")
    safetensors.numpy.save_file(read, model_folder / "model.safetensors")
    assert same(parameters(load(model_folder)[0]), random_parameters(VIT))


def test_arrays_in_the_file_are_aligned(model_folder):
    _, params = read_native(model_folder)
    addresses = {path: array.ctypes.data for path, array in flatten(params).items()}
    assert {path for path, address in addresses.items() if address % 64} <= {"logit_scale"}


def test_native_arrays_are_mapped_and_not_copied(model_folder):
    spans = lambda: [  # noqa: E731
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(model_folder) in line
    ]
    model, _ = load(model_folder)
    kernel = parameters(model)["visual"]["transformer"]["resblocks"]["0"]["mlp"]["c_fc"]["kernel"]
    address = kernel.unsafe_buffer_pointer()
    assert any(low <= address < high for low, high in spans())


def test_donated_parameters_do_not_change_the_file(model_folder):
    before = (model_folder / "model.safetensors").read_bytes()
    model, _ = load(model_folder)
    params = parameters(model)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    params = step(step(params))
    jax.block_until_ready(params)
    assert (model_folder / "model.safetensors").read_bytes() == before
    for path, array in flatten(random_parameters(VIT)).items():
        assert np.array_equal(flatten(params)[path], array + np.float32(1) + np.float32(1))


def test_writing_to_a_mapped_array_does_not_change_the_file(model_folder):
    before = (model_folder / "model.safetensors").read_bytes()
    _, params = read_native(model_folder)
    params["token_embedding"]["embedding"][:] = 7
    assert (model_folder / "model.safetensors").read_bytes() == before


def test_model_can_be_saved_over_the_folder_it_is_mapped_from(model_folder):
    model, _ = load(model_folder)
    save(model, model_folder)
    assert same(parameters(model), random_parameters(VIT))
    assert same(parameters(load(model_folder)[0]), random_parameters(VIT))
    assert names_below(model_folder) == ["config.json", "model.safetensors"]
    assert names_below(model_folder.parent)[0] == "model"


def test_folder_of_another_library(model_folder):
    (model_folder / "config.json").write_text(json.dumps({"colour": "green"}))
    with pytest.raises(CheckpointError, match="nests too deeply|not a configuration of clip_jax"):
        load(model_folder)


def test_folder_of_another_model_of_hugging_face_is_named(model_folder):
    (model_folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="of the type bert, which is not supported"):
        load(model_folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"vision": {"type": []}}'])
def test_nested_configuration_is_refused(model_folder, text):
    (model_folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="nests too deeply|not a configuration of clip_jax"):
        load(model_folder)


def test_folder_without_permission_is_refused(model_folder, monkeypatch):
    status = os.stat

    def refuse(path, **options):  # root may enter any folder, so chmod shows nothing
        if os.fspath(path).endswith(".json"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return status(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(CheckpointError, match="config.json: can't be read .Permission denied"):
        load(model_folder)


@pytest.mark.parametrize("num_layers", [10_000, 2**31 - 1])
def test_number_of_blocks_in_a_configuration_costs_nothing(model_folder, num_layers):
    document = json.loads(VIT.to_json())
    document["vision"]["num_layers"] = num_layers
    (model_folder / "config.json").write_text(json.dumps(document))
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=f"can't fill {num_layers + 2:,} blocks"):
        load(model_folder)
    assert time.monotonic() - started < 5


def test_a_few_blocks_too_many_are_listed_up_to_a_limit(model_folder):
    vision = dataclasses.replace(VIT.vision, num_layers=5)
    (model_folder / "config.json").write_text(dataclasses.replace(VIT, vision=vision).to_json())
    with pytest.raises(CheckpointError, match="- visual/transformer/resblocks/2/.*: missing") as e:
        load(model_folder)
    assert str(e.value).endswith("\nand 16 more") and len(str(e.value).splitlines()) == 22


def test_weights_file_out_of_its_folder(model_folder):
    with pytest.raises(CheckpointError, match="give the folder"):
        load(model_folder / "model.safetensors")


def test_configuration_of_another_model_lists_every_misfit(model_folder):
    other = dataclasses.replace(VIT, embed_dim=24)
    (model_folder / "config.json").write_text(other.to_json())
    with pytest.raises(CheckpointError) as error:
        load(model_folder)
    for path in ("visual/proj", "text_projection"):
        assert f"! {path}: expected shape (64, 24). Got (64, 16)" in str(error.value)


def test_integers_are_no_weights(model_folder):
    arrays = flatten(random_parameters(VIT))
    arrays["visual/proj"] = arrays["visual/proj"].astype(np.int32)
    safetensors.numpy.save_file(arrays, model_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="! visual/proj: expected floats. Got int32"):
        load(model_folder)


def test_newer_format_is_named(model_folder):
    arrays = flatten(random_parameters(VIT))
    path = model_folder / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"version": "2"})
    with pytest.raises(CheckpointError, match="version 2.*reads 1"):
        load(model_folder)


@pytest.mark.parametrize("size", [0, 5, 8, 100, 5_000, -1])
def test_truncated_weights(model_folder, size):
    path = model_folder / "model.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load(model_folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        ((10**6).to_bytes(8, "little") + b'{"', "was cut short"),
        (b"<!doctype html>", "looks like HTML"),
        (b"PK\x03\x04" + bytes(100), "a ZIP archive, as torch.save writes"),
        ((400_000).to_bytes(8, "little") + b"[" * 400_000, "begins with"),
        ((400_000).to_bytes(8, "little") + b'{"":' * 100_000, "malformed .* header"),
        ((20 << 20).to_bytes(8, "little") + b"{" + bytes(20 << 20), "expected at most 16,777,216"),
    ],
)
def test_weights_that_are_something_else(model_folder, content, said):
    (model_folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"model.safetensors: .*{said}"):
        load(model_folder)


def test_damaged_weights(model_folder):
    path = model_folder / "model.safetensors"
    rng = np.random.default_rng(0)
    whole = path.read_bytes()
    for header in (b"[]", b"{}", b"7", b'{"__metadata__": 3}', rng.bytes(200)):
        path.write_bytes(len(header).to_bytes(8, "little") + header + whole[-100:])
        with pytest.raises(CheckpointError, match="model.safetensors"):
            load(model_folder)
    path.write_bytes(rng.bytes(1000))
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load(model_folder)
