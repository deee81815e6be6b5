"""The models: against PyTorch, against hand-made numbers, and as citizens of JAX."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from clip_jax.convert.pytorch import from_pytorch
from clip_jax.encoder import Encoder
from clip_jax.nn import (
    CLIP,
    flatten,
    from_parameters,
    normalize,
    parameters,
    set_parameters,
)
from clip_jax.nn.clip import _encode_image
from clip_jax.nn.layers import LayerNorm, activate
from clip_jax.nn.resnet import BatchNorm
from clip_jax.shapes import parameter_shapes
from tests import reference
from tests.models import (
    GOLDEN,
    SMALL_RESNET,
    SMALL_VIT,
    TINY_RESNET,
    TINY_VIT,
    fresh,
    official_shapes,
    random_images,
    random_parameters,
    random_tokens,
    reference_numbers,
    relative_error,
    small,
    to_float,
)
from tests.reference import requires_reference

PARAMETER_COUNTS = {  # the specification's table: all, vision
    "RN50": (102_007_137, 38_316_896),
    "RN101": (119_688_033, 56_259_936),
    "RN50x4": (178_300_601, 87_137_080),
    "RN50x16": (290_979_217, 167_328_912),
    "RN50x64": (623_258_305, 420_380_352),
    "ViT-B/32": (151_277_313, 87_849_216),
    "ViT-B/16": (149_620_737, 86_192_640),
    "ViT-L/14": (427_616_513, 303_966_208),
    "ViT-L/14@336px": (427_944_193, 304_293_888),
}

TOLERANCE = {
    # Both sides sum in float32 in different orders; measured 2e-7 to 2e-6.
    "features": 1e-5,
    # Cosines to 1e-6, at scale 100.
    "logits": 1e-3,
    # The same program fused differently.
    "same": 1e-6,
}


@pytest.fixture(scope="module", params=[TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def model(request):
    return from_parameters(request.param, random_parameters(request.param))


@pytest.fixture(scope="module")
def images(model):
    return random_images(3, model.config.vision.image_size)


@pytest.fixture(scope="module")
def tokens():
    return random_tokens(4)


def configuration(name):
    arrays = official_shapes()[name]
    blank = {k: np.broadcast_to(np.zeros((), d), s) for k, (s, d) in arrays.items()}
    return from_pytorch(blank)[0]


# --- the official models


@pytest.mark.parametrize("name", PARAMETER_COUNTS)
def test_every_model_has_its_exact_parameter_count(name):
    shapes = parameter_shapes(configuration(name))
    trainable = {
        path: math.prod(shape)
        for path, shape in shapes.items()
        if path.rsplit("/")[-1] not in ("mean", "var", "num_batches_tracked")
    }
    vision = sum(n for path, n in trainable.items() if path.startswith("visual/"))
    assert (sum(trainable.values()), vision) == PARAMETER_COUNTS[name]


@pytest.mark.parametrize("name", PARAMETER_COUNTS)
def test_every_model_embeds_both_sides_in_its_dimensions(name):
    config = configuration(name)
    abstract = CLIP(config)
    n = config.vision.image_size
    image = jax.eval_shape(
        lambda m, x: m.encode_image(x), abstract, jax.ShapeDtypeStruct((2, n, n, 3), jnp.uint8)
    )
    text = jax.eval_shape(
        lambda m, x: m.encode_text(x), abstract, jax.ShapeDtypeStruct((3, 77), jnp.int32)
    )
    assert (image.shape, text.shape) == ((2, config.embed_dim), (3, config.embed_dim))
    assert image.dtype == text.dtype == jnp.float32


@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def test_parameter_tree_is_the_published_one(config):
    """The tree is a public format: a refactoring must not move it."""
    kind = type(config.vision).__name__.removesuffix("Config").lower()
    lines = [f"{path} {list(shape)}" for path, shape in sorted(parameter_shapes(config).items())]
    assert lines == (GOLDEN / f"tree_{kind}.txt").read_text().splitlines()


# --- against PyTorch


@requires_reference
@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def test_features_and_logits_equal_the_reference(config, tokens):
    theirs = reference.randomize(reference.build(reference_numbers(config)), seed=1)
    arrays = {name: array.numpy() for name, array in theirs.state_dict().items()}
    ours = from_parameters(*from_pytorch(arrays))
    assert ours.config == config
    torch = reference.torch()
    x = to_float(random_images(3, config.vision.image_size))
    with torch.inference_mode():
        nchw = torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))
        ids = torch.from_numpy(tokens)
        image, text = theirs.encode_image(nchw).numpy(), theirs.encode_text(ids).numpy()
        logits = theirs(nchw, ids)[0].numpy()
    assert relative_error(ours.encode_image(x), image) < TOLERANCE["features"]
    assert relative_error(ours.encode_text(tokens), text) < TOLERANCE["features"]
    per_image, per_text = ours(x, tokens)
    assert np.abs(per_image - logits).max() < TOLERANCE["logits"]
    assert np.array_equal(per_text, per_image.T)


@requires_reference
def test_training_normalises_and_tracks_as_the_reference():
    config = TINY_RESNET
    theirs = reference.randomize(reference.build(reference_numbers(config)), seed=2)
    arrays = {name: array.numpy().copy() for name, array in theirs.state_dict().items()}
    ours = from_parameters(*from_pytorch(arrays))
    torch = reference.torch()
    x = to_float(random_images(5, config.vision.image_size))
    theirs.train(), ours.train()
    with torch.no_grad():
        expected = theirs.encode_image(torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))).numpy()
    assert relative_error(ours.encode_image(x), expected) < TOLERANCE["features"]
    after = from_pytorch({name: a.numpy() for name, a in theirs.state_dict().items()})[1]
    for path, array in flatten(parameters(ours)).items():
        expected = flatten(after)[path]
        assert relative_error(array, expected) < TOLERANCE["features"], path


# --- the layers


@pytest.mark.usefixtures("ranks_promoted")
def test_layer_norm_survives_a_large_mean():
    x = np.random.default_rng(0).normal(1000, 0.1, (3, 64))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    norm = LayerNorm(64, rngs=nnx.Rngs(0))
    # float32 holds 1000.1 to 6e-5; E[x^2] - E[x]^2 would be wrong by more than the variance.
    assert np.abs(norm(jnp.asarray(x, jnp.float32)) - expected).max() < 5e-3


@pytest.mark.usefixtures("ranks_promoted")
def test_layer_norm_computes_in_float32_whatever_comes_in():
    x = jnp.asarray(np.random.default_rng(0).normal(50, 1, (3, 64)), jnp.bfloat16)
    norm = LayerNorm(64, rngs=nnx.Rngs(0))
    assert norm(x).dtype == jnp.bfloat16
    assert jnp.array_equal(norm(x), norm(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_the_three_activations_differ():
    x = jnp.asarray([-2.0, -0.5, 0.0, 0.5, 2.0])
    erf = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    tanh = [
        0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
        for v in x.tolist()
    ]
    quick = [v / (1 + math.exp(-1.702 * v)) for v in x.tolist()]
    for name, expected in (("gelu", erf), ("gelu_tanh", tanh), ("quick_gelu", quick)):
        np.testing.assert_allclose(activate(x, name), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("ranks_promoted")
def test_batch_norm_uses_the_running_statistics_until_it_trains():
    norm = BatchNorm(3, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(5, 2, (2, 4, 4, 3)), jnp.float32)
    np.testing.assert_allclose(norm(x), x / np.sqrt(1 + 1e-5), rtol=1e-6)
    norm.train()
    trained = norm(x)
    assert np.abs(trained.mean((0, 1, 2))).max() < 1e-5
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)
    assert norm.num_batches_tracked[...] == 1


# --- what the text tower must and must not see


def test_exclamation_token_is_not_masked():
    model = small(SMALL_VIT)
    with_0, with_1 = (np.array([[49406, i, 320, 49407]]) for i in (0, 1))
    assert relative_error(model.encode_text(with_0), model.encode_text(with_1)) > 0.01


def test_columns_after_the_end_token_change_nothing():
    model = small(SMALL_VIT)
    tokens = random_tokens(5, length=12)
    padded = np.zeros((5, 77), np.int32)
    padded[:, :12] = tokens
    garbage = padded.copy()
    for row in garbage:
        row[row.argmax() + 1 :] = 1234
    expected = model.encode_text(padded)
    assert relative_error(model.encode_text(tokens), expected) < TOLERANCE["same"]
    assert relative_error(model.encode_text(garbage), expected) < TOLERANCE["same"]


def test_the_first_end_token_counts():
    model = small(SMALL_VIT)
    one, two = (np.array([[49406, 320, 49407, i, 0]]) for i in (0, 49407))
    assert relative_error(model.encode_text(two), model.encode_text(one)) < TOLERANCE["same"]


# --- pixels


def test_uint8_equals_normalised_floats(model, images):
    expected = model.encode_image(to_float(images))
    assert relative_error(model.encode_image(images), expected) < TOLERANCE["same"]


# --- a citizen of JAX


def test_runs_inside_jit_grad_and_vmap(model, images, tokens):
    expected = model.encode_image(images)
    jitted = jax.jit(lambda m, x: m.encode_image(x))(model, images)
    assert relative_error(jitted, expected) < TOLERANCE["same"]
    mapped = jax.vmap(lambda x: model.encode_image(x[None])[0])(jnp.asarray(images))
    assert relative_error(mapped, expected) < TOLERANCE["features"]
    text = jax.vmap(lambda x: model.encode_text(x[None])[0])(jnp.asarray(tokens))
    assert relative_error(text, model.encode_text(tokens)) < TOLERANCE["features"]
    x = to_float(images)

    def loss(x):
        return jnp.sum(model.encode_image(x)[:, 0])

    gradient = jax.grad(loss)(x)
    steepness = jnp.linalg.norm(gradient)
    step = 0.05 * gradient / steepness
    # A finite difference in float32, over the kinks of ReLU.
    assert relative_error((loss(x + step) - loss(x - step)) / 0.1, steepness) < 2e-2


def test_the_whole_model_is_differentiable_and_trains(model, images, tokens):
    x, t = to_float(images), tokens[:3]
    graphdef, params, rest = nnx.split(
        from_parameters(model.config, random_parameters(model.config)), nnx.Param, ...
    )

    def loss(params):
        logits, _ = nnx.merge(graphdef, params, rest)(x, t)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(3)).mean()

    optimizer = optax.adam(1e-5)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, values = optimizer.init(params), []
    for _ in range(5):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < values[0]


def test_grad_takes_the_model_itself(model, images):
    gradient = jax.grad(lambda m: jnp.sum(m.encode_image(images) ** 2))(model)
    assert flatten(parameters(gradient)).keys() == flatten(parameters(model)).keys()
    assert np.abs(gradient.visual.conv1.kernel[...]).max() > 0


def test_training_updates_statistics_inside_jit_too():
    model = small(SMALL_RESNET)
    model.train()
    images = random_images(4, 64)

    @jax.jit
    def step(model, images):
        features = model.encode_image(images)
        return features, nnx.state(model, nnx.BatchStat)

    before = np.array(model.visual.bn1.mean[...])
    _, statistics = step(model, images)
    assert np.array_equal(model.visual.bn1.mean[...], before)  # a pure function changes nothing
    nnx.update(model, statistics)
    after = np.array(model.visual.bn1.mean[...])
    assert np.abs(after - before).max() > 0
    other = small(SMALL_RESNET)
    other.train()
    other.encode_image(images)  # called on concrete arrays, the model itself changes
    np.testing.assert_allclose(other.visual.bn1.mean[...], after, rtol=1e-5, atol=1e-7)


def test_evaluation_leaves_the_statistics_alone():
    model = small(SMALL_RESNET)
    model.encode_image(random_images(2, 64))
    assert model.visual.bn1.num_batches_tracked[...] == 1000


def test_calls_of_one_shape_compile_once():
    model = small(SMALL_VIT)
    images = random_images(7, 32)  # a shape that no other test uses
    before = _encode_image._cache_size()
    model.encode_image(images)
    model.encode_image(images + 1)
    assert _encode_image._cache_size() == before + 1


def test_bfloat16_is_close_and_float32_stays_inside_norms(model, images, tokens):
    half = from_parameters(model.config, parameters(model), dtype=jnp.bfloat16)
    image, text = half.encode_image(images), half.encode_text(tokens)
    assert image.dtype == text.dtype == jnp.bfloat16
    # 8 significand bits: one rounding is 4e-3; measured 1e-2 after all layers.
    assert relative_error(image, model.encode_image(images)) < 3e-2
    assert relative_error(text, model.encode_text(tokens)) < 3e-2
    assert half(images, tokens)[0].dtype == jnp.float32
    assert half.visual.conv1.kernel[...].dtype == jnp.float32


def test_nothing_global_is_changed():
    assert jax.config.jax_default_matmul_precision is None
    assert not jax.config.jax_enable_x64


# --- initialisation as published


def test_fresh_parameters_have_the_published_spread():
    model = fresh(TINY_VIT)
    width, layers = 128, 3
    residual = width**-0.5 * (2 * layers) ** -0.5
    block = model.transformer.resblocks[1]
    for array, std in (
        (model.token_embedding.embedding, 0.02),
        (model.positional_embedding, 0.01),
        (model.text_projection, width**-0.5),
        (block.attn.in_proj.kernel, width**-0.5),
        (block.attn.out_proj.kernel, residual),
        (block.mlp.c_proj.kernel, residual),
        (block.mlp.c_fc.kernel, (2 * width) ** -0.5),
        (model.visual.class_embedding, 192**-0.5),
        (model.visual.positional_embedding, 192**-0.5),
        (model.visual.proj, 192**-0.5),
        # uniform within b has the spread b / sqrt(3)
        (model.visual.conv1.kernel, (3 * 16**2) ** -0.5 / 3**0.5),
        (model.visual.transformer.resblocks[0].mlp.c_fc.kernel, 192**-0.5 / 3**0.5),
        (model.visual.transformer.resblocks[0].attn.in_proj.kernel, (2 / (4 * 192)) ** 0.5),
        (model.visual.transformer.resblocks[0].attn.out_proj.kernel, 192**-0.5 / 3**0.5),
    ):
        assert abs(np.std(array[...]) / std - 1) < 0.1
    assert not block.attn.in_proj.bias[...].any()
    assert not block.attn.out_proj.bias[...].any()
    assert block.mlp.c_fc.bias[...].any()
    np.testing.assert_allclose(model.logit_scale[...], math.log(1 / 0.07), rtol=1e-6)


def test_fresh_bottlenecks_start_as_the_identity():
    model = fresh(SMALL_RESNET)
    assert not model.visual.layer3[0].bn3.scale[...].any()
    assert model.visual.layer3[0].bn2.scale[...].all()
    features = SMALL_RESNET.vision.num_features
    pool = model.visual.attnpool
    assert abs(np.std(pool.c_proj.kernel[...]) / features**-0.5 - 1) < 0.1


# --- bad input


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 3, 32, 32), np.float32, r"\(batch, 32, 32, 3\). Got \(2, 3, 32, 32\).*NCHW"),
        ((2, 33, 32, 3), np.float32, r"Got \(2, 33, 32, 3\)"),
        ((32, 32, 3), np.float32, r"Got \(32, 32, 3\).*images\[None\]"),
        ((2, 32, 32, 1), np.uint8, r"Got \(2, 32, 32, 1\)"),
        ((2, 32, 32, 3), np.int32, "uint8 pixels or normalised floats. Got int32"),
        ((2, 32, 32, 3), bool, "Got bool"),
    ],
)
def test_wrong_images_are_refused(shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        small(SMALL_VIT).encode_image(np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((2, 78), np.int32), r"length 1 to 77. Got \(2, 78\)"),
        (np.zeros((2, 0), np.int32), r"Got \(2, 0\)"),
        (np.zeros(77, np.int32), r"Got \(77,\)"),
        (np.zeros((2, 77), np.float32), "must be integers. Got float32"),
        (np.full((2, 77), 49408), r"must lie in 0..49407. Got 49408..49408"),
        (np.full((2, 77), -1), "Got -1..-1"),
    ],
)
def test_wrong_tokens_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        small(SMALL_VIT).encode_text(tokens)


@pytest.mark.parametrize("config", [SMALL_VIT, SMALL_RESNET], ids=["vit", "resnet"])
def test_no_rows_give_no_embeddings(config):
    model, size = small(config), config.vision.image_size
    none, two = random_images(0, size), random_images(2, size)
    assert model.encode_image(none).shape == model.encode_image([]).shape == (0, 16)
    assert model.encode_text(random_tokens(0)).shape == (0, 16)
    assert [logits.shape for logits in model(two, random_tokens(0))] == [(2, 0), (0, 2)]


def test_arrays_are_taken_as_people_have_them():
    model, tokens = small(SMALL_VIT), random_tokens(3, 12)
    pixels = random_images(3, 32)
    images = (pixels / 255).astype(np.float32)
    expected = [np.asarray(x) for x in (model.encode_image(images), model.encode_text(tokens))]
    for given in (list(images), images.astype(">f4")):
        assert np.array_equal(model.encode_image(given), expected[0])
        assert np.array_equal(Encoder(model).images(given), Encoder(model).images(images))
    for given in (tokens.tolist(), tokens.astype(">i4"), tokens.astype(np.uint64)):
        assert np.array_equal(model.encode_text(given), expected[1])
    with pytest.raises(ValueError, match="images must have one shape. Got a list of several"):
        model.encode_image([images[0], images[1, :8]])
    for dtype in (np.int64, np.longdouble):
        with pytest.raises(ValueError, match=f"Got {np.dtype(dtype)}"):
            model.encode_image(pixels.astype(dtype))


def test_ranks_may_be_promoted_whatever_the_caller_has_set():
    model, images, tokens = small(SMALL_VIT), random_images(1, 32), random_tokens(1, 9)
    with jax.numpy_rank_promotion("raise"):
        model(images, tokens)
        Encoder(model).texts(tokens)
        jax.grad(lambda model: model.encode_image(images).sum())(model)


def test_wrong_parameters_are_all_listed_and_change_nothing():
    model = small(SMALL_VIT)
    tree = random_parameters(SMALL_VIT)
    del tree["logit_scale"]
    tree["text_projection"] = np.zeros((3, 5))
    tree["more"] = np.zeros(())
    before = np.array(model.visual.proj[...])
    with pytest.raises(ValueError) as caught:
        set_parameters(model, tree)
    for line in (
        "- logit_scale: missing",
        "+ more: unexpected",
        "! text_projection: expected shape (64, 16). Got (3, 5)",
    ):
        assert line in str(caught.value)
    assert np.array_equal(model.visual.proj[...], before)


def test_normalize_gives_unit_rows_in_float32():
    x = jnp.asarray([[3.0, 4.0], [0.5, 0.0]], jnp.bfloat16)
    assert normalize(x).dtype == jnp.float32
    np.testing.assert_allclose(normalize(x), [[0.6, 0.8], [1, 0]], rtol=1e-6)
