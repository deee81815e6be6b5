"""Any number of images or texts to embeddings, by programs compiled for a few shapes.

Rows are cut into batches of one size, so bulk work of any length runs one program: the last batch
is filled up and what was filled in is dropped. Small calls have small programs. Texts are encoded
at about their own length, which the causal mask allows, instead of at the context's.
"""

import collections
import functools
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from clip_jax.backends import default_attention, default_batch_size, optimize, use_attention
from clip_jax.backends.defaults import Attention
from clip_jax.backends.half import cast
from clip_jax.compilation import compile_cache
from clip_jax.config import ViTConfig
from clip_jax.errors import NotFiniteError
from clip_jax.messages import some
from clip_jax.nn import CLIP, normalize
from clip_jax.nn.clip import computing
from clip_jax.nn.inputs import as_images, as_tokens
from clip_jax.placement import Device, Parallel, place
from clip_jax.tokenizer import tokenize

# Columns of the programs for texts; the context length comes last, whatever it is.
TEXT_LENGTHS = (8, 12, 16, 24, 32, 48)
# Rows of the programs for calls that are smaller than a batch.
SMALL_SIZES = (1, 8)
# Batches on their way at one time: while one is computed, the one before comes back.
IN_FLIGHT = 2


class Encoder:
    """Embeds images and texts with a model's parameters as they are when it is made.

    A row's embedding depends on nothing but the row and the program it runs through: within one
    program it is the same to the bit, wherever the row stands and whatever stands beside it.

    Attributes:
        batch_size: rows of a batch, over all devices of this process.
        embed_dim: columns of the embeddings.
        num_compilations: programs compiled so far: at most one for each size of batch, for images
            of each dtype and for texts of each length.
        device: on which rows are embedded; of several, one that stands for all.
        attention: how the tower of images and that of texts compute it: "xla" or "cudnn".
    """

    def __init__(
        self,
        model: CLIP,
        *,
        batch_size: int | None = None,
        parallel: Parallel = "jit",
        normalize: bool = False,
        dtype: DTypeLike | None = None,
        precision: str | None = None,
        mesh: Mesh | None = None,
        attention: Literal["auto"] | Attention = "auto",
        compile_cache: str | os.PathLike | None = None,
        whole_batches: bool = False,
    ):
        """Takes the parameters to the devices; compiles when it is first needed.

        Where an array already lies on the device it is shared with the model, not copied: training
        that goes on with the model in place must not donate its arrays. On a CPU the kernels are
        copied, in the order in which they are multiplied fastest.

        Args:
            model: any CLIP model.
            batch_size: rows of a batch; rounded up to a multiple of the devices. 32 for each
                device on a CPU, 256 on others, where none is given.
            parallel: "jit", the device that the parameters are committed to, else JAX's default;
                "pmap", `jax.pmap` over the devices of this process;
                "mesh", `jax.jit` over a mesh of all devices of all processes. Under several
                processes each gives its own rows and gets their embeddings, and all have to make
                the same calls in the same order.
            normalize: whether to divide each embedding by its L2 norm.
            dtype: in which the towers compute, instead of the model's.
            precision: of matrix products, instead of the model's.
            mesh: devices for `parallel="mesh"`, instead of all.
            attention: "xla"; "cudnn" for cuDNN's fused kernel on NVIDIA GPUs, in half precision;
                "auto" for what was measured to be faster on such devices, by the table in
                `clip_jax.backends.defaults`. No GPU or TPU has been measured yet: it is "xla".
            compile_cache: a folder that keeps the compiled programs for the next process; on GPUs
                and TPUs only. See `clip_jax.compile_cache`.
            whole_batches: whether calls smaller than a batch are filled up to one, too, so that a
                row runs through one program whatever the size of the call.

        Raises:
            ValueError: a number is out of range, or the placement can't be had here.
        """
        self._placement = place(parallel, mesh, model)
        self.device, devices = self._placement.device, self._placement.num_local_devices
        if batch_size is None:
            batch_size = devices * default_batch_size(self.device.platform)
        if operator.index(batch_size) < 1:
            raise ValueError(f"batch_size must be at least 1. Got {batch_size}.")
        self.batch_size = _round_up(batch_size, devices)
        sizes = () if whole_batches else SMALL_SIZES
        small = {_round_up(size, devices) for size in sizes}
        self._sizes = sorted({size for size in small if size < self.batch_size} | {self.batch_size})
        self._config = model.config
        self.embed_dim = model.config.embed_dim
        context = model.config.text.context_length
        self._lengths = [length for length in TEXT_LENGTHS if length < context] + [context]
        self._normalize = normalize
        self._compile_cache = compile_cache
        model = cast(model, model.dtype if dtype is None else dtype)
        self.attention = _attention(attention, model, self.device)
        self._precision = model.precision if precision is None else precision
        with jax.default_device(self.device):
            optimize(model, self.device.platform, in_slices=parallel != "mesh")
            use_attention(model, **self.attention)
        leaves, self._treedef = jax.tree.flatten(model)
        self._leaves = self._placement.put_leaves(leaves)
        self._programs: dict[tuple, Callable] = {}

    @property
    def num_compilations(self) -> int:
        """How many programs have been compiled so far."""
        return len(self._programs)

    def images(self, images: np.ndarray | Array | Sequence[np.ndarray]) -> Float[np.ndarray, "b d"]:
        """Embeds images.

        Args:
            images: (b, n, n, 3) with n the model's image size: uint8 pixels, which are normalised
                on the device and the quickest to get there, or normalised floats. Any b, 0 too;
                or a list of such images.

        Returns:
            (b, d) embeddings in the order of the images; float32.

        Raises:
            ValueError: the shape or the dtype is another, or an image gives values that are not
                finite; names the rows.
        """
        images = np.asarray(as_images(images, self._config.vision.image_size))
        if images.dtype != np.uint8:
            images = images.astype(np.float32, copy=False)
        return self._checked(self._run(CLIP.image_features, [images])[0], images)

    def texts(self, texts: str | Sequence[str] | np.ndarray | Array) -> Float[np.ndarray, "b d"]:
        """Embeds texts.

        Args:
            texts: strings, or (b, l) token ids as `clip_jax.tokenize` makes them, each row with an
                end token. Any number of them, 0 too.

        Returns:
            (b, d) embeddings in the order of the texts; float32.

        Raises:
            ValueError: a text is too long for the context, or the ids have another shape, lie out
                of range, or lack the end token; names the rows.
            TypeError: an element is no string.
        """
        tokens = self._tokens(texts)
        # Causal: what comes after the end token can't be seen from it.
        lengths = tokens.argmax(axis=1) + 1
        buckets = np.searchsorted(self._lengths, lengths)
        rows = [np.flatnonzero(buckets == i) for i in range(len(self._lengths))]
        parts = [tokens[row, :length] for row, length in zip(rows, self._lengths, strict=True)]
        embeddings = np.empty((len(tokens), self.embed_dim), np.float32)
        for row, embedded in zip(rows, self._run(_text_features, parts), strict=True):
            embeddings[row] = embedded
        return self._checked(embeddings)

    def _tokens(self, texts: str | Sequence[str] | np.ndarray | Array) -> Int[np.ndarray, "b l"]:
        text = self._config.text
        if not hasattr(texts, "dtype") or np.asarray(texts).dtype.kind in "UOT":
            return tokenize(texts, text.context_length)  # pyright: ignore[reportArgumentType]
        tokens = as_tokens(np.asarray(texts), text)
        if missing := np.flatnonzero((tokens != text.vocab_size - 1).all(axis=1)).tolist():
            raise ValueError(
                f"every row of tokens must have the end token, {text.vocab_size - 1}. "
                f"Rows without: {some(missing)}."
            )
        # Copied, because the width has to reach every length that a row may be cut to.
        full = np.zeros((len(tokens), text.context_length), np.int32)
        full[:, : tokens.shape[1]] = tokens
        return full

    def _run(self, features: Callable, parts: list[np.ndarray]) -> list[Float[np.ndarray, "b d"]]:
        """Embeds each part, a stack of rows of one shape, all of them in one queue."""
        # Under several processes everybody takes part in every batch, if only with filling.
        counts = self._placement.most(np.array([len(part) for part in parts]))
        results = [np.empty((len(part), self.embed_dim), np.float32) for part in parts]
        queue: collections.deque[tuple[np.ndarray, Array]] = collections.deque()

        def receive() -> None:
            target, rows = queue.popleft()
            target[:] = self._placement.get_rows(rows)[: len(target)]

        with self._placement.mesh_context():
            for part, result, count in zip(parts, results, counts, strict=True):
                for begin, size in self._batches(int(count)):
                    rows = self._placement.put_rows(_filled(part[begin : begin + size], size))
                    program = self._program(features, rows)
                    queue.append((result[begin : begin + size], program(self._leaves, rows)))
                    if len(queue) > IN_FLIGHT:
                        receive()
            while queue:
                receive()
        return results

    def _batches(self, count: int) -> Iterator[tuple[int, int]]:
        """Where each batch begins, and the rows of its program."""
        if 0 < count < self.batch_size:
            yield 0, next(size for size in self._sizes if size >= count)
        else:
            yield from ((begin, self.batch_size) for begin in range(0, count, self.batch_size))

    def _program(self, features: Callable, rows: Array) -> Callable:
        key = (features, rows.shape, rows.dtype)
        if key not in self._programs:
            function = functools.partial(self._embed, features)
            with compile_cache(self._compile_cache, self.device.platform):
                self._programs[key] = self._placement.compile(function, self._leaves, rows)
        return self._programs[key]

    def _embed(self, features: Callable, leaves: list[Array], rows: Array) -> Array:
        model = jax.tree.unflatten(self._treedef, leaves)
        with computing(self._precision):
            embeddings = features(model, rows)
        embeddings = embeddings.astype(jnp.float32)
        return normalize(embeddings) if self._normalize else embeddings

    def _checked(self, embeddings: np.ndarray, images: np.ndarray | None = None) -> np.ndarray:
        finite = np.isfinite(embeddings).all(axis=1)
        if finite.all():
            return embeddings
        rows = np.flatnonzero(~finite)
        if images is not None and not np.isfinite(images[rows]).all():
            reason = "their pixels are not finite"
        else:
            reason = "the weights are damaged, or their numbers are too large for the dtype"
        message = f"the embeddings of rows {some(rows)} are not finite: {reason}."
        raise NotFiniteError(message, rows.tolist())


def _text_features(model: Any, tokens: Array) -> Array:
    return model.text_features(tokens, model.dtype)


def _attention(
    name: Literal["auto"] | Attention, model: CLIP, device: Device
) -> dict[str, Attention]:
    """How each tower's attention is computed on a device.

    Raises:
        ValueError: there is no such way, or not there.
    """
    if name == "auto":
        vision, context = model.config.vision, model.config.text.context_length
        tokens = vision.num_patches + 1 if isinstance(vision, ViTConfig) else 0
        return {
            tower: default_attention(device.platform, device.device_kind, model.dtype, count).value
            for tower, count in (("image", tokens), ("text", context))
        }
    if name not in ("xla", "cudnn"):
        raise ValueError(f'attention must be "auto", "xla" or "cudnn". Got {name!r}.')
    if name == "cudnn" and (device.platform != "gpu" or model.dtype == jnp.float32):
        raise ValueError(
            'attention="cudnn" is for half precision on GPUs: give dtype="bfloat16" there, or '
            f"leave it out. Got {model.dtype} on {device.platform}."
        )
    return {"image": name, "text": name}


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """`rows`, and zeros up to `size`."""
    if len(rows) == size:
        return rows
    filled = np.zeros((size, *rows.shape[1:]), rows.dtype)
    filled[: len(rows)] = rows
    return filled


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
