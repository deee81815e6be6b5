"""The encoder: equal to the model however rows are cut, padded and placed, on few programs."""

import functools
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import clip_jax
from clip_jax import Encoder, from_parameters, parameters, tokenize
from clip_jax.backends import defaults
from clip_jax.encoder import TEXT_LENGTHS, _attention
from clip_jax.nn import set_parameters
from clip_jax.placement import OneDevice
from tests import processes
from tests.models import (
    SMALL_RESNET,
    SMALL_VIT,
    TINY_VIT,
    random_images,
    random_parameters,
    random_tokens,
    relative_error,
    small,
    to_float,
)

TOLERANCE = {
    # The same sums in another order: other rows beside, other lengths, other fusions.
    "same": 1e-6,
    # 8 significand bits: one rounding is 4e-3; measured 5e-3 after all layers.
    "bfloat16": 2e-2,
    # 11 significand bits: one rounding is 5e-4; measured 8e-4.
    "float16": 3e-3,
}
PLACEMENTS = ("jit", "pmap", "mesh")
BATCH_SIZE = 8
COUNTS = (1, 7, 8, 9, 33)
END = 49407


@pytest.fixture(scope="module")
def model():
    return small(SMALL_VIT)


@pytest.fixture(scope="module")
def images():
    return random_images(33, 32)


@pytest.fixture(scope="module")
def embedded(model, images):
    return np.asarray(model.encode_image(images))


@pytest.fixture(scope="module")
def tokens():
    """Captions that all fit the shortest program."""
    return np.pad(random_tokens(33, 8), ((0, 0), (0, 69)))


@pytest.fixture(scope="module")
def embedded_tokens(model, tokens):
    return np.asarray(model.encode_text(tokens))


@functools.cache
def shared_encoder(placement="jit"):
    """Compiling is what takes the time here."""
    return Encoder(small(SMALL_VIT), batch_size=BATCH_SIZE, parallel=placement)


@pytest.fixture(params=PLACEMENTS)
def encoder(request):
    return shared_encoder(request.param)


@pytest.fixture
def one_device():
    return shared_encoder()


@pytest.fixture
def programs(monkeypatch):
    """What one device would compile, without the time that it takes; embeddings are zeros."""
    programs = []

    def compile(self, function, leaves, rows):
        programs.append((rows.shape, rows.dtype.name, str(jax.make_jaxpr(function)(leaves, rows))))
        return lambda leaves, rows: np.zeros((len(rows), 16), np.float32)

    monkeypatch.setattr(OneDevice, "compile", compile)
    return programs


def captions(lengths, seed=0):
    """A caption of each of these lengths, start and end counted; zeros after it."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((len(lengths), 77), np.int32)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = [49406, *rng.integers(0, 49406, length - 2), END]
    return rows


def callers_mesh():
    return Mesh(
        np.array(jax.devices()).reshape(4, 2),
        ("data", "model"),
        axis_types=(AxisType.Explicit,) * 2,
    )


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


# --- programs


def test_bulk_images_of_any_number_are_one_program(model, programs):
    encoder = Encoder(model)
    for count in (33, 65, 32, 100, 40):
        encoder.images(np.zeros((count, 32, 32, 3), np.uint8))
    assert encoder.num_compilations == len(programs) == 1
    assert programs[0][:2] == ((32, 32, 32, 3), "uint8")


def test_small_calls_of_images_are_two_programs_more(model, programs):
    encoder = Encoder(model)
    for count in (*range(70), *range(70)):
        encoder.images(np.zeros((count, 32, 32, 3), np.uint8))
    assert [shape[0] for shape, *_ in programs] == [1, 8, 32]
    assert encoder.num_compilations == 3


def test_bulk_texts_are_one_program_a_length(model, programs):
    encoder = Encoder(model)
    for seed in range(3):
        encoder.texts(captions(np.tile(np.arange(2, 78), 40 + seed), seed))
    assert [shape for shape, *_ in programs] == [(32, n) for n in (*TEXT_LENGTHS, 77)]
    assert encoder.num_compilations == 7


def test_texts_are_at_most_one_program_a_length_and_size(model, programs):
    encoder = Encoder(model)
    for count in (1, 2, 8, 9, 31, 32, 33):
        for length in (2, *TEXT_LENGTHS, 77):
            encoder.texts(captions([length] * count))
    shapes = [shape for shape, *_ in programs]
    assert sorted(shapes) == [(b, n) for b in (1, 8, 32) for n in (*TEXT_LENGTHS, 77)]
    assert encoder.num_compilations == 21


# --- texts only as long as they are


def test_every_length_equals_the_whole_context(model, one_device):
    rows = captions(range(2, 78))
    expected = np.asarray(model.encode_text(rows))
    order = np.random.default_rng(0).permutation(len(rows))
    for given_, wanted in zip(one_device.texts(rows[order]), expected[order], strict=True):
        assert relative_error(given_, wanted) < TOLERANCE["same"]


@pytest.mark.parametrize("columns", [2, 23])
def test_the_model_takes_fewer_columns(model, columns):
    rows = captions([2, columns, (columns + 2) // 2])
    expected = model.encode_text(rows)
    assert relative_error(model.encode_text(rows[:, :columns]), expected) < TOLERANCE["same"]


def test_tokens_may_have_any_columns_and_anything_after_the_end(one_device, tokens):
    expected = one_device.texts(tokens[:9])
    assert np.array_equal(one_device.texts(tokens[:9, :8]), expected)
    assert np.array_equal(one_device.texts(jnp.asarray(tokens[:9])), expected)
    assert np.array_equal(one_device.texts(tokens[:9].astype(np.uint16)), expected)
    noisy = tokens[:9].copy()
    for row in noisy:
        row[row.argmax() + 1 :] = 1234
        row[-1] = END  # the first end token counts
    assert relative_error(one_device.texts(noisy), expected) < TOLERANCE["same"]


def test_texts_come_as_strings_of_every_kind(model, one_device):
    strings = ["a dog", "", "a photo of a cat.", "!"]
    expected = model.encode_text(tokenize(strings))
    for texts in (
        strings,
        tuple(strings),
        iter(strings),
        np.array(strings),
        np.array(strings, object),
        np.array(strings, np.dtypes.StringDType()),
    ):
        assert relative_error(one_device.texts(texts), expected) < TOLERANCE["same"]
    for text in (strings[2], np.str_(strings[2])):
        result = one_device.texts(text)
        assert result.shape == (1, 16)
        assert relative_error(result[0], expected[2]) < TOLERANCE["same"]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(2, 12), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_permuted_texts_give_permuted_embeddings_to_the_bit(lengths, random):
    encoder, rows = shared_encoder(), captions(lengths)
    order = random.sample(range(len(rows)), len(rows))
    result = encoder.texts(rows)
    assert np.array_equal(encoder.texts(rows[order]), result[order])
    # Neither does the number of rows matter beyond the choice of a program.
    whole = encoder.texts(np.concatenate([rows, rows]))
    assert relative_error(result, whole[: len(rows)]) < TOLERANCE["same"]


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


# --- several processes


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes of two devices each have written."""
    return processes.run_two(tmp_path_factory.mktemp("processes"), "encode")


def test_each_of_several_processes_gets_its_own_images(together, model):
    two = Mesh(np.array(jax.devices()[:2]), "x")
    encoder = Encoder(model, parallel="mesh", mesh=two, batch_size=processes.BATCH_SIZE)
    for index, results in enumerate(together):
        assert results["devices"].tolist() == [2, 4]
        for call, counts in enumerate(processes.IMAGES):
            given_ = results[f"mesh images {call}"]
            assert given_.shape == (counts[index], 16)
            # To the bit: two devices of a process hold what those of one process would.
            assert np.array_equal(given_, encoder.images(processes.images(call, index)))


def test_each_of_several_processes_gets_its_own_texts(together, one_device):
    for index, results in enumerate(together):
        for call, counts in enumerate(processes.TEXTS):
            given_ = results[f"mesh texts {call}"]
            assert given_.shape == (counts[index], 16)
            if counts[index]:  # in programs of other sizes
                expected = one_device.texts(processes.texts(call, index))
                assert relative_error(given_, expected) < TOLERANCE["same"]


def test_several_processes_compile_the_same_programs(together):
    assert together[0]["compilations"] == together[1]["compilations"]


def test_meshes_of_several_processes_may_be_interleaved_or_set(together):
    for results in together:
        assert np.array_equal(results["interleaved"], results["mesh images 0"])
        assert np.array_equal(results["callers mesh"], results["mesh images 0"])


def test_one_of_several_processes_may_encode_alone(together, one_device):
    expected = one_device.images(processes.images(0, 0))
    for name in ("jit", "local mesh"):
        assert name not in together[1]
        assert relative_error(together[0][name], expected) < TOLERANCE["same"]


def test_processes_are_refused_what_would_hang(together):
    for results in together:
        assert "pmap" in str(results["pmap"]) and '"mesh"' in str(results["pmap"])
    assert "[1, 2]" in str(together[0]["uneven"]) and "process 1" in str(together[1]["uneven"])
    assert "[0, 2]" in str(together[0]["elsewhere"]) and "[2, 0]" in str(together[1]["elsewhere"])


def test_pmap_is_refused_under_several_processes(monkeypatch, model):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match='"pmap" is for one process. .* use parallel="mesh"'):
        Encoder(model, parallel="pmap")


# --- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "at least 1. Got 0"),
        ({"batch_size": -8}, ValueError, "at least 1. Got -8"),
        ({"batch_size": 2.5}, TypeError, "float"),
        ({"parallel": "pjit"}, ValueError, '"jit", "pmap" or "mesh". Got \'pjit\''),
        ({"dtype": "int32"}, ValueError, "float32, bfloat16 or float16. Got int32"),
        ({"dtype": "float64"}, ValueError, "float32, bfloat16 or float16. Got float64"),
    ],
)
def test_wrong_options_are_refused(model, options, error, message):
    with pytest.raises(error, match=message):
        Encoder(model, **options)


@pytest.mark.parametrize("placement", ["jit", "pmap"])
def test_a_mesh_without_parallel_mesh_is_refused(model, placement):
    with pytest.raises(ValueError, match=f"parallel=\"mesh\". Got parallel='{placement}'"):
        Encoder(model, parallel=placement, mesh=callers_mesh())


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 3, 32, 32), np.uint8, r"\(batch, 32, 32, 3\). Got \(2, 3, 32, 32\).*NCHW"),
        ((2, 48, 48, 3), np.uint8, r"Got \(2, 48, 48, 3\)"),
        ((0, 48, 48, 3), np.uint8, r"Got \(0, 48, 48, 3\)"),
        ((32, 32, 3), np.uint8, r"Got \(32, 32, 3\).*images\[None\]"),
        ((2, 32, 32, 3), np.int32, "uint8 pixels or normalised floats. Got int32"),
    ],
)
def test_wrong_images_are_refused(one_device, shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        one_device.images(np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((12, 77), np.int32), "end token, 49407. Rows without: 0, 1, .*, 9 and 2 more"),
        (np.array([[49406, END], [49406, 320]]), "Rows without: 1"),
        (np.full((2, 77), 49408), "must lie in 0..49407. Got 49408..49408"),
        (jnp.full((2, 77), -1), "must lie in 0..49407. Got -1..-1"),
        (np.zeros((2, 78), np.int32), r"length 1 to 77. Got \(2, 78\)"),
        (np.zeros(77, np.int32), r"Got \(77,\)"),
        (np.zeros((2, 77), np.float32), "must be integers. Got float32"),
    ],
)
def test_wrong_tokens_are_refused(one_device, tokens, message):
    with pytest.raises(ValueError, match=message):
        one_device.texts(tokens)


def test_wrong_texts_are_refused(one_device):
    with pytest.raises(ValueError, match="102 tokens .* more than the context length of 77"):
        one_device.texts(["a dog", "dog " * 100])
    with pytest.raises(TypeError, match=r"texts\[1\] must be a string, got int 7"):
        one_device.texts(["a dog", 7])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_images_with_nan_are_named_and_disturb_no_other(encoder, images, bad):
    pixels = np.array(to_float(images[:10]))
    expected = encoder.images(pixels)
    pixels[[3, 8], 5, 7, 1] = bad
    with pytest.raises(ValueError, match="rows 3, 8 are not finite: their pixels are not finite"):
        encoder.images(pixels)
    good = np.delete(np.arange(10), [3, 8])
    assert np.array_equal(encoder.images(pixels[good]), expected[good])


def test_damaged_weights_are_named_as_the_reason(images):
    tree = random_parameters(SMALL_VIT)
    tree["visual"]["proj"] = np.full((64, 16), np.nan)
    encoder = Encoder(from_parameters(SMALL_VIT, tree), batch_size=BATCH_SIZE)
    with pytest.raises(ValueError, match="rows 0 are not finite: the weights are damaged"):
        encoder.images(images[:1])
