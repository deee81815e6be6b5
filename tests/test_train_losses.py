"""The losses against their formulas, over any devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clip_jax.train import (
    contrastive_loss,
    contrastive_metrics,
    losses,
    sigmoid_loss,
    sigmoid_metrics,
)
from tests import reference
from tests.models import relative_error
from tests.reference import requires_reference
from tests.training_steps import (
    BIAS,
    SCALE,
    mesh_of,
    plain_contrastive,
    plain_logits,
    plain_sigmoid,
)

# Against float64: sums of float32 numbers in other orders; measured 1e-7 to 6e-7.
TOLERANCE = 2e-6


def embeddings(rows: int, width: int = 13) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    image = rng.normal(size=(rows, width))
    # Nearer to their own than to others, but not all of them nearest.
    text = image * 0.5 + rng.normal(size=(rows, width)) * rng.uniform(0.1, 2, (rows, 1))
    return image, text


LOSSES = {
    "softmax": (contrastive_loss, plain_contrastive, (SCALE,)),
    "sigmoid": (sigmoid_loss, plain_sigmoid, (SCALE, BIAS)),
}


def in_float64(function, *arguments):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*(jnp.float64(x) for x in arguments)))


MESHES = {
    "one device": None,
    "8 devices": mesh_of(8),
    "2 x 2 devices": Mesh(
        np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2
    ),
}


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
