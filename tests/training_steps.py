"""What losses and steps of training are given, and the plain formulas that they must equal."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from tests.models import random_images, random_tokens

SCALE, BIAS = 1.7, -2.3


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


def mesh_of(count: int) -> Mesh:
    """A mesh of one axis over the first devices."""
    return Mesh(np.array(jax.devices()[:count]), "data", axis_types=(AxisType.Auto,))


def batch(rows: int, size: int = 32, seed: int = 0) -> dict[str, jax.Array]:
    return {
        "images": jnp.asarray(random_images(rows, size, seed=seed)),
        "tokens": jnp.asarray(random_tokens(rows, 16, seed=seed)),
    }
