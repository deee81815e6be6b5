"""What is public works under each of JAX's own modes: 64 bits, strict dtypes, no jit, no NaN.

That an array meets one of another rank only on purpose, all tests are run under; see test_ranks.
"""

import contextlib
import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import clip_jax
from clip_jax import Encoder, train
from clip_jax.evaluate import LinearProbe, ZeroShotClassifier, recall_at_k
from tests import encoders, quickly
from tests.models import SMALL_RESNET, SMALL_VIT, random_images, relative_error, small
from tests.training_steps import batch

VIT = dataclasses.replace(
    SMALL_VIT,
    vision=dataclasses.replace(SMALL_VIT.vision, num_layers=1),
    text=dataclasses.replace(SMALL_VIT.text, num_layers=1),
)
MODES = {
    "x64": lambda: jax.enable_x64(True),
    "strict": lambda: jax.numpy_dtype_promotion("strict"),
    "disable_jit": jax.disable_jit,
    "debug_nans": lambda: jax.debug_nans(True),
}
PIXELS = random_images(3, 32)
TOKENS = clip_jax.tokenize(["a cat", "a dog", "a bird on the moon"])
ROWS = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)


def encoded(placement: str):
    """Embeddings by a new encoder: more rows than a batch, texts of several lengths."""

    def run():
        encoder = Encoder(small(VIT), batch_size=8, parallel=placement, whole_batches=True)
        return encoder.images(random_images(9, 32)), encoder.texts(["a", "b", "the c of " * 4])

    return run


def gradients():
    def loss(model):
        images, _ = model(PIXELS, TOKENS)
        return images.sum()

    return jax.tree.leaves(jax.grad(loss)(small(VIT)))


def losses():
    image, text = jnp.asarray(ROWS[:4]), ROWS[4:8]
    given = [train.contrastive_loss(image, text, 1.5), train.sigmoid_loss(image, text, 1.5, -2.0)]
    half = image.astype(jnp.bfloat16)
    given.append(train.contrastive_loss(half, text, jnp.float32(1.5)))
    given.append(jax.grad(lambda x: train.contrastive_loss(x, text, 1.5))(image))
    return given


def step():
    config = train.OptimizerConfig(learning_rate=1e-3, warmup_steps=0, total_steps=9)
    take = quickly.jit(train.make_step(VIT, config))
    state = train.init_state(small(VIT), config)
    _, metrics = take(state, batch(4), jax.random.key(0))
    return [metrics["loss"]]


def classified():
    classifier = ZeroShotClassifier(small(VIT), ["cat", "dog"], batch_size=4)
    return classifier.probabilities(PIXELS), classifier.predict(PIXELS)


def probed():
    probe = LinearProbe(max_iter=20).fit(ROWS, np.arange(12) % 3)
    binary = LinearProbe(max_iter=20).fit(ROWS, np.arange(12) % 2)
    return probe.predict_proba(ROWS), binary.predict(ROWS)


def recalled():
    found = recall_at_k(ROWS, ROWS, ks=(1, 2))
    return [found["image_to_text"][1], found["text_to_image"][2]]


def outputs():
    model = small(VIT)
    text = model.text_outputs(TOKENS, hidden_states=True, attentions=True)
    image = model.image_outputs(PIXELS, hidden_states=True)
    return text.text_embeds, image.image_embeds


FUNCTIONS = {
    "a Vision Transformer": lambda: small(VIT)(PIXELS, TOKENS),
    "a ResNet": lambda: [small(SMALL_RESNET).encode_image(random_images(2, 64))],
    # Not logits, which magnify what features differ by.
    "half precision": lambda: [small(VIT, dtype=jnp.bfloat16).encode_image(PIXELS)],
    "floats of 64 bits": lambda: [small(VIT).encode_image(PIXELS / 255.0)],
    "ids of 64 bits": lambda: [small(VIT).encode_text(TOKENS.astype(np.int64))],
    "hidden states": outputs,
    "gradients": gradients,
    "an encoder": encoded("jit"),
    "an encoder by pmap": encoded("pmap"),
    "an encoder over a mesh": encoded("mesh"),
    "losses": losses,
    "a step of training": step,
    "a classifier": classified,
    "a probe": probed,
    "recall": recalled,
}


@pytest.fixture(scope="module")
def expected():
    """What each function gives without a mode, computed once."""
    found: dict[str, list[np.ndarray]] = {}

    def of(name: str) -> list[np.ndarray]:
        if name not in found:
            found[name] = [np.asarray(x, np.float64) for x in FUNCTIONS[name]()]
        return found[name]

    return of


# Step by step these take long.
SLOW_WITHOUT_JIT = (
    *("an encoder by pmap", "an encoder over a mesh", "a step of training", "a probe"),
    *("gradients", "a classifier"),
)
CASES = [
    pytest.param(mode, name, marks=[pytest.mark.slow] * is_slow)
    for mode in MODES
    for name in FUNCTIONS
    for is_slow in [mode == "disable_jit" and name in SLOW_WITHOUT_JIT]
]


@pytest.mark.parametrize(("mode", "name"), CASES)
def test_it_gives_the_same_in_every_mode(mode, name, expected):
    plain = expected(name)
    with MODES[mode]():
        given = FUNCTIONS[name]()
    # Step by step, half precision rounds each sum where a program keeps more digits.
    tolerance = 2e-2 if name in ("half precision", "losses") else 1e-4
    for one, other in zip(given, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


def test_a_program_from_before_is_not_used_where_jit_is_off(images, embedded):
    encoder = encoders.shared_encoder()
    encoder.images(images)
    count = encoder.num_compilations
    with jax.disable_jit():
        given = encoder.images(images[:3])
    assert relative_error(given, embedded[:3]) < 1e-4
    assert encoder.num_compilations == count


# ---- threads ------------------------------------------------------------------------------------


def test_threads_share_an_encoder(images, embedded):
    encoder = Encoder(small(SMALL_VIT), batch_size=8)
    results: dict[int, np.ndarray] = {}
    barrier = threading.Barrier(4)

    def run(number: int) -> None:
        barrier.wait()
        results[number] = encoder.images(images)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(relative_error(results[i], embedded) < 1e-6 for i in range(4))
    assert encoder.num_compilations == 1


# ---- export -------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [VIT, SMALL_RESNET], ids=["vit", "resnet"])
def test_models_are_exported_for_any_number_of_rows(config):
    from jax import export

    model, size = small(config), config.vision.image_size
    (rows,) = export.symbolic_shape("rows")
    encoded = [
        (lambda x: model.encode_image(x), jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8)),
        (lambda x: model.encode_text(x), jax.ShapeDtypeStruct((rows, 77), np.int32)),
    ]
    given = [random_images(3, size), TOKENS]
    for (function, shape), x in zip(encoded, given, strict=True):
        exported = export.export(jax.jit(function))(shape)
        assert relative_error(exported.call(x), function(x)) < 1e-5


# ---- meshes with Explicit axes ------------------------------------------------------------------


@pytest.fixture
def explicit() -> NamedSharding:
    axes = (AxisType.Explicit,)
    return NamedSharding(Mesh(np.array(jax.devices()[:2]), "data", axis_types=axes),
                         PartitionSpec("data"))  # fmt: skip


@pytest.mark.parametrize("is_set", [False, True])
def test_rows_over_explicit_axes_are_refused_with_the_way_out(explicit, is_set):
    model = small(VIT)
    pixels, tokens = (jax.device_put(x[:2], explicit) for x in (PIXELS, TOKENS))
    with jax.set_mesh(explicit.mesh) if is_set else contextlib.nullcontext():
        for call in (
            lambda: model.encode_image(pixels),
            lambda: model.encode_text(tokens),
            lambda: model(pixels, tokens),
            lambda: model.text_outputs(tokens),
            lambda: jax.jit(lambda x: model.encode_image(x))(pixels),
        ):
            with pytest.raises(ValueError, match=r"Explicit, P\('data'.*AxisType.Auto.*auto_axes"):
                call()


def test_the_way_out_of_explicit_axes_works(explicit):
    model = small(VIT)
    pixels = jax.device_put(PIXELS[:2], explicit)
    with jax.set_mesh(explicit.mesh):
        call = jax.sharding.auto_axes(lambda x: model.encode_image(x), out_sharding=explicit)
        given = call(pixels)
    assert relative_error(given, model.encode_image(PIXELS[:2])) < 1e-5


def test_losses_of_rows_over_explicit_axes_want_their_mesh(explicit):
    rows = jax.device_put(ROWS[:4], explicit)
    with pytest.raises(ValueError, match="image embeddings are split .* give mesh="):
        train.contrastive_loss(rows, rows, 1.0)
    given = train.contrastive_loss(rows, rows, 1.0, mesh=explicit.mesh)
    assert float(given) == pytest.approx(float(train.contrastive_loss(ROWS[:4], ROWS[:4], 1.0)))
