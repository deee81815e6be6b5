"""Embeds any number of images or texts with programs compiled for a few shapes.

Rows are divided into batches of one size, so that large inputs run one program; the last batch is
padded. Small calls have smaller programs. Texts are encoded at about their own length instead of
the context length, where the causal mask allows it.
"""

import collections
import functools
import operator
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float, Int
from PIL import Image

from clip_jax.adaptation import image_features, text_features
from clip_jax.backends import (
    compiler_options,
    default_attention,
    default_batch_size,
    optimize,
    use_attention,
)
from clip_jax.backends.adapted import adapted_copy, is_plain
from clip_jax.backends.defaults import Attention
from clip_jax.backends.half import cast
from clip_jax.compilation import compile_cache
from clip_jax.config import ViTConfig
from clip_jax.errors import NotFiniteError
from clip_jax.inputs import as_images, as_tokens
from clip_jax.messages import counted, some
from clip_jax.nn import CLIP, normalize
from clip_jax.nn.clip import check_dtype, check_model, computing
from clip_jax.nn.text import pooled_positions
from clip_jax.placement import Device, Parallel, place
from clip_jax.preprocess import Preprocess, is_picture_file
from clip_jax.progress import announce_compilation
from clip_jax.tokenizer import tokenize

# Lengths of the programs for texts; the context length is added as the last.
TEXT_LENGTHS = (8, 12, 16, 24, 32, 48)
# Rows of the programs for calls that are smaller than a batch.
SMALL_SIZES = (1, 8)
# Batches in flight: while one is computed, the result of the previous one is fetched.
IN_FLIGHT = 2


class Encoder:
    """Embeds images and texts with the parameters that a model has when the encoder is made.

    A row's embedding depends only on the row and on the program: within one program it is the same
    to the bit, whatever its position and the other rows of the batch.

    Attributes:
        batch_size: rows of a batch, over all devices of this process.
        embed_dim: the dimension of the embeddings.
        num_compilations: programs compiled so far: at most one per batch size for each dtype of
            images and each length of texts.
        device: the device that computes; one of them if there are several.
        attention: the implementation of each tower's attention, "xla" or "cudnn".
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
        tokenizer: Callable[[Sequence[str]], np.ndarray] | None = None,
        text_lengths: Sequence[int] = TEXT_LENGTHS,
    ):
        """Puts the parameters on the devices; programs are compiled when first needed.

        Arrays that are already on the device are shared with the model, not copied, so that later
        training of the model must not donate them. On a CPU the kernels are copied into the layout
        that multiplies fastest.

        Args:
            model: any CLIP model. One that was adapted, by a class of its own or by layers put in
                place of its, such as LoRA's, is computed as it is, without the faster layers.
            batch_size: rows of a batch, rounded up to a multiple of the devices. By default 32 per
                device on a CPU, and 256 on others.
            parallel: "jit", the device that the parameters are committed to, else JAX's default;
                "pmap", `jax.pmap` over the devices of this process;
                "mesh", `jax.jit` over a mesh of all devices of all processes. With several
                processes each passes its own rows and gets their embeddings, and all must make the
                same calls in the same order.
            normalize: whether to divide each embedding by its L2 norm.
            dtype: dtype in which the towers compute, instead of the model's.
            precision: the precision of matrix products, instead of the model's.
            mesh: the devices for `parallel="mesh"`, instead of all.
            attention: "xla"; "cudnn" for cuDNN's fused kernel on NVIDIA GPUs, in half precision;
                "auto" for the one that was measured to be faster on such devices, by the table in
                `clip_jax.backends.defaults`; "xla" where none was measured.
            compile_cache: a folder that keeps compiled programs for later processes, on GPUs and
                TPUs only. See `clip_jax.compile_cache`.
            whole_batches: whether to pad small calls to a whole batch, so that a row runs through
                the same program whatever the size of the call.
            tokenizer: what turns strings into token ids, such as `load_tokenizer` gives; by default
                CLIP's own.
            text_lengths: lengths, besides the context length, for which programs for texts are
                compiled; fewer take less time at first, and more time for each short text.

        Raises:
            ValueError: a number is out of range, or the placement isn't possible here.
            TypeError: it is no model of both towers.
        """
        check_model(model)
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
        self._config, self._tokenizer = model.config, tokenizer
        self.embed_dim = model.config.embed_dim
        context = model.config.text.context_length
        lengths = sorted(set(text_lengths)) if model.config.text.can_be_cut else ()
        if lengths and lengths[0] < 1:
            raise ValueError(f"text_lengths must be from 1 on. Got {lengths[0]}.")
        self._lengths = [length for length in lengths if length < context] + [context]
        self._normalize = normalize
        self._compile_cache = compile_cache
        computed = model.dtype if dtype is None else check_dtype(dtype)
        is_adapted = not is_plain(model)
        model = adapted_copy(model, computed) if is_adapted else cast(model, computed)
        self.attention = _attention(attention, model, self.device)
        self._precision = model.precision if precision is None else precision
        if not is_adapted:
            with jax.default_device(self.device):
                optimize(model, self.device.platform, in_slices=parallel != "mesh")
                use_attention(model, **self.attention)
        leaves, self._treedef = jax.tree.flatten(model)
        self._leaves = self._placement.put_leaves(leaves)
        self._programs: dict[tuple, Callable] = {}
        self._compiling = threading.Lock()  # several threads may share an encoder

    @property
    def num_compilations(self) -> int:
        """How many programs have been compiled so far."""
        return len(self._programs)

    def __repr__(self) -> str:
        tokens = f"{self._config.text.context_length} tokens"
        return (
            f"Encoder(image_size={self._config.vision.image_size}, {tokens} -> "
            f"embed_dim={self.embed_dim}, batch_size={self.batch_size}, device={self.device})"
        )

    def encode(
        self, inputs: str | Image.Image | Sequence[str | Image.Image]
    ) -> Float[np.ndarray, "*b d"]:
        """Embeds strings and pictures in any order, as sentence-transformers does.

        Args:
            inputs: strings and PIL images; or a single one. Strings as for `texts`; pictures are
                resized and cropped as the model's configuration says.

        Returns:
            (b, d) embeddings in the order of the inputs; (d,) of a single one; float32.

        Raises:
            TypeError: an element is neither.
            ValueError: as for `images` and `texts`; or a string is the path of a picture.
        """
        if isinstance(inputs, (str, Image.Image)):
            return self.encode([inputs])[0]
        is_one = isinstance(inputs, Mapping) or not isinstance(inputs, Iterable)
        rows = [inputs] if is_one else list(inputs)
        if wrong := [type(x).__name__ for x in rows if not isinstance(x, (str, Image.Image))]:
            raise TypeError(
                f"inputs must be strings and PIL images. Got {some(wrong, 3)}. A picture's file is "
                f"read by clip_jax.open_image(path)."
            )
        _check_no_paths([x for x in rows if isinstance(x, str)])
        embeddings = np.empty((len(rows), self.embed_dim), np.float32)
        texts = {i: x for i, x in enumerate(rows) if isinstance(x, str)}
        if texts:
            embeddings[list(texts)] = self.texts(list(texts.values()))
        pictures = [(i, x) for i, x in enumerate(rows) if not isinstance(x, str)]
        preprocess = Preprocess(self._config.vision.image_size, self._config.pixels)
        for begin in range(0, len(pictures), self.batch_size):  # pixels of a batch at a time
            places, part = zip(*pictures[begin : begin + self.batch_size], strict=True)
            embeddings[list(places)] = self.images(np.stack([preprocess.pixels(x) for x in part]))
        return embeddings

    def images(self, images: np.ndarray | Array | Sequence[np.ndarray]) -> Float[np.ndarray, "b d"]:
        """Embeds images.

        Args:
            images: (b, n, n, 3) with n the model's image size and any b, also 0; or a list of
                images. Either uint8 pixels, which are fastest to transfer and normalised on the
                device, or normalised floats.

        Returns:
            (b, d) embeddings in the order of the images; float32.

        Raises:
            ValueError: the shape or the dtype is wrong.
            NotFiniteError: embeddings are not finite; the message names the rows.
        """
        images = np.asarray(as_images(images, self._config.vision.image_size))
        if images.dtype != np.uint8:
            images = images.astype(np.float32, copy=False)
        return self._checked(self._run(image_features, [images])[0], images)

    def texts(self, texts: str | Sequence[str] | np.ndarray | Array) -> Float[np.ndarray, "b d"]:
        """Embeds texts.

        Args:
            texts: strings, or (b, l) token ids as from `clip_jax.tokenize`, with an end token in
                each row. Any number of them, also 0. Strings only if the encoder was given a
                tokenizer, or the model's ids are those of CLIP's own.

        Returns:
            (b, d) embeddings in the order of the texts; float32.

        Raises:
            ValueError: a text is too long for the context, the ids have a wrong shape, are out of
                range, or lack the end token, or the model has another tokenizer.
            TypeError: an element is not a string.
        """
        tokens = self._tokens(texts)
        # Under a causal mask, the end token doesn't see what follows it.
        pooled = np.broadcast_to(pooled_positions(tokens, self._config.text), len(tokens))
        lengths = pooled + 1 if len(self._lengths) > 1 else np.full(len(tokens), self._lengths[0])
        buckets = np.searchsorted(self._lengths, lengths)
        rows = [np.flatnonzero(buckets == i) for i in range(len(self._lengths))]
        parts = [tokens[row, :length] for row, length in zip(rows, self._lengths, strict=True)]
        embeddings = np.empty((len(tokens), self.embed_dim), np.float32)
        for row, embedded in zip(rows, self._run(text_features, parts), strict=True):
            embeddings[row] = embedded
        return self._checked(embeddings)

    def _tokens(self, texts: str | Sequence[str] | np.ndarray | Array) -> Int[np.ndarray, "b l"]:
        text = self._config.text
        if not hasattr(texts, "dtype") or np.asarray(texts).dtype.kind in "UOT":
            if self._tokenizer is None:
                text.check_strings()
                return tokenize(texts, text.context_length)  # pyright: ignore[reportArgumentType]
            texts = self._tokenizer(texts)  # pyright: ignore[reportArgumentType]
        tokens, end = np.asarray(as_tokens(np.asarray(texts), text)), text.end_id
        missing = [] if end is None else np.flatnonzero((tokens != end).all(axis=1)).tolist()
        if missing:
            raise ValueError(
                f"every row of tokens must have the end token, {end}. "
                f"Rows without: {some(missing)}."
            )
        # Padded to the context length, because rows may be cut to any of the lengths.
        full = np.zeros((len(tokens), text.context_length), np.int32)
        full[:, : tokens.shape[1]] = tokens
        return full

    def _run(self, features: Callable, parts: list[np.ndarray]) -> list[Float[np.ndarray, "b d"]]:
        """Embeds parts, each a stack of rows of one shape, through one queue."""
        # With several processes each takes part in every batch, if only with padding.
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
        """Yields the first row of each batch, and the number of rows of its program."""
        if 0 < count < self.batch_size:
            yield 0, next(size for size in self._sizes if size >= count)
        else:
            yield from ((begin, self.batch_size) for begin in range(0, count, self.batch_size))

    def _program(self, features: Callable, rows: Array) -> Callable:
        function = functools.partial(self._embed, features)
        if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
            return self._placement.uncompiled(function)
        key = (features, rows.shape, rows.dtype)
        if key in self._programs:  # doesn't wait for another thread's compilation
            return self._programs[key]
        with self._compiling:
            if key not in self._programs:
                tower = "image" if features is image_features else "text"
                options = compiler_options(self.attention[tower])
                announce_compilation(_described(tower, rows))
                with compile_cache(self._compile_cache, self.device.platform):
                    program = self._placement.compile(function, self._leaves, rows, options)
                self._programs[key] = program
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


def _described(tower: str, rows: Array) -> str:
    """Describes what a program is for: how many rows of what."""
    if tower == "image":
        return counted(len(rows), "picture")
    return f"{counted(len(rows), 'text')} of up to {rows.shape[1]} tokens"


def _attention(
    name: Literal["auto"] | Attention, model: CLIP, device: Device
) -> dict[str, Attention]:
    """Chooses the implementation of each tower's attention on a device.

    Raises:
        ValueError: there is no such implementation, or not on this device.
    """
    if name == "auto":
        vision, context = model.config.vision, model.config.text.context_length
        tokens = vision.num_tokens if isinstance(vision, ViTConfig) else 0
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
    """Pads `rows` with zeros to `size`."""
    if len(rows) == size:
        return rows
    filled = np.zeros((size, *rows.shape[1:]), rows.dtype)
    filled[: len(rows)] = rows
    return filled


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _check_no_paths(texts: Sequence[str]) -> None:
    """Raises ValueError if a text is the path of a picture, whose name would be embedded."""
    for text in texts:
        if is_picture_file(text):
            raise ValueError(
                f"{text} is a picture's file, expected a text or a picture: give "
                f"clip_jax.open_image({text!r})"
            )
