"""Official arrays to the parameter tree and back."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.convert.pytorch import from_pytorch, to_pytorch
from clip_jax.convert.rules import RULES, source_to_target, target_to_source
from clip_jax.errors import CheckpointError
from clip_jax.nn import flatten, from_parameters, parameters
from clip_jax.shapes import parameter_shapes
from tests.models import TINY_RESNET, TINY_VIT, official_shapes, random_parameters

OFFICIAL = official_shapes()


def arrays_of(config, dtype=np.float32):
    arrays = to_pytorch(config, random_parameters(config))
    return {
        name: array if array.dtype == np.int64 else array.astype(dtype)
        for name, array in arrays.items()
    }


def blank(name):
    """Arrays of an official checkpoint's names, shapes and dtypes that take no memory."""
    return {
        array: np.broadcast_to(np.zeros((), dtype), shape)
        for array, (shape, dtype) in OFFICIAL[name].items()
    }


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_name_is_used_exactly_once(name):
    config, params = from_pytorch(blank(name))
    assert flatten(params).keys() == parameter_shapes(config).keys()
    assert len(flatten(params)) == len(OFFICIAL[name])
    targets = [source_to_target(array)[1] for array in OFFICIAL[name]]
    assert len(set(targets)) == len(targets)


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_name_matches_one_rule_and_comes_back(name):
    for array in OFFICIAL[name]:
        rule, path = source_to_target(array)
        assert target_to_source(path) == (rule, array)
        assert sum(_matches(rule, array) for rule in RULES) == 1


def _matches(rule, name):
    import re

    return bool(re.fullmatch(re.escape(rule.source).replace(r"\*", "[0-9]+"), name))


@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_there_and_back_is_identical_to_the_bit(config, dtype):
    arrays = arrays_of(config, dtype)
    given_config, params = from_pytorch(arrays)
    assert given_config == config
    back = to_pytorch(given_config, params)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()
        assert back[name].flags.c_contiguous


@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET])
def test_a_loaded_model_exports_the_arrays_it_was_made_of(config):
    arrays = arrays_of(config)
    model = from_parameters(config, from_pytorch(arrays)[1])
    for name, array in to_pytorch(model.config, parameters(model)).items():
        assert array.dtype == arrays[name].dtype
        assert np.array_equal(array, arrays[name]), name


def test_conversion_copies_nothing():
    arrays = arrays_of(TINY_VIT)
    _, params = from_pytorch(arrays)
    kernel = params["visual"]["transformer"]["resblocks"]["0"]["mlp"]["c_fc"]["kernel"]
    assert np.shares_memory(kernel, arrays["visual.transformer.resblocks.0.mlp.c_fc.weight"])


def test_layouts_are_jax_layouts():
    arrays = arrays_of(TINY_VIT)
    _, params = from_pytorch(arrays)
    weight = arrays["visual.conv1.weight"]  # out, in, h, w
    assert params["visual"]["conv1"]["kernel"][3, 5, 2, 7] == weight[7, 2, 3, 5]
    weight = arrays["transformer.resblocks.1.attn.in_proj_weight"]  # out, in
    kernel = params["transformer"]["resblocks"]["1"]["attn"]["in_proj"]["kernel"]
    assert kernel[3, 301] == weight[301, 3]
    assert np.array_equal(params["text_projection"], arrays["text_projection"])


def test_the_three_scalars_are_read_and_dropped():
    arrays = arrays_of(TINY_VIT)
    scalars = {"input_resolution": 48, "context_length": 77, "vocab_size": 49408}
    config, params = from_pytorch(arrays | {k: np.asarray(v) for k, v in scalars.items()})
    assert config == TINY_VIT
    assert not scalars.keys() & to_pytorch(config, params).keys()


def test_activation_is_quick_gelu_unless_said():
    arrays = arrays_of(TINY_VIT)
    assert from_pytorch(arrays)[0].activation == "quick_gelu"
    assert from_pytorch(arrays, activation="gelu")[0].activation == "gelu"


def test_all_problems_are_listed_at_once():
    arrays = arrays_of(TINY_VIT)
    del arrays["ln_final.bias"], arrays["visual.transformer.resblocks.1.ln_1.weight"]
    arrays["visual.extra"] = np.zeros(3, np.float32)
    arrays["transformer.resblocks.0.mlp.c_fc.weight"] = np.zeros((512, 127), np.float32)
    arrays["logit_scale"] = np.asarray(1, np.int32)
    arrays["visual.proj"] = np.zeros((192, 24, 1), np.float32)
    with pytest.raises(CheckpointError) as caught:
        from_pytorch(arrays)
    message = str(caught.value)
    for line in (
        "6 arrays do not fit",
        "- ln_final.bias: missing",
        "- visual.transformer.resblocks.1.ln_1.weight: missing",
        "+ visual.extra: unexpected",
        "! transformer.resblocks.0.mlp.c_fc.weight: expected shape (512, 128). Got (512, 127)",
        "! logit_scale: expected a float dtype. Got int32",
        "! visual.proj: expected shape (192, 24). Got (192, 24, 1)",
    ):
        assert line in message


@pytest.mark.parametrize(
    "name", ["token_embedding.weight", "visual.positional_embedding", "visual.conv1.weight"]
)
def test_a_missing_array_that_tells_the_configuration_is_named(name):
    arrays = arrays_of(TINY_VIT)
    del arrays[name]
    with pytest.raises(CheckpointError, match=name):
        from_pytorch(arrays)


def test_all_missing_arrays_that_tell_the_configuration_are_named_at_once():
    names = ["token_embedding.weight", "positional_embedding", "visual.conv1.weight"]
    arrays = {name: array for name, array in arrays_of(TINY_VIT).items() if name not in names}
    arrays["visual.positional_embedding"] = np.zeros((11, 192), np.float32)
    arrays = {n: a for n, a in arrays.items() if not n.startswith("transformer.resblocks.")}
    with pytest.raises(CheckpointError) as caught:
        from_pytorch(arrays)
    for said in (*names, "Got 11 rows", "no blocks: expected transformer.resblocks.0"):
        assert said in str(caught.value)


def test_blocks_that_the_arrays_cannot_fill_are_refused_at_once():
    arrays = arrays_of(TINY_VIT)
    extra = {f"transformer.resblocks.{i}.ln_1.bias": np.zeros(128) for i in range(3, 20_000)}
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="can't fill 20,004 blocks"):
        from_pytorch(arrays | extra)
    assert time.monotonic() - started < 10


def test_a_long_list_of_problems_is_cut():
    arrays = arrays_of(TINY_VIT)
    extra = {f"extra.{i:03}": np.zeros(1) for i in range(300)}
    with pytest.raises(CheckpointError, match="^300 arrays") as caught:
        from_pytorch(arrays | extra)
    lines = str(caught.value).splitlines()
    assert lines[1] == "+ extra.000: unexpected" and lines[20:] == [
        "+ extra.019: unexpected",
        "and 280 more",
    ]


def test_layout_of_hugging_face_is_named():
    arrays = {"text_model.embeddings.token_embedding.weight": np.zeros((3, 2))}
    with pytest.raises(CheckpointError, match="Hugging Face.*config.json: give the folder"):
        from_pytorch(arrays)


def test_other_libraries_tensors_are_refused_with_the_way_to_numpy():
    arrays: dict = arrays_of(TINY_VIT)
    arrays["visual.proj"] = 3.0
    with pytest.raises(TypeError, match="visual.proj must be a NumPy array. Got builtins.float"):
        from_pytorch(arrays)


@pytest.mark.torch
def test_pytorchs_tensors_are_refused_with_the_way_to_numpy():
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in arrays_of(TINY_VIT).items()}
    with pytest.raises(TypeError, match=r"Got torch.Tensor: .*tensor.numpy\(force=True\)"):
        from_pytorch(tensors)
    numpy = {name: tensor.numpy(force=True) for name, tensor in tensors.items()}
    assert from_pytorch(numpy)[0] == TINY_VIT


def test_unknown_activation_is_the_callers_mistake():
    with pytest.raises(ValueError, match="Got 'relu'"):
        from_pytorch(arrays_of(TINY_VIT), activation="relu")


def test_an_empty_checkpoint_is_refused():
    with pytest.raises(CheckpointError, match="ln_final.weight"):
        from_pytorch({})


def test_one_misshapen_witness_does_not_mislead_the_rest():
    arrays = arrays_of(TINY_VIT)
    arrays["ln_final.weight"] = np.zeros(64, np.float32)
    with pytest.raises(CheckpointError, match="^1 array does not fit") as caught:
        from_pytorch(arrays)
    assert "! ln_final.weight: expected shape (128,). Got (64,)" in str(caught.value)


def test_a_block_number_far_out_does_not_build_a_million_blocks():
    arrays = arrays_of(TINY_VIT)
    arrays["transformer.resblocks.1000000000.ln_1.weight"] = np.zeros(128, np.float32)
    with pytest.raises(CheckpointError, match="resblocks.1000000000.ln_1.weight: unexpected"):
        from_pytorch(arrays)


@pytest.mark.parametrize("shape", [(11, 192), (1, 50, 192), ()])
def test_positions_that_are_no_square_are_refused_by_name(shape):
    arrays = arrays_of(TINY_VIT)
    arrays["visual.positional_embedding"] = np.zeros(shape, np.float32)
    with pytest.raises(CheckpointError, match="visual.positional_embedding"):
        from_pytorch(arrays)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_change_to_the_names_is_noticed(data):
    arrays = arrays_of(TINY_VIT)
    name = data.draw(st.sampled_from(sorted(arrays)))
    action = data.draw(st.sampled_from(["drop", "rename", "reshape"]))
    array = arrays.pop(name)
    if action == "rename":
        arrays[name + data.draw(st.sampled_from([".x", "0", "/", " "]))] = array
    elif action == "reshape":
        arrays[name] = array[None]
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        from_pytorch(arrays)


def test_exporting_lists_all_problems_at_once():
    params = random_parameters(TINY_VIT)
    del params["logit_scale"]
    params["ln_final"]["scale"] = np.zeros(3)
    params["extra"] = np.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        to_pytorch(TINY_VIT, params)
    for line in ("- logit_scale: missing", "+ extra: unexpected", "! ln_final/scale: expected"):
        assert line in str(caught.value)
