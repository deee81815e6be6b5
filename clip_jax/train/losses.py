"""Contrastive losses over a global batch, without its matrix of similarities on any device.

Each device keeps its images. The texts go from device to device around a ring, together with their
partial sums. Similarities are computed in blocks of columns, so that memory is linear in a device's
rows. The backward pass goes around the ring again and recomputes each block, as fused attention
does.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from clip_jax.arrays import check_axes
from clip_jax.nn import normalize

# Columns of similarities that a device holds at a time.
COLUMNS = 1024

Scalar = Float[Array, ""]


def contrastive_loss(
    image_embeddings: Float[Array, "b d"],
    text_embeddings: Float[Array, "b d"],
    logit_scale: Scalar,
    *,
    mesh: Mesh | None = None,
) -> Scalar:
    """Computes the symmetric cross entropy of CLIP (Radford et al. 2021, figure 3).

    Row i of the images belongs to row i of the texts; all other texts are its negatives.

    Args:
        image_embeddings: not normalised; any float dtype, the loss is computed in float32 at least.
        text_embeddings: not normalised.
        logit_scale: the logarithm of the factor of the cosines, as in models.
        mesh: the mesh over all of whose axes the rows are split; None for one device.

    Returns:
        The mean of the two cross entropies, images to texts and texts to images, in nats.

    Raises:
        ValueError: the shapes differ, or the devices don't divide the rows.
    """
    return contrastive_metrics(image_embeddings, text_embeddings, logit_scale, mesh=mesh)[0]


def sigmoid_loss(
    image_embeddings: Float[Array, "b d"],
    text_embeddings: Float[Array, "b d"],
    logit_scale: Scalar,
    logit_bias: Scalar,
    *,
    mesh: Mesh | None = None,
) -> Scalar:
    """Computes the pairwise sigmoid loss of SigLIP (Zhai et al. 2023, section 3.2).

    Args:
        image_embeddings: not normalised; any float dtype, the loss is computed in float32 at least.
        text_embeddings: not normalised.
        logit_scale: the logarithm of the factor of the cosines; its published start is ln 10.
        logit_bias: added to all logits; its published start is -10.
        mesh: the mesh over all of whose axes the rows are split; None for one device.

    Returns:
        The sum over all pairs of -log sigmoid(+-logit), divided by the number of rows; in nats.

    Raises:
        ValueError: the shapes differ, or the devices don't divide the rows.
    """
    return sigmoid_metrics(image_embeddings, text_embeddings, logit_scale, logit_bias, mesh=mesh)[0]


def contrastive_metrics(
    image_embeddings: Float[Array, "b d"],
    text_embeddings: Float[Array, "b d"],
    logit_scale: Scalar,
    *,
    mesh: Mesh | None = None,
) -> tuple[Scalar, Scalar]:
    """Returns `contrastive_loss`, and the fraction of images whose own text is the nearest."""
    image, text = _checked(image_embeddings, text_embeddings, mesh)
    return _contrastive(mesh, image, text, jnp.exp(jnp.asarray(logit_scale, image.dtype)))


def sigmoid_metrics(
    image_embeddings: Float[Array, "b d"],
    text_embeddings: Float[Array, "b d"],
    logit_scale: Scalar,
    logit_bias: Scalar,
    *,
    mesh: Mesh | None = None,
) -> tuple[Scalar, Scalar]:
    """Returns `sigmoid_loss`, and the fraction of images whose own text is the nearest."""
    image, text = _checked(image_embeddings, text_embeddings, mesh)
    scale, bias = (jnp.asarray(x, image.dtype) for x in (jnp.exp(logit_scale), logit_bias))
    return _sigmoid(mesh, image, text, scale, bias)


def _checked(image: Array, text: Array, mesh: Mesh | None) -> tuple[Array, Array]:
    if image.shape != text.shape or image.ndim != 2 or not len(image):
        raise ValueError(
            "image and text embeddings must be as many rows of one width. "
            f"Got {image.shape} and {text.shape}."
        )
    if mesh is not None and len(image) % mesh.size:
        raise ValueError(
            f"the rows must be a multiple of the {mesh.size} devices of the mesh. Got {len(image)}."
        )
    if mesh is None:
        for array, name in ((image, "image embeddings"), (text, "text embeddings")):
            if isinstance(array, Array):
                check_axes(array, name, "give mesh=")
    dtype = _at_least_float32(image, text)
    return normalize(jnp.asarray(image, dtype)), normalize(jnp.asarray(text, dtype))


# --- the symmetric softmax loss, of normalised rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _contrastive(
    mesh: Mesh | None, image: Array, text: Array, scale: Array
) -> tuple[Scalar, Scalar]:
    return _contrastive_forward(mesh, image, text, scale)[0]


def _contrastive_forward(mesh: Mesh | None, image: Array, text: Array, scale: Array) -> Any:
    def forward(image: Array, text: Array, scale: Array) -> Any:
        nothing = jnp.full(len(image), -jnp.inf, image.dtype), jnp.zeros(len(image), image.dtype)

        def accumulate(local: Any, text: Array, is_text: Array, traveling: Any) -> tuple:
            logits = _logits(image, text, is_text, scale)
            return _add_exp(local, logits, axis=1), _add_exp(traveling, logits, axis=0)

        row, column = _ring(accumulate, nothing, text, nothing, mesh)
        positive = scale * (image * text).sum(1)
        per_image, per_text = _log_sum_exp(row), _log_sum_exp(column)
        loss = _mean((per_image + per_text) / 2 - positive, mesh)
        # Tolerance: the largest logit comes from a matrix product, the positive one from a sum.
        accuracy = _mean(positive >= row[0] - 1e-5 * scale, mesh)
        return (loss, accuracy), (per_image, per_text)

    rows, whole = _specs(mesh)
    outcome, sums = _over(mesh, forward, (rows, rows, whole), ((whole, whole), (rows, rows)))(
        image, text, scale
    )
    return outcome, (image, text, scale, *sums)


def _contrastive_backward(mesh: Mesh | None, residuals: Any, cotangents: Any) -> Any:
    def backward(
        image: Array, text: Array, scale: Array, per_image: Array, per_text: Array, g: Array
    ) -> Any:
        def accumulate(local: Any, text: Array, is_text: Array, traveling: Any) -> tuple:
            per_text, d_text = traveling
            logits = _logits(image, text, is_text, scale)
            d_logits = jnp.exp(logits - per_image[:, None]) + jnp.exp(logits - per_text[None])
            d_image, d_scale = _add_gradients(local, d_logits / 2, image, text, scale)
            return (d_image, d_scale), (per_text, d_text + scale * _product(d_logits.T / 2, image))

        start = jnp.zeros_like(image), jnp.zeros_like(scale)
        (d_image, d_scale), (_, d_text) = _ring(
            accumulate, start, text, (per_text, jnp.zeros_like(text)), mesh
        )
        return _subtract_positives(g, mesh, image, text, scale, d_image, d_text, d_scale)

    rows, whole = _specs(mesh)
    specs = (rows, rows, whole, rows, rows, whole), (rows, rows, whole)
    return _over(mesh, backward, *specs)(*residuals, cotangents[0])


_contrastive.defvjp(_contrastive_forward, _contrastive_backward)


# --- the pairwise sigmoid loss, of normalised rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sigmoid(
    mesh: Mesh | None, image: Array, text: Array, scale: Array, bias: Array
) -> tuple[Scalar, Scalar]:
    return _sigmoid_forward(mesh, image, text, scale, bias)[0]


def _sigmoid_forward(
    mesh: Mesh | None, image: Array, text: Array, scale: Array, bias: Array
) -> Any:
    def forward(image: Array, text: Array, scale: Array, bias: Array) -> Any:
        def accumulate(local: Any, text: Array, is_text: Array, traveling: Any) -> tuple:
            total, largest = local
            logits = _logits(image, text, is_text, scale) + bias
            total = total + jax.nn.softplus(logits).sum(1)
            return (total, jnp.maximum(largest, logits.max(1))), traveling

        start = jnp.zeros(len(image), image.dtype), jnp.full(len(image), -jnp.inf, image.dtype)
        (total, largest), _ = _ring(accumulate, start, text, (), mesh)
        positive = scale * (image * text).sum(1) + bias
        # -log sigmoid(x) = softplus(x) - x: softplus for all pairs, -x only for the positives.
        return _mean(total - positive, mesh), _mean(positive >= largest - 1e-5 * scale, mesh)

    rows, whole = _specs(mesh)
    outcome = _over(mesh, forward, (rows, rows, whole, whole), (whole, whole))(
        image, text, scale, bias
    )
    return outcome, (image, text, scale, bias)


def _sigmoid_backward(mesh: Mesh | None, residuals: Any, cotangents: Any) -> Any:
    def backward(image: Array, text: Array, scale: Array, bias: Array, g: Array) -> Any:
        def accumulate(local: Any, text: Array, is_text: Array, d_text: Array) -> tuple[Any, Any]:
            *local, d_bias = local
            d_logits = jax.nn.sigmoid(_logits(image, text, is_text, scale) + bias)
            d_image, d_scale = _add_gradients(local, d_logits, image, text, scale)
            d_text = d_text + scale * _product(d_logits.T, image)
            return (d_image, d_scale, d_bias + d_logits.sum()), d_text

        start = jnp.zeros_like(image), jnp.zeros_like(scale), jnp.zeros_like(bias)
        (d_image, d_scale, d_bias), d_text = _ring(
            accumulate, start, text, jnp.zeros_like(text), mesh
        )
        gradients = _subtract_positives(g, mesh, image, text, scale, d_image, d_text, d_scale)
        return *gradients, _mean((d_bias / len(image) - 1)[None], mesh) * g

    rows, whole = _specs(mesh)
    specs = (rows, rows, whole, whole, whole), (rows, rows, whole, whole)
    return _over(mesh, backward, *specs)(*residuals, cotangents[0])


_sigmoid.defvjp(_sigmoid_forward, _sigmoid_backward)


# --- what both are made of


def _specs(mesh: Mesh | None) -> tuple[PartitionSpec, PartitionSpec]:
    """Returns the specs of arrays split over all devices, and of replicated ones."""
    return PartitionSpec(mesh.axis_names if mesh else None), PartitionSpec()


def _over(mesh: Mesh | None, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """Maps `function` over the rows of each device."""
    if mesh is None:
        return function
    # JAX can't check through `custom_vjp` that outputs with the replicated spec are replicated.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _ring(
    accumulate: Callable, local: Any, text: Array, traveling: Any, mesh: Mesh | None
) -> tuple[Any, Any]:
    """Sends each device's texts around the ring of devices, and returns both accumulators.

    Args:
        accumulate: a function of the device's accumulator, a block of texts, the mask of its rows
            that are no padding, and the block's accumulator; returns both accumulators updated.
        local: the accumulator that stays on this device.
        text: this device's texts.
        traveling: the accumulator that travels with them, arrays with a row for each text.
        mesh: the devices; None for one.
    """
    count = len(text)
    blocks = -(-count // COLUMNS)
    size = -(-count // blocks)

    def in_blocks(x: Array) -> Array:
        filled = jnp.pad(x, ((0, blocks * size - count), *[(0, 0)] * (x.ndim - 1)))
        return filled.reshape(blocks, size, *x.shape[1:])

    is_text = in_blocks(jnp.ones(count, bool))
    visiting = jax.tree.map(in_blocks, (text, traveling))

    def accumulate_all(local: Any, visiting: Any) -> tuple[Any, Any]:
        texts, traveling = visiting

        def accumulate_one(local: Any, block: Any) -> tuple[Any, Any]:
            return accumulate(local, *block)

        local, traveling = jax.lax.scan(accumulate_one, local, (texts, is_text, traveling))
        return local, (texts, traveling)

    if mesh is None:
        local, visiting = accumulate_all(local, visiting)
    else:
        moves = [(device, (device + 1) % mesh.size) for device in range(mesh.size)]

        def step(_: Array, both: Any) -> Any:
            local, visiting = accumulate_all(*both)
            return local, jax.lax.ppermute(visiting, mesh.axis_names, moves)

        local, visiting = jax.lax.fori_loop(0, mesh.size, step, (local, visiting))
    return local, jax.tree.map(
        lambda x: x.reshape(blocks * size, *x.shape[2:])[:count], visiting[1]
    )


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _logits(image: Array, text: Array, is_text: Array, scale: Array) -> Float[Array, "i t"]:
    return jnp.where(is_text[None], scale * _product(image, text.T), -jnp.inf)


def _add_exp(so_far: Any, logits: Array, axis: int) -> Any:
    """Updates a running maximum, and the sum of exponentials relative to it."""
    largest, total = so_far
    new = jnp.maximum(largest, logits.max(axis))
    base = jnp.maximum(new, jnp.finfo(new.dtype).min)  # padding has a maximum of -inf
    terms = jnp.exp(logits - jnp.expand_dims(base, axis)).sum(axis)
    return new, total * jnp.exp(largest - base) + terms


def _log_sum_exp(so_far: Any) -> Array:
    largest, total = so_far
    return largest + jnp.log(total)


def _add_gradients(local: Any, d_logits: Array, image: Array, text: Array, scale: Array) -> Any:
    d_image, d_scale = local
    pulled = _product(d_logits, text)
    return d_image + scale * pulled, d_scale + (pulled * image).sum()


def _subtract_positives(
    g: Array,
    mesh: Mesh | None,
    image: Array,
    text: Array,
    scale: Array,
    d_image: Array,
    d_text: Array,
    d_scale: Array,
) -> tuple[Array, Array, Array]:
    """Returns the gradients of the mean loss: subtracts the positive pairs, and scales."""
    devices = 1 if mesh is None else mesh.size
    each = g / (len(image) * devices)
    d_scale = d_scale - (image * text).sum()
    d_scale = d_scale if mesh is None else jax.lax.psum(d_scale, mesh.axis_names)
    return each * (d_image - scale * text), each * (d_text - scale * image), each * d_scale


def _mean(x: Array, mesh: Mesh | None) -> Array:
    mean = x.astype(_at_least_float32(x)).mean()
    return mean if mesh is None else jax.lax.pmean(mean, mesh.axis_names)


def _at_least_float32(*arrays: Array) -> type:
    # Not by jnp.promote_types, which refuses other dtypes where promotion is set to be strict.
    return jnp.float64 if any(x.dtype == jnp.float64 for x in arrays) else jnp.float32
