"""Training: the losses against their formulas, the step against what it stands for."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import clip_jax
from clip_jax.nn import CLIP
from clip_jax.nn.tree import variables
from clip_jax.shapes import parameter_shapes
from clip_jax.train import (
    OptimizerConfig,
    StepConfig,
    compiler_options,
    contrastive_gradients,
    contrastive_loss,
    contrastive_metrics,
    group_by_length,
    init_state,
    losses,
    make_optimizer,
    make_schedule,
    make_step,
    model_of,
    sigmoid_loss,
    sigmoid_metrics,
)
from clip_jax.train.optimizer import factors, limit_norm
from clip_jax.train.step import _draw
from tests import processes, quickly, reference
from tests.models import (
    SMALL_RESNET,
    SMALL_VIT,
    TINY_VIT,
    fresh,
    random_images,
    random_tokens,
    relative_error,
    small,
)
from tests.reference import requires_reference

# Against float64: sums of float32 numbers in other orders; measured 1e-7 to 6e-7.
TOLERANCE = 2e-6
SCALE, BIAS = 1.7, -2.3


def embeddings(rows: int, width: int = 13) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    image = rng.normal(size=(rows, width))
    # Nearer to their own than to others, but not all of them nearest.
    text = image * 0.5 + rng.normal(size=(rows, width)) * rng.uniform(0.1, 2, (rows, 1))
    return image, text


def plain_logits(xp, image, text, scale, bias):
    image = image / xp.sqrt((image * image).sum(1, keepdims=True))
    text = text / xp.sqrt((text * text).sum(1, keepdims=True))
    return xp.exp(scale) * image @ text.T + bias


def plain_contrastive(image, text, scale):
    logits = plain_logits(jnp, image, text, scale, 0.0)
    own = jnp.diagonal(logits)
    per_image = jax.nn.logsumexp(logits, axis=1) - own
    per_text = jax.nn.logsumexp(logits, axis=0) - own
    return (per_image.mean() + per_text.mean()) / 2


def plain_sigmoid(image, text, scale, bias):
    logits = plain_logits(jnp, image, text, scale, bias)
    signs = 2 * jnp.eye(len(logits)) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / len(logits)


LOSSES = {
    "softmax": (contrastive_loss, plain_contrastive, (SCALE,)),
    "sigmoid": (sigmoid_loss, plain_sigmoid, (SCALE, BIAS)),
}


def in_float64(function, *arguments):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*(jnp.float64(x) for x in arguments)))


def mesh_of(count: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:count]), "data", axis_types=(AxisType.Auto,))


MESHES = {
    "one device": None,
    "8 devices": mesh_of(8),
    "2 x 2 devices": Mesh(
        np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2
    ),
}


# --- losses


@pytest.mark.parametrize("columns", [1024, 3], ids=["one block", "blocks"])
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_the_formula_in_float64(name, mesh, columns, monkeypatch):
    monkeypatch.setattr(losses, "COLUMNS", columns)
    ours, plain, scalars = LOSSES[name]
    arguments = (*embeddings(40), *scalars)
    everything = tuple(range(len(arguments)))
    expected = in_float64(jax.value_and_grad(plain, everything), *arguments)
    function = jax.jit(jax.value_and_grad(functools.partial(ours, mesh=mesh), everything))
    value, gradients = function(*(jnp.float32(x) for x in arguments))
    assert abs(value - expected[0]) < TOLERANCE * abs(expected[0])
    for given, wanted in zip(gradients, expected[1], strict=True):
        assert relative_error(given, wanted) < TOLERANCE


@requires_reference
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_pytorchs(name):
    torch = reference.torch()
    ours, _, scalars = LOSSES[name]
    arguments = (*embeddings(11), *scalars)
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in arguments]
    image, text, scale, *bias = tensors
    functional = torch.nn.functional
    logits = scale.exp() * functional.normalize(image) @ functional.normalize(text).T
    if name == "softmax":
        own = torch.arange(11)
        loss = functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)
        loss = loss / 2
    else:
        signs = 2 * torch.eye(11, dtype=torch.float64) - 1
        loss = -functional.logsigmoid(signs * (logits + bias[0])).sum() / 11
    loss.backward()
    value, gradients = jax.value_and_grad(ours, tuple(range(len(arguments))))(
        *(jnp.float32(x) for x in arguments)
    )
    assert abs(value - loss.item()) < TOLERANCE * abs(loss.item())
    for given, tensor in zip(gradients, tensors, strict=True):
        assert relative_error(given, tensor.grad.numpy()) < TOLERANCE


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("bias", [None, BIAS], ids=["softmax", "sigmoid"])
def test_accuracy_is_the_share_whose_own_text_is_nearest(mesh, bias):
    image, text = embeddings(16)
    logits = plain_logits(np, image, text, SCALE, 0.0)
    expected = (logits.argmax(1) == np.arange(16)).mean()
    assert 0 < expected < 1
    arguments = [jnp.float32(x) for x in (image, text, SCALE)]
    if bias is None:
        given = contrastive_metrics(*arguments, mesh=mesh)[1]
    else:
        given = sigmoid_metrics(*arguments, jnp.float32(bias), mesh=mesh)[1]
    assert given == pytest.approx(expected)


def test_no_device_holds_all_similarities():
    rows, width, mesh = 4096, 8, MESHES["8 devices"]
    spec = jax.ShapeDtypeStruct(
        (rows, width), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data"))
    )
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    function = jax.jit(jax.grad(functools.partial(contrastive_loss, mesh=mesh), (0, 1)))
    analysis = function.lower(spec, spec, scale).compile().memory_analysis()
    # One block of 512 x 512 is 1 MiB, of which a few are alive at a time; all would be 64 MiB.
    assert analysis.temp_size_in_bytes < 16 * 2**20


def test_bfloat16_embeddings_give_a_float32_loss():
    image, text = (jnp.bfloat16(x) for x in embeddings(6))
    value = contrastive_loss(image, text, jnp.float32(SCALE))
    assert value.dtype == jnp.float32
    expected = in_float64(plain_contrastive, *(np.float64(x) for x in (image, text)), SCALE)
    assert abs(value - expected) < TOLERANCE * abs(expected)


def test_large_scales_stay_finite():
    image, text = (jnp.float32(x) for x in embeddings(6))
    value, gradients = jax.value_and_grad(contrastive_loss, (0, 1))(image, text, jnp.float32(9.0))
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 4), (2, 4)), r"\(3, 4\) and \(2, 4\)"),
        (((3, 4), (3, 5)), r"\(3, 4\) and \(3, 5\)"),
        (((4,), (4,)), r"\(4,\) and \(4,\)"),
        (((0, 4), (0, 4)), r"\(0, 4\)"),
    ],
)
def test_embeddings_that_are_no_pairs_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        contrastive_loss(*map(jnp.zeros, shapes), jnp.float32(1))


def test_rows_that_the_devices_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of the 8 devices of the mesh. Got 12"):
        contrastive_loss(jnp.ones((12, 3)), jnp.ones((12, 3)), jnp.float32(1), mesh=mesh_of(8))


# --- the optimiser


def test_learning_rate_rises_and_falls():
    config = OptimizerConfig(
        learning_rate=2.0, warmup_steps=10, total_steps=110, final_learning_rate=0.5
    )
    rate = make_schedule(config)
    assert [float(rate(step)) for step in (0, 5, 10)] == [0, 1, 2]
    assert float(rate(60)) == pytest.approx(0.5 + 1.5 / 2)
    assert float(rate(110)) == float(rate(500)) == pytest.approx(0.5)


def test_a_warm_up_may_be_all_there_is():
    rate = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=4, total_steps=4))
    assert [float(rate(step)) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]


def test_updates_are_adamws_with_decay_on_matrices_only():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, max_gradient_norm=None)
    parameters = {path: jnp.ones(shape) for path, shape in parameter_shapes(SMALL_VIT).items()}
    gradients = {path: jnp.full_like(x, 0.5) for path, x in parameters.items()}
    transformation = make_optimizer(config, SMALL_VIT)
    updates, _ = transformation.update(gradients, transformation.init(parameters), parameters)
    for path, update in updates.items():
        # The first step of Adam is the sign of the gradient, whatever its size.
        decay = 0.2 if parameters[path].ndim >= 2 else 0.0
        np.testing.assert_allclose(update, -0.1 * (1 + decay), rtol=1e-5)


def test_muon_makes_the_blocks_matrices_orthogonal_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    parameters = {path: jnp.ones(shape) for path, shape in parameter_shapes(SMALL_VIT).items()}
    gradients = {path: jnp.asarray(rng.normal(size=x.shape)) for path, x in parameters.items()}
    matrices = {path for path, x in parameters.items() if "/resblocks/" in path and x.ndim == 2}
    assert {path.partition("/")[0] for path in matrices} == {"visual", "transformer"}
    vectors = {}
    for path in matrices:
        u, _, v = np.linalg.svd(np.asarray(gradients[path]), full_matrices=False)
        vectors[path] = u, v
        gradients[path] = jnp.asarray(u * np.linspace(5, 1, len(v)) @ v)
    found = {}
    for name in ("adamw", "muon"):
        config = OptimizerConfig(
            name=name,
            learning_rate=0.1,
            warmup_steps=0,
            weight_decay=0.5,
            max_gradient_norm=None,
        )
        transformation = make_optimizer(config, SMALL_VIT)
        found[name], _ = transformation.update(
            gradients, transformation.init(parameters), parameters
        )
    for path, update in found["muon"].items():
        if path not in matrices:
            assert np.array_equal(update, found["adamw"][path])
            continue
        step = np.asarray(update / -0.1 - 0.5) / (0.2 * max(update.shape) ** 0.5)
        u, v = vectors[path]
        turned = u.T @ step @ v.T
        # The gradient's own singular vectors, with values that five iterations of Newton and
        # Schulz bring to about 1, and no nearer.
        assert (0.6 < turned.diagonal()).all() and (turned.diagonal() < 1.3).all()
        # Sums of up to 256 float32 products, five times over
        np.testing.assert_allclose(turned, np.diag(turned.diagonal()), atol=1e-3)


def test_gradients_are_cut_to_a_norm():
    parameters = {"visual/proj": jnp.zeros((64, 16)), "logit_scale": jnp.zeros(())}
    gradients = {"visual/proj": jnp.full((64, 16), 3.0), "logit_scale": jnp.float32(4.0)}
    config = OptimizerConfig(max_gradient_norm=1e-3, eps=1.0, warmup_steps=0, learning_rate=1.0)
    transformation = make_optimizer(config, SMALL_VIT)
    updates, _ = transformation.update(gradients, transformation.init(parameters), parameters)
    # With an epsilon this large Adam's step is the gradient itself.
    assert float(optax.tree.norm(updates)) == pytest.approx(1e-3, rel=1e-3)


def test_rates_differ_by_path_and_the_first_that_fits_counts():
    config = OptimizerConfig(learning_rates={"^visual/conv1": 0.0, "^visual/": 0.1, "^ln_final": 2})
    found = factors(config, SMALL_VIT)
    assert found["visual/conv1/kernel"] == 0
    assert found["visual/proj"] == found["visual/transformer/resblocks/0/ln_1/scale"] == 0.1
    assert found["ln_final/bias"] == 2
    assert found["text_projection"] == found["logit_scale"] == 1
    assert not any("num_batches" in path for path in factors(OptimizerConfig(), SMALL_RESNET))


@pytest.mark.parametrize(
    ("config", "freeze", "trained"),
    [
        (
            TINY_VIT,
            {"freeze_image": 1, "freeze_text": "all"},
            r"visual/transformer/resblocks/3/|visual/ln_post/|visual/proj$|logit_scale$",
        ),
        (TINY_VIT, {"freeze_image": 0, "freeze_text": "all"}, r"visual/(ln_post/|proj$)|logit_s"),
        (
            SMALL_VIT,
            {"freeze_image": "all", "freeze_text": 1},
            r"transformer/resblocks/1/|ln_final/|text_projection$|logit_scale$",
        ),
        (
            SMALL_RESNET,
            {"freeze_image": 2, "freeze_text": "all"},
            r"visual/(layer3|layer4|attnpool)/|logit_scale$",
        ),
        (SMALL_VIT, {"freeze_image": "all"}, r"(?!visual/)"),
    ],
)
def test_towers_and_all_but_the_last_blocks_can_be_frozen(config, freeze, trained):
    found = factors(OptimizerConfig(**freeze), config)
    assert {path for path, factor in found.items() if factor} == {
        path for path in found if re.match(trained, path)
    }


def test_frozen_parameters_stay_to_the_bit_and_take_no_memory():
    config = OptimizerConfig(warmup_steps=0, freeze_image="all", freeze_text=1)
    state = init_state(small(SMALL_VIT), config)
    after, _ = quickly.jit(make_step(SMALL_VIT, config))(state, batch(8), jax.random.key(0))
    moved = {
        path
        for path, array in state.parameters.items()
        if not np.array_equal(array, after.parameters[path])
    }
    assert moved == {path for path, factor in factors(config, SMALL_VIT).items() if factor}
    sizes = sum(x.size for x in jax.tree.leaves(state.optimizer) if x.ndim)
    assert sizes == 2 * sum(state.parameters[path].size for path in moved if path != "logit_scale")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sgd"}, "'adamw' or 'muon'. Got 'sgd'"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"warmup_steps": 9, "total_steps": 8}, "warmup_steps=9"),
        ({"learning_rate": -1}, "learning_rate must be 0 or more. Got -1"),
        ({"b2": 1.0}, "b2 must be from 0 to 1, and not 1. Got 1.0"),
        ({"max_gradient_norm": 0}, "above 0. Got 0"),
        ({"freeze_image": "some"}, '"none", "all", or how many.* Got \'some\''),
        ({"freeze_text": -1}, "Got -1"),
        ({"learning_rates": {"(": 1}}, r"'\(' is no regular expression"),
        ({"learning_rates": {"visual": -2}}, "'visual' must be 0 or more. Got -2"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rates": {"vision/": 0.1}}, "'vision/' is found in no parameter's path"),
        ({"freeze_image": 3}, "freeze_image must be at most 2.* Got 3"),
        ({"learning_rates": {"": 0.0}}, "nothing is left to train"),
    ],
)
def test_hyperparameters_that_do_not_fit_the_model_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        factors(OptimizerConfig(**options), SMALL_VIT)


# --- the step

CONFIG = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, total_steps=100)
EXACT = StepConfig(precision="highest")


def batch(rows: int, size: int = 32, seed: int = 0) -> dict[str, jax.Array]:
    return {
        "images": jnp.asarray(random_images(rows, size, seed=seed)),
        "tokens": jnp.asarray(random_tokens(rows, 16, seed=seed)),
    }


def gradients_of(config, how, rows, **options):
    """What the first step's gradients are, by way of an optimiser that keeps them."""
    seen = {}

    def keep(updates, state, parameters=None):
        jax.debug.callback(lambda u: seen.update(jax.tree.map(np.asarray, u)), updates)
        return jax.tree.map(jnp.zeros_like, updates), state

    import clip_jax.train.step as step

    with pytest.MonkeyPatch.context() as patch:
        keeping = optax.GradientTransformation(lambda parameters: (), keep)
        patch.setattr(step, "make_optimizer", lambda *_: keeping)
        state = init_state(small(config), CONFIG)
        run = quickly.jit(make_step(config, CONFIG, how, **options))
        size = config.vision.image_size
        _, metrics = run(state, batch(rows, size), jax.random.key(0))
        jax.effects_barrier()
    return seen, metrics


def is_adam(node) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


def test_a_step_is_the_plain_one():
    """Loss, gradient and AdamW as one would write them down."""
    model, given = small(SMALL_VIT), batch(8)
    decay = optax.adamw(
        make_schedule(CONFIG),
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.2,
        mask=lambda p: jax.tree.map(lambda x: x.ndim >= 2, p),
    )
    plain = optax.chain(optax.clip_by_global_norm(1.0), decay)

    def loss(parameters):
        model = CLIP(SMALL_VIT)
        for path, variable in variables(model).items():
            variable.set_value(parameters[path])
        images = model.encode_image(given["images"])
        texts = model.encode_text(given["tokens"])
        return plain_contrastive(images, texts, parameters["logit_scale"])

    @quickly.jit
    def take_step(parameters, optimizer_state):
        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, optimizer_state = plain.update(gradients, optimizer_state, parameters)
        return value, gradients, optax.apply_updates(parameters, updates), optimizer_state

    parameters = {path: variable[...] for path, variable in variables(model).items()}
    state, optimizer_state = init_state(model, CONFIG), plain.init(parameters)
    run = quickly.jit(make_step(SMALL_VIT, CONFIG, EXACT))
    for i in range(3):
        value, gradients, parameters, optimizer_state = take_step(parameters, optimizer_state)
        state, metrics = run(state, given, jax.random.key(i))
        assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
        assert metrics["gradient_norm"] == pytest.approx(
            float(optax.tree.norm(gradients)), rel=1e-4
        )
    assert int(state.step) == 3
    for path, array in state.parameters.items():
        # Adam divides by the gradient's size, so where that is near 0 rounding shows.
        np.testing.assert_allclose(array, parameters[path], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("micro_batches", "mesh"), [(1, None), (2, mesh_of(4))], ids=["whole", "cut, 4 devices"]
)
def test_texts_in_groups_of_their_lengths_give_the_same_step(micro_batches, mesh):
    how = dataclasses.replace(EXACT, micro_batches=micro_batches)
    lengths = np.random.default_rng(0).permutation(32)
    tokens = clip_jax.tokenize([f"number {'very ' * (n // 2)}{n}" for n in lengths])
    whole = {"images": np.asarray(batch(32)["images"]), "tokens": tokens}
    multiple = micro_batches * (mesh.size if mesh else 1)
    grouped = group_by_length(whole, multiple=multiple)
    assert [x.shape for x in grouped["tokens"]] == [(24, 16), (8, 24)]
    step = quickly.jit(make_step(SMALL_VIT, CONFIG, how, mesh=mesh))
    (plain, measured), (short, measured_short) = (
        step(
            init_state(small(SMALL_VIT), CONFIG),
            jax.tree.map(jnp.asarray, given),
            jax.random.key(0),
        )
        for given in (whole, grouped)
    )
    for name in measured:
        assert measured_short[name] == pytest.approx(float(measured[name]), rel=1e-5), name
    # Adam's first moment after one step is the gradient, but for a factor.
    (moments,), (moments_short,) = (
        [part.mu for part in jax.tree.leaves(state.optimizer, is_leaf=is_adam) if is_adam(part)]
        for state in (plain, short)
    )
    for path, moment in moments.items():
        error = np.linalg.norm(moments_short[path] - moment)
        assert error <= 1e-5 * np.linalg.norm(moment), path


def test_texts_and_images_of_a_batch_are_as_many():
    given = batch(8)
    given["tokens"] = (given["tokens"][:4], given["tokens"][:2])
    with pytest.raises(ValueError, match=r"as many texts as images. Got \[4, 2\] and 8"):
        make_step(SMALL_VIT, CONFIG)(init_state(small(SMALL_VIT), CONFIG), given, jax.random.key(0))


@pytest.mark.parametrize("size", [0.0, 0.01, 1.0, 1e4])
def test_gradients_are_cut_to_a_norm_as_optax_does(size):
    gradients = {"a": size * jnp.arange(15.0).reshape(3, 5), "b": size * jnp.ones(7)}
    ours, theirs = limit_norm(2.5), optax.clip_by_global_norm(2.5)
    given, _ = ours.update(gradients, ours.init(gradients))
    expected, _ = theirs.update(gradients, theirs.init(gradients))
    for name in gradients:
        np.testing.assert_allclose(given[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize("change", [{}, {"micro_batches": 2}, {"rematerialize": True}])
def test_every_product_of_a_step_has_the_precision_asked_for(change):
    how = dataclasses.replace(EXACT, precision="highest", **change)
    state = init_state(small(SMALL_VIT), CONFIG)
    step = jax.jit(make_step(SMALL_VIT, CONFIG, how)).lower(state, batch(8), jax.random.key(0))
    products = re.findall(r"stablehlo\.dot_general.*", step.as_text())
    assert len(products) > 20
    assert [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line] == []


@pytest.mark.parametrize("micro_batches", [2, 4])
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_gradients_of_micro_batches_are_those_of_the_whole(loss, micro_batches):
    def embed(parameters, statistics, x):
        a, b = jnp.tanh(x["a"] @ parameters["w"]), jnp.sin(x["b"] @ parameters["v"])
        return (a, b), statistics

    def measure(images, texts, parameters):
        if loss == "softmax":
            return contrastive_metrics(images, texts, parameters["s"])
        return sigmoid_metrics(images, texts, parameters["s"], parameters["bias"])

    rng = np.random.default_rng(0)
    parameters = {
        "w": jnp.float32(rng.normal(size=(5, 7))),
        "v": jnp.float32(rng.normal(size=(3, 7))),
        "s": jnp.float32(SCALE),
        "bias": jnp.float32(BIAS),
    }
    x = {"a": jnp.float32(rng.normal(size=(8, 5))), "b": jnp.float32(rng.normal(size=(8, 3)))}
    results = []
    for count in (1, micro_batches):
        cut = jax.tree.map(lambda y, count=count: y.reshape(count, -1, *y.shape[1:]), x)
        results.append(contrastive_gradients(embed, measure, parameters, {}, cut))
    whole, cut = results
    assert float(whole[2][0]) == pytest.approx(float(cut[2][0]), rel=1e-6)
    for path in parameters.keys() - ({"bias"} if loss == "softmax" else set()):
        assert relative_error(cut[0][path], whole[0][path]) < 1e-5


@pytest.mark.parametrize(
    ("change", "mesh"),
    [
        pytest.param({"micro_batches": 4}, None, id="micro-batches"),
        pytest.param({"rematerialize": True}, None, id="rematerialised"),
        pytest.param({"micro_batches": 2, "rematerialize": True}, mesh_of(4), id="both, 4 devices"),
    ],
)
def test_memory_can_be_saved_without_changing_the_gradient(change, mesh):
    expected, wanted = gradients_of(SMALL_VIT, EXACT, 16)
    given, metrics = gradients_of(SMALL_VIT, dataclasses.replace(EXACT, **change), 16, mesh=mesh)
    assert given.keys() == expected.keys()
    for path in expected:
        assert relative_error(given[path], expected[path]) < 1e-5, path
    assert metrics["loss"] == pytest.approx(float(wanted["loss"]), rel=1e-6)


def test_patches_left_out_are_not_seen_and_the_others_are():
    model, images = small(SMALL_VIT), jnp.asarray(random_images(3, 32))  # 16 patches of 8
    kept = jnp.array([[0, 5, 15], [1, 2, 3], [4, 8, 12]])
    row, column = np.divmod(np.asarray(kept)[1], 4)
    changed = np.full((3, 32, 32, 3), 255, np.uint8)
    for i, j in zip(row, column, strict=True):
        part = np.s_[1, i * 8 : i * 8 + 8, j * 8 : j * 8 + 8]
        changed[part] = images[part]
    compute = quickly.jit(lambda images, kept: model.image_features(images, kept=kept))
    given, other = compute(images, kept), compute(jnp.asarray(changed), kept)
    assert np.array_equal(given[1], other[1])
    assert relative_error(given[0], other[0]) > 1e-2 and relative_error(given[2], other[2]) > 1e-2
    # All of them, in any order, are the picture.
    every = jnp.stack([jax.random.permutation(jax.random.key(i), 16) for i in range(3)])
    assert relative_error(compute(images, every), model.encode_image(images)) < 1e-6


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "mesh"),
    [({"micro_batches": 4}, None), ({"micro_batches": 2, "rematerialize": True}, mesh_of(4))],
    ids=["micro-batches", "both, 4 devices"],
)
def test_the_patches_left_out_are_the_same_however_a_step_is_cut(change, mesh):
    how = dataclasses.replace(EXACT, patch_dropout=0.5)
    expected, wanted = gradients_of(SMALL_VIT, how, 16)
    given, metrics = gradients_of(SMALL_VIT, dataclasses.replace(how, **change), 16, mesh=mesh)
    for path in expected:
        assert relative_error(given[path], expected[path]) < 1e-5, path
    assert metrics["loss"] == pytest.approx(float(wanted["loss"]), rel=1e-6)
    whole, _ = gradients_of(SMALL_VIT, EXACT, 16)
    assert relative_error(expected["visual/proj"], whole["visual/proj"]) > 1e-2


def test_patches_are_left_out_by_their_share_and_at_random():
    kept = [np.asarray(_draw(jax.random.key(i), 50, 16, 0.4)) for i in range(2)]
    assert kept[0].shape == (50, 10)  # of 9.6
    assert (np.diff(kept[0], axis=1) > 0).all() and kept[0].max() == 15
    assert len(np.unique(kept[0], axis=0)) > 40 and not np.array_equal(*kept)
    assert np.bincount(kept[0].ravel()).min() > 15
    assert _draw(jax.random.key(0), 2, 16, 0.99).shape == (2, 1)
    with pytest.raises(ValueError, match="Vision Transformers; this model has a ResNet"):
        make_step(SMALL_RESNET, CONFIG, StepConfig(patch_dropout=0.5))


def test_compiler_options_save_memory_on_cpus():
    state, given, key = init_state(small(SMALL_VIT), CONFIG), batch(256), jax.random.key(0)

    def megabytes(options: dict) -> float:
        step = jax.jit(make_step(SMALL_VIT, CONFIG, EXACT), compiler_options=options)
        return step.lower(state, given, key).compile().memory_analysis().temp_size_in_bytes / 1e6

    assert megabytes(compiler_options()) < 0.9 * megabytes({})


def test_averaging_the_losses_of_parts_would_be_another_gradient():
    whole, _ = gradients_of(SMALL_VIT, EXACT, 16)
    half, _ = gradients_of(SMALL_VIT, EXACT, 8)
    assert relative_error(half["visual/proj"], whole["visual/proj"]) > 0.1


def statistics_after(how: StepConfig, config: OptimizerConfig = CONFIG) -> dict[str, jax.Array]:
    """A ResNet's statistics after a step; the rest of the step is not compiled."""
    step = make_step(SMALL_RESNET, config, how)
    run = quickly.jit(lambda *arguments: step(*arguments)[0].statistics)
    return run(init_state(small(SMALL_RESNET), config), batch(8, 64), jax.random.key(0))


@pytest.mark.long
def test_frozen_blocks_of_a_resnet_keep_their_statistics():
    before = init_state(small(SMALL_RESNET), CONFIG).statistics
    after = statistics_after(EXACT, dataclasses.replace(CONFIG, freeze_image=1))
    last = f"visual/layer4/{SMALL_RESNET.vision.stage_depths[3] - 1}/"
    for path, array in before.items():
        assert np.array_equal(after[path], array) != path.startswith(last), path


@pytest.mark.long
def test_rematerialised_resnets_note_the_same_statistics():
    before = init_state(small(SMALL_RESNET), CONFIG).statistics
    plain = statistics_after(EXACT)
    given = statistics_after(dataclasses.replace(EXACT, rematerialize=True))
    assert given.keys() == plain.keys() == before.keys()
    for path, array in plain.items():
        assert relative_error(given[path], array) < 1e-6
        assert not np.array_equal(array, before[path]), path


@pytest.mark.long
def test_statistics_are_updated_as_the_model_does_it():
    model = small(SMALL_RESNET)
    model.train()
    model.encode_image(batch(8, 64)["images"])
    expected, statistics = variables(model), statistics_after(EXACT)
    assert statistics
    for path, array in statistics.items():
        assert relative_error(array, expected[path][...]) < 1e-5


@pytest.mark.long
def test_micro_batches_update_the_statistics_one_after_the_other():
    model, images = small(SMALL_RESNET), batch(8, 64)["images"]
    model.train()
    for half in (images[:4], images[4:]):
        model.encode_image(half)
    expected = variables(model)
    for path, array in statistics_after(dataclasses.replace(EXACT, micro_batches=2)).items():
        assert relative_error(array, expected[path][...]) < 1e-5


@pytest.mark.long
def test_bfloat16_computes_with_float32_parameters():
    exact, _ = gradients_of(SMALL_VIT, EXACT, 8)
    half, _ = gradients_of(SMALL_VIT, StepConfig(dtype="bfloat16"), 8)
    assert {array.dtype.name for array in half.values()} == {"float32"}
    assert 1e-4 < relative_error(half["visual/proj"], exact["visual/proj"]) < 0.1


def test_logit_scale_is_kept_at_most_100():
    model = small(SMALL_VIT)
    model.logit_scale.set_value(jnp.float32(math.log(100)))
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, weight_decay=0.0)
    config = dataclasses.replace(config, learning_rates={"^(?!logit_scale)": 0.0})
    state, run = init_state(model, config), quickly.jit(make_step(SMALL_VIT, config))
    scales = []
    for i in range(4):
        state, metrics = run(state, batch(8, seed=i), jax.random.key(i))
        scales.append(float(metrics["logit_scale"]))
    assert max(scales) <= 100.001


def test_the_sigmoid_loss_trains_a_bias_that_the_model_does_not_have():
    how = dataclasses.replace(EXACT, loss="sigmoid")
    state = init_state(small(SMALL_VIT), CONFIG, loss="sigmoid")
    assert state.parameters["logit_bias"] == -10
    after, metrics = quickly.jit(make_step(SMALL_VIT, CONFIG, how))(
        state, batch(8), jax.random.key(0)
    )
    assert after.parameters["logit_bias"] != -10
    assert np.isfinite(metrics["loss"])
    model = model_of(after, SMALL_VIT)
    assert model.encode_image(batch(2)["images"]).shape == (2, 16)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SMALL_VIT, id="vit"),
        pytest.param(SMALL_RESNET, id="resnet", marks=pytest.mark.long),
    ],
)
def test_training_learns_pairs_and_gives_a_model(config):
    size = config.vision.image_size
    optimizer_config = OptimizerConfig(learning_rate=1e-3, warmup_steps=4, total_steps=40)
    state = init_state(fresh(config), optimizer_config)
    run, given = quickly.jit(make_step(config, optimizer_config), donate_argnums=0), batch(16, size)
    losses_ = []
    for i in range(40):
        state, metrics = run(state, given, jax.random.key(i))
        losses_.append(float(metrics["loss"]))
    assert losses_[0] > 2 and losses_[-1] < 0.5
    assert metrics["accuracy"] > 0.9
    model = model_of(state, config)
    if config is SMALL_VIT:  # a ResNet's running statistics need more steps than these
        logits, _ = model(given["images"], given["tokens"])
        assert (np.argmax(logits, 1) == np.arange(16)).mean() > 0.9


@pytest.mark.long
def test_augmentation_gets_the_key_and_the_pixels():
    def augment(key, images):
        assert images.dtype == jnp.uint8
        return jnp.where(jax.random.bernoulli(key), images, 255 - images)

    run = quickly.jit(make_step(SMALL_VIT, CONFIG, EXACT, augment=augment))
    state = init_state(small(SMALL_VIT), CONFIG)
    found = {float(run(state, batch(8), jax.random.key(i))[1]["loss"]) for i in range(8)}
    assert len(found) == 2
    plain = quickly.jit(make_step(SMALL_VIT, CONFIG, EXACT))
    assert any(
        loss == pytest.approx(float(plain(state, batch(8), jax.random.key(0))[1]["loss"]), rel=1e-6)
        for loss in found
    )


def test_a_step_is_pure():
    state, run = init_state(small(SMALL_VIT), CONFIG), quickly.jit(make_step(SMALL_VIT, CONFIG))
    before = jax.tree.map(np.array, state)
    first = run(state, batch(8), jax.random.key(0))
    again = run(state, batch(8), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state))


@pytest.mark.parametrize("count", [1, 3])
def test_rows_that_can_not_be_cut_are_refused(count):
    how = dataclasses.replace(EXACT, micro_batches=count)
    run = make_step(SMALL_VIT, CONFIG, how, mesh=mesh_of(4))
    with pytest.raises(ValueError, match=f"multiple of {count} micro-batches times 4 devices"):
        run(init_state(small(SMALL_VIT), CONFIG), batch(10), jax.random.key(0))


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "triplet"},
        {"micro_batches": 0},
        {"dtype": "int8"},
        {"patch_dropout": 1.0},
        {"patch_dropout": -0.1},
    ],
)
def test_steps_that_can_not_be_meant_are_refused(options):
    with pytest.raises(ValueError, match=str(*options.values())):
        StepConfig(**options)


# --- several devices, several processes


@pytest.mark.long
def test_two_processes_of_two_devices_train_like_one_of_four(tmp_path):
    expected = processes.train(mesh_of(4), 0, 1)
    for given in processes.run_two(tmp_path, "train"):
        assert given.keys() == expected.keys()
        for name, array in expected.items():
            # Sums over processes are added in another order, and Adam divides by what is near 0;
            # measured 4e-7 after three steps of 1e-3.
            np.testing.assert_allclose(given[name], array, rtol=1e-5, atol=4e-6, err_msg=name)
