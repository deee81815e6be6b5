"""The exact gradient of a contrastive loss, one micro-batch in memory at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

Arrays = dict[str, Array]  # by their paths in the public tree


def contrastive_gradients(
    embed: Callable[[Arrays, Arrays, Any], tuple[tuple[Array, Array], Arrays]],
    measure: Callable[[Array, Array, Arrays], tuple[Array, Any]],
    parameters: Arrays,
    statistics: Arrays,
    micro_batches: Any,
) -> tuple[Arrays, Arrays, tuple[Array, Any]]:
    """Computes the exact gradient of a loss over all pairs, one micro-batch in memory at a time.

    A contrastive loss is no mean over micro-batches: every image is compared with all texts. So
    all micro-batches are embedded first, the loss is differentiated with respect to the
    embeddings, and these gradients go back through each micro-batch (Gao et al. 2021, section 3).

    Args:
        embed: maps parameters, statistics and a micro-batch to the embeddings of images and texts,
            and the updated statistics.
        measure: maps all embeddings and the parameters to the loss and any other values.
        parameters: the parameters to differentiate with respect to.
        statistics: BatchNorm's running statistics. Each micro-batch normalises by its own rows.
        micro_batches: a pytree of arrays (micro-batches, rows, ...).

    Returns:
        The gradients, the statistics after all micro-batches, and the result of `measure`.
    """
    (count,) = {len(leaf) for leaf in jax.tree.leaves(micro_batches)}
    if count == 1:  # one forward pass instead of two
        whole = jax.tree.map(lambda x: x[0], micro_batches)

        def loss(parameters: Arrays) -> tuple[Array, Any]:
            embeddings, after = embed(parameters, statistics, whole)
            value, others = measure(*embeddings, parameters)
            return value, (others, after)

        (value, (others, after)), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        return gradients, after, (value, others)

    def forward(statistics: Arrays, micro: Any) -> tuple[Arrays, Any]:
        embeddings, after = embed(parameters, statistics, micro)
        return after, (embeddings, statistics)

    after, (embeddings, before) = jax.lax.scan(forward, statistics, micro_batches)
    images, texts = (x.reshape(-1, x.shape[-1]) for x in embeddings)
    (value, others), by_all = jax.value_and_grad(measure, argnums=(0, 1, 2), has_aux=True)(
        images, texts, parameters
    )
    *by_embeddings, gradients = by_all
    by_embeddings = tuple(
        by.reshape(x.shape) for by, x in zip(by_embeddings, embeddings, strict=True)
    )

    def backward(gradients: Arrays, one: Any) -> tuple[Arrays, None]:
        micro, statistics, cotangents = one
        _, pull = jax.vjp(lambda p: embed(p, statistics, micro)[0], parameters)
        return jax.tree.map(jnp.add, gradients, pull(cotangents)[0]), None

    gradients, _ = jax.lax.scan(backward, gradients, (micro_batches, before, by_embeddings))
    return gradients, after, (value, others)
