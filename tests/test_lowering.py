"""Programs traced on a machine without accelerators are right for them: lowered for TPU and CUDA.

Nothing runs here: `jax.export` lowers for platforms that aren't there. What is looked for is what
would fail or be slow on the day: float64, calls of a CPU's libraries, other shapes.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clip_jax import Encoder, adaptation, encoder
from clip_jax.backends import optimize
from clip_jax.catalog import CATALOG
from clip_jax.evaluate import logistic
from clip_jax.nn import CLIP
from clip_jax.search import exact
from clip_jax.train import (
    OptimizerConfig,
    StepConfig,
    contrastive_loss,
    init_state,
    make_step,
    sigmoid_loss,
)
from tests.models import SMALL_RESNET, SMALL_VIT, small

PLATFORMS = ("tpu", "cuda")
# What StableHLO calls by a name that every platform knows.
EVERYWHERE = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "mhlo.topk"}
# Eigenvalues, by each platform's own library.
EIGENVALUES = {"tpu": r"Eigh", "cuda": r"cusolver_syevd_ffi"}
OFFICIAL = [name for name, entry in CATALOG.items() if not entry.is_bundled]
DATA = ("data",)


def abstract(*dims: int, dtype=jnp.float32, sharding=None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)


def shapes_of(tree):
    return jax.tree.map(lambda x: abstract(*x.shape, dtype=x.dtype), tree)


def over_devices() -> Mesh:
    return Mesh(np.array(jax.devices()), DATA, axis_types=(AxisType.Auto,))


def exported(function, *args, platforms=PLATFORMS, library: str = ""):
    """`function` lowered for those platforms in one program, and looked through."""
    compiled = function if hasattr(function, "lower") else jax.jit(function)
    result = jax.export.export(compiled, platforms=platforms)(*args)
    module = result.mlir_module()
    assert "f64" not in module
    calls = set(re.findall(r"custom_call @([\w.$]+)", module)) - EVERYWHERE
    assert not [call for call in calls if not re.fullmatch(library, call)]
    return result


def test_the_nine_official_models_are_all_there():
    assert len(OFFICIAL) == 9


@pytest.mark.parametrize("name", OFFICIAL)
def test_both_towers_of_every_official_model_lower(name):
    config = CATALOG[name].config
    model = CLIP(config, dtype=jnp.bfloat16)
    n, context = config.vision.image_size, config.text.context_length

    def encode(model, images, tokens):
        return model.encode_image(images), model.encode_text(tokens)

    args = model, abstract(2, n, n, 3, dtype=jnp.uint8), abstract(3, context, dtype=jnp.int32)
    result = exported(encode, *args)
    assert result.platforms == PLATFORMS
    assert [x.shape for x in result.out_avals] == [(2, config.embed_dim), (3, config.embed_dim)]


@pytest.mark.parametrize("parallel", ["jit", "mesh"])
@pytest.mark.parametrize("config", [SMALL_VIT, SMALL_RESNET], ids=["vit", "resnet"])
def test_the_encoders_programs_lower(config, parallel, monkeypatch):
    def elsewhere(model, _, **options):
        optimize(model, "tpu", **options)

    monkeypatch.setattr(encoder, "optimize", elsewhere)
    embedder = Encoder(small(config), dtype="bfloat16", parallel=parallel, batch_size=8)
    n = config.vision.image_size
    split = NamedSharding(over_devices(), PartitionSpec(DATA)) if parallel == "mesh" else None
    for features, rows in (
        (CLIP.image_features, abstract(8, n, n, 3, dtype=jnp.uint8, sharding=split)),
        (adaptation.text_features, abstract(8, 77, dtype=jnp.int32, sharding=split)),
    ):
        program = functools.partial(embedder._embed, features)
        compiled = jax.jit(program, out_shardings=split)
        leaves = jax.tree.map(
            lambda x: abstract(*x.shape, dtype=x.dtype, sharding=x.sharding), embedder._leaves
        )
        result = exported(compiled, leaves, rows)
        assert [x.shape for x in result.out_avals] == [(8, config.embed_dim)]
        assert result.nr_devices == (8 if parallel == "mesh" else 1)


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize(
    ("config", "step"),
    [
        (SMALL_VIT, StepConfig(dtype="bfloat16", micro_batches=2, patch_dropout=0.5)),
        (SMALL_RESNET, StepConfig(loss="sigmoid", rematerialize=True)),
    ],
    ids=["vit", "resnet"],
)
def test_a_training_step_lowers(config, step, is_split):
    mesh = over_devices() if is_split else None
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=1, total_steps=10)
    take_step = make_step(config, optimizer, step, mesh=mesh, platform="tpu")
    state = shapes_of(init_state(small(config), optimizer, step.loss))
    n, split = config.vision.image_size, None
    if mesh is not None:
        split = NamedSharding(mesh, PartitionSpec(DATA))
        whole = NamedSharding(mesh, PartitionSpec())
        state = jax.tree.map(lambda x: abstract(*x.shape, dtype=x.dtype, sharding=whole), state)
    batch = {
        "images": abstract(16, n, n, 3, dtype=jnp.uint8, sharding=split),
        "tokens": abstract(16, 77, dtype=jnp.int32, sharding=split),
    }
    key = shapes_of(jax.random.key(0))
    result = exported(take_step, state, batch, key)
    after, metrics = jax.tree.unflatten(result.out_tree, result.out_avals)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert {x.shape for x in metrics.values()} == {()}


@pytest.mark.parametrize("is_split", [False, True])
def test_losses_and_their_gradients_lower(is_split):
    mesh = over_devices() if is_split else None
    split = NamedSharding(mesh, PartitionSpec(DATA)) if mesh else None
    whole = NamedSharding(mesh, PartitionSpec()) if mesh else None
    rows = abstract(16, 8, dtype=jnp.bfloat16, sharding=split)
    number = abstract(sharding=whole)
    for loss, numbers in ((contrastive_loss, [number]), (sigmoid_loss, [number, number])):
        gradient = jax.grad(functools.partial(loss, mesh=mesh), argnums=(0, 1, 2))
        result = exported(gradient, rows, rows, *numbers)
        assert [x.shape for x in result.out_avals] == [(16, 8), (16, 8), ()]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_probe_lowers(platform):
    numbers = abstract(40, 6), abstract(40, dtype=jnp.int32), abstract(40)
    prepared = exported(
        logistic._prepare, *numbers, platforms=(platform,), library=EIGENVALUES[platform]
    )
    rows = jax.tree.unflatten(prepared.out_tree, prepared.out_avals)
    start, number = abstract(3, 7), abstract()
    steps = abstract(dtype=jnp.int32)
    result = exported(logistic._minimize, rows, start, number, number, steps)
    assert jax.tree.unflatten(result.out_tree, result.out_avals).best.shape == (3, 7)


def test_a_block_of_search_lowers():
    search = functools.partial(exact._best, k=5)
    rows = abstract(64, 8, dtype=jnp.float16)
    count = abstract(dtype=jnp.int32)
    result = exported(search, rows, abstract(8), count)
    assert [x.shape for x in result.out_avals] == [(5,), (5,), ()]


def test_what_is_arranged_for_cpus_is_right_elsewhere_too():
    """A program traced with a CPU's layers calls nothing that only a CPU has."""
    config = SMALL_VIT
    model = small(config, dtype=jnp.bfloat16)
    optimize(model, "cpu")
    n = config.vision.image_size
    images = abstract(8, n, n, 3, dtype=jnp.uint8)
    encode = jax.jit(lambda model, images: model.encode_image(images))
    result = exported(encode, shapes_of(model), images)
    assert result.out_avals[0].shape == (8, config.embed_dim)
