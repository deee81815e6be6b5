"""Models by path: what is loaded, and what is neither a name nor a path."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from clip_jax.convert.pytorch import to_pytorch
from clip_jax.errors import CheckpointError
from clip_jax.nn import flatten, from_parameters, parameters, unflatten
from clip_jax.weights import load, save
from tests.model_files import RESNET, VIT, names_below, same
from tests.models import random_images, random_parameters, small, unsaid


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_saved_model_is_loaded_to_the_bit(tmp_path, config):
    model = small(config)
    save(model, tmp_path / "new" / "model")
    again, preprocess = load(tmp_path / "new" / "model")
    assert same(parameters(again), parameters(model))
    assert again.config == config and preprocess.image_size == config.vision.image_size
    images = random_images(2, config.vision.image_size)
    assert np.array_equal(again.encode_image(images), model.encode_image(images))
    assert names_below(tmp_path) == [
        "new",
        "new/model",
        "new/model/config.json",
        "new/model/model.safetensors",
    ]


def test_activation_is_saved_with_the_weights(tmp_path):
    save(small(dataclasses.replace(VIT, activation="gelu")), tmp_path / "model")
    assert load(str(tmp_path / "model"))[0].config.activation == "gelu"


def test_dtype_and_precision_reach_the_model(model_folder):
    model, _ = load(model_folder, dtype=jnp.bfloat16, precision="default")
    assert model.dtype == jnp.bfloat16 and model.precision == "default"
    assert all(array.dtype == jnp.float32 for array in flatten(parameters(model)).values())


def test_state_dict_file_with_another_activation(tmp_path):
    params = random_parameters(VIT)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(to_pytorch(VIT, params), path)
    assert load(path, **unsaid(VIT))[0].config.activation == "quick_gelu"
    model, _ = load(path, activation="gelu", num_heads=1)
    assert model.config.activation == "gelu"
    assert same(parameters(model), params)


def test_activation_of_a_native_folder_cannot_be_overridden(model_folder):
    with pytest.raises(ValueError, match="knows its own"):
        load(model_folder, activation="gelu")


def test_half_precision_arrays_become_float32_exactly(tmp_path):
    halves = {
        path: array.astype(np.float16) if path.endswith("kernel") else array
        for path, array in flatten(random_parameters(VIT)).items()
    }
    path = tmp_path / "state.safetensors"
    safetensors.numpy.save_file(to_pytorch(VIT, unflatten(halves)), path)
    given = flatten(parameters(load(path, **unsaid(VIT))[0]))
    for name, half in halves.items():
        assert given[name].dtype == jnp.float32
        assert np.array_equal(given[name], half.astype(np.float32))


def test_model_of_a_file_outlives_changes_to_the_file(tmp_path):
    path = tmp_path / "state.safetensors"
    safetensors.numpy.save_file(to_pytorch(VIT, random_parameters(VIT)), path)
    model, _ = load(path, **unsaid(VIT))
    with open(path, "r+b") as file:
        file.truncate(0)
    assert same(parameters(model), random_parameters(VIT))


def test_arrays_given_by_the_user_are_copied():
    params = random_parameters(VIT)
    own = {path: array.copy() for path, array in flatten(params).items()}
    model = from_parameters(VIT, unflatten(own))
    for array in own.values():
        array[...] = 0
    assert same(parameters(model), params)


@pytest.mark.parametrize("given", ["nowhere.pt", Path("nowhere"), "x" * 5000, "null\0.pt"])
def test_what_is_neither_name_nor_path(given):
    with pytest.raises(ValueError, match="neither the name of a model nor a file or folder"):
        load(given)


def test_unknown_activation_is_the_callers_mistake(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(to_pytorch(VIT, random_parameters(VIT)), path)
    with pytest.raises(ValueError, match="quick_gelu, gelu, gelu_tanh. Got 'relu'"):
        load(path, activation="relu")


def test_heads_of_another_width_are_set_in_a_native_folder(tmp_path):
    config = dataclasses.replace(VIT, text=dataclasses.replace(VIT.text, num_heads=4))
    model = small(config)
    path = tmp_path / "state.safetensors"
    safetensors.numpy.save_file(to_pytorch(config, parameters(model)), path)
    tokens = np.arange(1, 61, dtype=np.int32)[None]
    expected = model.encode_text(tokens)
    loaded, _ = load(path, activation="quick_gelu", num_heads=1)
    assert loaded.config.text.num_heads == 1
    assert not np.allclose(loaded.encode_text(tokens), expected)

    save(loaded, tmp_path / "model")
    document = json.loads((tmp_path / "model" / "config.json").read_text())
    document["text"]["num_heads"] = 4
    (tmp_path / "model" / "config.json").write_text(json.dumps(document))
    assert np.array_equal(load(tmp_path / "model")[0].encode_text(tokens), expected)


def test_unknown_name_and_missing_path_are_one_error():
    with pytest.raises(ValueError, match="neither.*'ViT-B/32'.*known: RN50, ") as error:
        load("ViT-B32")
    assert "ViT-B32" in str(error.value)


@pytest.mark.parametrize("content", [{}, {"config.json": "{}"}, {"pytorch_model.bin": "?"}])
def test_folder_of_something_else_says_what_a_model_is(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match="is not a model.*config.json and model.safetensors"):
        load(tmp_path)


def test_checkpoint_that_does_not_fit_names_its_file(tmp_path):
    state = to_pytorch(VIT, random_parameters(VIT))
    del state["visual.proj"]
    safetensors.numpy.save_file(state, tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="state.safetensors: .*\n- visual.proj: missing"):
        load(tmp_path / "state.safetensors")
