"""Our image tower on the device, with every choice that there is, as contenders."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from benchmarks.accelerator import keep
from benchmarks.accelerator.cases import NotHere
from benchmarks.accelerator.timing import Contender

# Rows whose features are compared between contenders.
COMPARED = 16

Attention = Literal["auto", "xla", "cudnn", "tokamax"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """How the image tower computes.

    Attributes:
        dtype: of the towers.
        precision: of their products.
        attention: of all rows but the pooled one; "auto" as the public encoder chooses it.
        is_pooled: whether the last block computes but the row that is wanted.
        is_single_query: whether it makes no keys and values for that row.
        is_scanned: whether one program of a block is run for all but the last.
        is_plain: whether norms and activations are those of `clip_jax.nn`.
        has_triton: whether XLA may have products computed by Triton.
    """

    dtype: str = "bfloat16"
    precision: str = "default"
    attention: Attention = "auto"
    is_pooled: bool = True
    is_single_query: bool = False
    is_scanned: bool = False
    is_plain: bool = False
    has_triton: bool = False

    def attention_on_device(self, model: Any) -> str:
        """The implementation that "auto" is for the image tower on the default device."""
        from clip_jax.backends import default_attention
        from clip_jax.config import ViTConfig
        from clip_jax.placement import default_device

        vision, device = model.config.vision, default_device()
        if self.attention != "auto" or not isinstance(vision, ViTConfig):
            return self.attention
        tokens = vision.num_patches + 1
        dtype = np.dtype(self.dtype)
        return default_attention(device.platform, device.device_kind, dtype, tokens).value


def on_device(name: str, model: Any, variant: Variant, images: np.ndarray) -> Contender:
    """A contender whose inputs lie on the device and whose results stay there.

    Args:
        name: of the contender.
        model: in float32.
        variant: how to compute.
        images: a batch, pixels or normalised floats.
    """
    import jax
    import jax.numpy as jnp

    from clip_jax.backends import compiler_options
    from clip_jax.nn.clip import computing

    prepared = prepare(model, variant)
    leaves, structure = jax.tree.flatten(prepared)
    tap = {} if variant.is_pooled else {"tap": lambda name, hidden: None}

    def embed(leaves: list, images: Any) -> Any:
        with computing(variant.precision):
            features = jax.tree.unflatten(structure, leaves).image_features(images, **tap)
        return features.astype(jnp.float32)

    rows = jax.device_put(images)
    options = {}
    if variant.attention_on_device(model) == "cudnn" and not variant.has_triton:
        options = compiler_options("cudnn")
    begin = time.perf_counter()
    program = jax.jit(embed).lower(leaves, rows).compile(options)
    seconds = time.perf_counter() - begin
    features = np.asarray(program(leaves, rows)[:COMPARED])

    def run(calls: int) -> None:
        jax.block_until_ready([program(leaves, rows) for _ in range(calls)])

    return Contender(name, run, len(images), features, seconds)


def from_host(
    name: str, encode: Callable[[Any], np.ndarray], rows: Any, *, compiles: bool = True
) -> Contender:
    """A contender from rows on the host to embeddings on the host.

    Args:
        name: of the contender.
        encode: from rows to embeddings.
        rows: arrays or strings.
        compiles: whether the first call does, whose time is then that of compiling.
    """
    begin = time.perf_counter()
    features = encode(rows)[:COMPARED]
    seconds = time.perf_counter() - begin

    def run(calls: int) -> None:
        for _ in range(calls):
            encode(rows)

    return Contender(name, run, len(rows), features, seconds if compiles else None)


def prepare(model: Any, variant: Variant) -> Any:
    """A copy of the model that computes as the variant says, as the public encoder would have it.

    Raises:
        NotHere: the attention is not for this device, or not installed.
    """
    from clip_jax.backends import optimize, use_attention
    from clip_jax.backends.apply import swap_attention
    from clip_jax.backends.gpu.attention import CudnnAttention
    from clip_jax.backends.half import cast
    from clip_jax.backends.single_query import SingleQueryAttention
    from clip_jax.placement import default_device

    platform = default_device().platform
    attention = variant.attention_on_device(model)
    model = cast(model, variant.dtype)
    # Nothing but layers, so that what is measured is one choice beside another.
    optimize(model, platform, in_slices=False)
    if attention == "cudnn":
        if platform != "gpu":
            raise NotHere("cuDNN's attention needs an NVIDIA GPU")
        if variant.is_plain:
            swap_attention(model.visual, CudnnAttention)
        else:
            use_attention(model, image="cudnn", text="cudnn")
    elif attention == "tokamax":
        from benchmarks.accelerator.tokamax_attention import use_tokamax

        use_tokamax(model.visual)
    if variant.is_single_query:
        last = model.visual.transformer.resblocks[-1]
        last.attn = SingleQueryAttention(last.attn)
        if platform == "cpu":  # whose libraries have few of its products in bfloat16
            last.attn.query_dtype = "float32"
    if variant.is_scanned:
        from benchmarks.accelerator.scanned import scan_blocks

        scan_blocks(model.visual)
    return model


def encoder(model: Any, batch_size: int, **options: Any) -> Any:
    """The public encoder, one for each way it is asked for."""
    import clip_jax

    key = ("encoder", id(model), batch_size, *sorted(options.items()))
    return keep.once(key, lambda: clip_jax.Encoder(model, batch_size=batch_size, **options))
