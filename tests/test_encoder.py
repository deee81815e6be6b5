"""The encoder: equal to the model however rows are cut, padded and placed, on few programs."""

import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import clip_jax
from clip_jax import Encoder, from_parameters, parameters
from clip_jax.backends import defaults
from clip_jax.encoder import _attention
from clip_jax.nn import set_parameters
from tests.encoders import BATCH_SIZE, PLACEMENTS, TOLERANCE, callers_mesh
from tests.models import (
    SMALL_RESNET,
    SMALL_VIT,
    TINY_VIT,
    random_images,
    random_parameters,
    relative_error,
    small,
    to_float,
)

COUNTS = (1, 7, 8, 9, 33)


# --- the three placements, over eight devices


@pytest.mark.parametrize("count", COUNTS)
def test_images_equal_the_model_in_every_placement(encoder, images, embedded, count):
    result = encoder.images(images[:count])
    assert (type(result), result.dtype, result.shape) == (np.ndarray, np.float32, (count, 16))
    assert relative_error(result, embedded[:count]) < TOLERANCE["same"]


@pytest.mark.parametrize("count", COUNTS)
def test_texts_equal_the_model_in_every_placement(encoder, tokens, embedded_tokens, count):
    result = encoder.texts(tokens[:count])
    assert (type(result), result.dtype, result.shape) == (np.ndarray, np.float32, (count, 16))
    assert relative_error(result, embedded_tokens[:count]) < TOLERANCE["same"]


def test_no_rows_give_no_embeddings_and_no_program(model):
    encoder = Encoder(model)
    for result in (
        encoder.images(np.zeros((0, 32, 32, 3), np.uint8)),
        encoder.images([]),
        encoder.texts([]),
        encoder.texts(()),
        encoder.texts(np.zeros((0, 77), np.int32)),
    ):
        assert result.shape == (0, 16) and result.dtype == np.float32
    assert encoder.num_compilations == 0


def test_a_model_that_lies_on_several_devices_is_encoded_on_one(model, images, embedded):
    mesh = jax.make_mesh((8,), ("x",))

    def put(array):
        is_cut = array.ndim and array.shape[0] % 8 == 0
        return jax.device_put(
            array, NamedSharding(mesh, PartitionSpec("x") if is_cut else PartitionSpec())
        )

    found = Encoder(jax.tree.map(put, model)).images(images)
    assert relative_error(found, embedded) < 1e-6


def test_arrays_are_moved_only_where_it_is_said(model, images):
    with jax.transfer_guard("disallow"):
        assert len(Encoder(model).images(images[:1])) == 1


def test_every_float_dtype_of_images_is_one_program(encoder, images):
    before = encoder.num_compilations
    floats = np.asarray(to_float(images[:9]))
    expected = encoder.images(floats)
    assert relative_error(expected, encoder.images(images[:9])) < TOLERANCE["same"]
    half = jnp.asarray(floats, jnp.bfloat16)
    for given_, same in (
        (floats.astype(np.float64), floats),
        (jnp.asarray(floats), floats),
        (half, np.asarray(half, np.float32)),
        (floats.astype(np.float16), floats.astype(np.float16).astype(np.float32)),
    ):
        assert np.array_equal(encoder.images(given_), encoder.images(same))
    assert encoder.num_compilations <= before + 2  # floats, and pixels where this test runs alone


def test_arrays_on_any_device_are_taken(encoder, images):
    last = jax.devices()[-1]
    expected = encoder.images(images[:8])
    assert np.array_equal(encoder.images(jax.device_put(images[:8], last)), expected)
    with jax.default_device(last):
        assert np.array_equal(encoder.images(images[:8]), expected)


def test_resnet_is_the_same_in_every_placement_and_not_in_training():
    model, images = small(SMALL_RESNET), random_images(11, 64)
    expected = model.encode_image(images)
    model.train()  # the encoder normalises by the running statistics all the same
    for placement in PLACEMENTS:
        encoder = Encoder(model, batch_size=BATCH_SIZE, parallel=placement)
        assert relative_error(encoder.images(images), expected) < TOLERANCE["same"]
    assert model.visual.bn1.num_batches_tracked[...] == 1000


def test_a_batch_is_rounded_up_to_the_devices(model, images, embedded):
    sizes = {
        placement: Encoder(model, batch_size=9, parallel=placement).batch_size
        for placement in PLACEMENTS
    }
    assert sizes == {"jit": 9, "pmap": 16, "mesh": 16}
    assert Encoder(model).batch_size == 32 and Encoder(model, parallel="mesh").batch_size == 256
    three = Mesh(np.array(jax.devices()[2:5]), "x")
    encoder = Encoder(model, batch_size=7, parallel="mesh", mesh=three)
    assert encoder.batch_size == 9
    assert relative_error(encoder.images(images[:10]), embedded[:10]) < TOLERANCE["same"]


# --- meshes of the caller's


def test_callers_devices_and_axes_may_be_any(model, images, embedded):
    backwards = callers_mesh().devices[::-1]
    mesh = Mesh(backwards, ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    encoder = Encoder(model, batch_size=BATCH_SIZE, parallel="mesh", mesh=mesh)
    assert relative_error(encoder.images(images), embedded) < TOLERANCE["same"]


def test_a_mesh_that_is_set_around_calls_changes_nothing(encoder, images, tokens):
    expected = encoder.images(images[:9]), encoder.texts(tokens[:9])
    with jax.set_mesh(callers_mesh()):
        assert np.array_equal(encoder.images(images[:9]), expected[0])
        assert np.array_equal(encoder.texts(tokens[:9]), expected[1])
        assert not jax.sharding.get_abstract_mesh().empty


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_mesh_that_is_set_around_everything_changes_nothing(
    model, tokens, embedded_tokens, placement
):
    with jax.set_mesh(callers_mesh()):
        encoder = Encoder(model, batch_size=BATCH_SIZE, parallel=placement)
        inside = encoder.texts(tokens[:9])
    assert relative_error(inside, embedded_tokens[:9]) < TOLERANCE["same"]
    assert np.array_equal(encoder.texts(tokens[:9]), inside)


def test_a_model_may_lie_on_a_mesh(model, images, embedded):
    graph, state = nnx.split(model)
    whole = NamedSharding(callers_mesh(), PartitionSpec())
    moved = nnx.merge(graph, jax.device_put(state, whole))
    result = Encoder(moved, batch_size=BATCH_SIZE).images(images[:8])
    assert relative_error(result, embedded[:8]) < TOLERANCE["same"]


# --- a row is its own


@pytest.mark.parametrize("config", [TINY_VIT, SMALL_RESNET], ids=["vit", "resnet"])
def test_an_images_neighbours_change_no_bit(config):
    encoder = Encoder(small(config), batch_size=9)  # no multiple of a vector's width
    images = random_images(9, config.vision.image_size)
    full = encoder.images(images)
    for shift in range(1, 9):
        assert np.array_equal(
            encoder.images(np.roll(images, shift, axis=0)), np.roll(full, shift, 0)
        )
    # Further on in a call, and in a batch that is mostly filling.
    again = encoder.images(np.concatenate([images, images[:1]]))
    assert np.array_equal(again, np.concatenate([full, full[:1]]))
    assert encoder.num_compilations == 1


def test_neighbours_change_no_bit_in_any_placement(encoder, images, tokens):
    full, text = encoder.images(images[:8]), encoder.texts(tokens[:8])
    for count in (2, 5, 7):
        assert np.array_equal(encoder.images(images[:count]), full[:count])
        assert np.array_equal(encoder.texts(tokens[:count]), text[:count])
    assert np.array_equal(encoder.images(images[7::-1]), full[::-1])
    assert np.array_equal(encoder.texts(tokens[7::-1]), text[::-1])


@pytest.mark.usefixtures("ranks_promoted")
def test_only_the_pooled_row_equals_all_rows(model, images, embedded, tokens, embedded_tokens):
    """With a tap, which sees every row, the last block is computed in full."""
    seen = {}

    @jax.jit
    def whole(model, images, tokens):
        hidden = {}
        image = model.image_features(images, hidden.__setitem__)
        text = model.text_features(tokens, model.dtype, hidden.__setitem__)
        seen.update({name: array.shape for name, array in hidden.items()})
        return image, text

    image, text = whole(model, images, tokens)
    assert seen["transformer.resblocks.1"] == (33, 77, 64)
    assert relative_error(embedded, image) < TOLERANCE["same"]
    assert relative_error(embedded_tokens, text) < TOLERANCE["same"]


# --- what it is made with


def test_normalized_rows_have_length_one(model, images, embedded):
    result = Encoder(model, batch_size=BATCH_SIZE, normalize=True).images(images[:9])
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, rtol=1e-6)
    unit = embedded[:9] / np.linalg.norm(embedded[:9], axis=1, keepdims=True)
    assert relative_error(result, unit) < TOLERANCE["same"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close(model, images, embedded, dtype):
    result = Encoder(model, batch_size=BATCH_SIZE, dtype=dtype).images(images[:8])
    assert result.dtype == np.float32
    assert 1e-5 < relative_error(result, embedded[:8]) < TOLERANCE[dtype]


def test_dtype_is_the_encoders_or_the_models(model, images, embedded):
    half = from_parameters(model.config, parameters(model), dtype="bfloat16")
    result = Encoder(half, batch_size=BATCH_SIZE).images(images[:1])
    given_ = Encoder(model, batch_size=BATCH_SIZE, dtype="bfloat16").images(images[:1])
    assert np.array_equal(given_, result)
    assert relative_error(half.encode_image(images[:1]), result) < TOLERANCE["bfloat16"]
    back = Encoder(half, batch_size=BATCH_SIZE, dtype="float32").images(images[:1])
    assert relative_error(back, embedded[:1]) < TOLERANCE["same"]


def test_precision_is_the_encoders_or_the_models(model, images, programs):
    quick = from_parameters(SMALL_VIT, parameters(model), precision="default")
    for encoder in (
        Encoder(model),
        Encoder(quick),
        Encoder(model, precision="default"),
        Encoder(quick, precision="highest"),
    ):
        encoder.images(images[:1])
    # CPUs multiply in float32 at any precision, so what is asked for has to be looked at.
    highest = ["Precision.HIGHEST" in program for *_, program in programs]
    assert highest == [True, False, False, True]
    default = ["Precision.DEFAULT" in program for *_, program in programs]
    assert default == [False, True, True, False]


def test_cudnn_attends_in_half_precision_with_a_flag_instead_of_a_mask(
    model, images, tokens, monkeypatch
):
    """As far as it goes without such a GPU: what cuDNN is asked for, computed by XLA."""
    half, calls = Encoder(model, batch_size=8, dtype="bfloat16"), []
    attention = jax.nn.dot_product_attention

    def recorded(*args, implementation, **options):
        calls.append((implementation, options, {x.dtype.name for x in args}))
        return attention(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    both = {"image": "cudnn", "text": "cudnn"}
    monkeypatch.setattr("clip_jax.encoder._attention", lambda *args: both)
    fused = Encoder(model, batch_size=8, dtype="bfloat16", attention="cudnn")
    given_ = fused.images(images[:8])
    # Of two blocks the one before the last, whose pooled row is XLA's.
    assert calls == [("cudnn", {"is_causal": False}, {"bfloat16"})]
    assert relative_error(given_, half.images(images[:8])) < TOLERANCE["bfloat16"]
    calls.clear()
    given_ = fused.texts(tokens[:8])
    assert all(call == ("cudnn", {"is_causal": True}, {"bfloat16"}) for call in calls) and calls
    assert relative_error(given_, half.texts(tokens[:8])) < TOLERANCE["bfloat16"]


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}])
def test_cudnn_is_refused_where_it_can_not_be(model, options):
    with pytest.raises(ValueError, match="half precision on GPUs.* on cpu"):
        Encoder(model, attention="cudnn", **options)


def test_attention_is_chosen_by_the_table_of_defaults(model, monkeypatch):
    assert Encoder(model).attention == {"image": "xla", "text": "xla"}
    # As on a GPU that was measured: from the 17 tokens of an image on, which a text of 77 has too.
    measured = defaults.Default("cudnn", "gpu", min_tokens=18, reason="1.2 times")
    monkeypatch.setattr(defaults, "ATTENTION", (measured, *defaults.ATTENTION))
    gpu = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")
    assert _attention("auto", model, gpu) == {"image": "xla", "text": "cudnn"}
    with pytest.raises(ValueError, match="half precision on GPUs.* on gpu"):
        _attention("cudnn", model, gpu)


def test_no_other_attention_is_known(model):
    with pytest.raises(ValueError, match='"auto", "xla" or "cudnn". Got \'flash\''):
        Encoder(model, attention="flash")


def test_what_becomes_of_the_model_does_not_reach_the_encoder(images, embedded):
    model = small(SMALL_VIT)
    encoder = Encoder(model, batch_size=BATCH_SIZE)
    set_parameters(model, random_parameters(SMALL_VIT, seed=1))
    assert not np.array_equal(model.visual.proj[...], small(SMALL_VIT).visual.proj[...])
    assert relative_error(encoder.images(images), embedded) < TOLERANCE["same"]


# --- platform by placement


def test_the_encoder_computes_where_the_parameters_are_committed(model, images):
    other = jax.devices()[3]
    there = jax.device_put(model, other)
    encoder = Encoder(there, batch_size=BATCH_SIZE)
    assert encoder.device == other
    assert {device for leaf in encoder._leaves for device in leaf.devices()} == {other}
    same = Encoder(model, batch_size=BATCH_SIZE).images(images)
    assert np.array_equal(encoder.images(images), same)
    assert Encoder(model).device == jax.devices()[0]
    with jax.default_device(other):
        assert Encoder(model).device == other


def test_nothing_asks_for_the_platform_of_the_process(model, images, tokens, monkeypatch, tmp_path):
    """As in a process whose default is a GPU, for a model on one of its CPU devices."""

    def asked():
        raise AssertionError("the process's default backend doesn't tell where a model computes")

    monkeypatch.setattr(jax, "default_backend", asked)
    there = jax.device_put(model, jax.devices("cpu")[1])
    encoder = Encoder(there, batch_size=8, dtype="bfloat16")
    assert encoder.batch_size == 8 and encoder.images(images[:8]).shape == (8, 16)
    assert Encoder(there).batch_size == 32
    assert there.encode_text(tokens).devices() == {jax.devices("cpu")[1]}
    with pytest.warns(UserWarning, match="for GPUs and TPUs"):
        Encoder(there, batch_size=1, compile_cache=tmp_path).images(images[:1])
    source = Path(clip_jax.__file__).parent
    files = [*source.rglob("*.py"), *(source.parent / "convert").rglob("*.py")]
    assert len(files) > 50
    assert not [path for path in files if "default_backend" in path.read_text()]
