"""Encoders of the small model, shared since compiling them is what takes the time."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from clip_jax import Encoder
from clip_jax.placement import OneDevice
from tests.models import SMALL_VIT, random_images, random_tokens, small

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
END = 49407


@pytest.fixture(scope="session")
def images():
    """Pixels of more images than two batches."""
    return random_images(33, 32)


@pytest.fixture(scope="session")
def embedded(model, images):
    """What the model makes of `images`."""
    return np.asarray(model.encode_image(images))


@pytest.fixture(scope="session")
def tokens():
    """Captions that all fit the shortest program."""
    return np.pad(random_tokens(33, 8), ((0, 0), (0, 69)))


@pytest.fixture(scope="session")
def embedded_tokens(model, tokens):
    """What the model makes of `tokens`."""
    return np.asarray(model.encode_text(tokens))


@functools.cache
def shared_encoder(placement="jit"):
    """Compiling is what takes the time here."""
    return Encoder(small(SMALL_VIT), batch_size=BATCH_SIZE, parallel=placement)


@pytest.fixture(params=PLACEMENTS)
def encoder(request):
    """An encoder of each placement."""
    return shared_encoder(request.param)


@pytest.fixture
def one_device():
    """The encoder of one device."""
    return shared_encoder()


@pytest.fixture
def programs(monkeypatch):
    """What one device would compile, without the time that it takes; embeddings are zeros."""
    programs = []

    def compile(self, function, leaves, rows, options):
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


def callers_mesh() -> Mesh:
    """A mesh as a caller may have it: of two axes, explicit ones."""
    return Mesh(
        np.array(jax.devices()).reshape(4, 2),
        ("data", "model"),
        axis_types=(AxisType.Explicit,) * 2,
    )
