"""A training step: (state, batch, key) to (state, metrics), over any number of devices."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from clip_jax.backends import optimize_for_training
from clip_jax.backends.defaults import Attention
from clip_jax.config import CLIPConfig, SigLIPConfig, ViTConfig
from clip_jax.nn import CLIP, build
from clip_jax.nn.clip import computing
from clip_jax.nn.resnet import BatchNorm
from clip_jax.nn.tree import check_unadapted, variables
from clip_jax.placement import default_device
from clip_jax.train.gradients import Arrays, contrastive_gradients
from clip_jax.train.losses import contrastive_metrics, sigmoid_metrics
from clip_jax.train.optimizer import (
    OptimizerConfig,
    factors,
    make_optimizer,
    make_schedule,
)
from clip_jax.train.rematerialize import rematerialize

# "images": uint8 (b, n, n, 3); "tokens": int32 (b, l), or several arrays of different lengths that
# have b rows in all.
Batch = Mapping[str, Any]
# Maps a key and uint8 images to such images, on the device.
Augment = Callable[[Array, Array], Array]

MAX_LOGIT_SCALE = math.log(100)
# The published start of the sigmoid loss (Zhai et al. 2023, section 3.2).
SIGMOID_START = {"logit_scale": math.log(10), "logit_bias": -10.0}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "parameters", "statistics", "optimizer"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of training, a pytree.

    Attributes:
        step: the number of steps taken, an int32 scalar.
        parameters: float32 arrays by their paths in the public tree; with the sigmoid loss also
            `logit_bias`.
        statistics: BatchNorm's running statistics by path; empty for ViTs.
        optimizer: Optax's state.
    """

    step: Array
    parameters: Arrays
    statistics: Arrays
    optimizer: Any


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The loss, and how a step computes it.

    Attributes:
        loss: "softmax", CLIP's, or "sigmoid", SigLIP's.
        micro_batches: the number of parts of a batch, of which one at a time is in memory. The
            gradient is that of the loss over the whole batch.
        rematerialize: whether to recompute hidden states for the gradient instead of keeping them.
        patch_dropout: the fraction of an image's patches to drop, drawn anew for each image and
            step; for Vision Transformers (Li et al. 2023, section 3). The tower's work shrinks in
            proportion.
        dtype: dtype in which the towers compute; parameters and the loss are float32.
        precision: precision of matrix products, for `jax.default_matmul_precision`.
        attention: the image tower's: "xla", or "cudnn" for cuDNN's fused kernel on NVIDIA GPUs, in
            half precision.
    """

    loss: Literal["softmax", "sigmoid"] = "softmax"
    micro_batches: int = 1
    rematerialize: bool = False
    patch_dropout: float = 0.0
    dtype: str = "float32"
    precision: str = "default"
    attention: Attention = "xla"

    def __post_init__(self):
        """Checks the fields.

        Raises:
            ValueError: a name is not known, or a number is out of range.
        """
        if self.loss not in ("softmax", "sigmoid"):
            raise ValueError(f'loss must be "softmax" or "sigmoid". Got {self.loss!r}.')
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16. Got {self.dtype!r}.")
        if self.attention not in ("xla", "cudnn"):
            raise ValueError(f'attention must be "xla" or "cudnn". Got {self.attention!r}.')
        if self.attention == "cudnn" and self.dtype == "float32":
            raise ValueError(
                'attention="cudnn" is for half precision: give dtype="bfloat16", or leave it out.'
            )
        if self.micro_batches < 1:
            raise ValueError(f"micro_batches must be at least 1. Got {self.micro_batches}.")
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(
                f"patch_dropout must be from 0 to 1, and not 1. Got {self.patch_dropout}."
            )


def init_state(model: CLIP, config: OptimizerConfig, loss: str = "softmax") -> TrainState:
    """Returns the state before the first step, with copies of the model's arrays.

    Copies let a step donate its state, which saves a third of the memory.

    Args:
        model: a new model, or one loaded from any checkpoint.
        config: the optimiser.
        loss: "softmax", or "sigmoid", which starts from its own published scale and bias, unless
            the model has a bias already.

    Raises:
        ValueError: the model has layers or settings that its configuration doesn't say.
    """
    check_unadapted(model, "and would be trained without them")
    arrays = variables(model)
    parameters, statistics = (
        {
            path: jnp.array(variable[...], jnp.float32)
            for path, variable in arrays.items()
            if isinstance(variable, kind)
        }
        for kind in (nnx.Param, nnx.BatchStat)
    )
    if loss == "sigmoid" and "logit_bias" not in parameters:
        start = {name: jnp.float32(value) for name, value in SIGMOID_START.items()}
        parameters = {**parameters, **start}
    transformation = make_optimizer(config, model.config)
    return TrainState(jnp.int32(0), parameters, statistics, transformation.init(parameters))


def model_of(state: TrainState, config: CLIPConfig, **options: Any) -> CLIP:
    """Returns a model in evaluation mode with the parameters of a state.

    Args:
        state: the training state.
        config: the architecture that was trained. If the sigmoid loss has added a bias to it, the
            model has it too, and so has its configuration.
        **options: `dtype` and `precision` of the model.
    """
    if "logit_bias" in state.parameters and config.logit_bias is None:
        config = dataclasses.replace(config, logit_bias=SIGMOID_START["logit_bias"])
    model = build(config, **options)
    for path, variable in variables(model).items():
        of = state.parameters if isinstance(variable, nnx.Param) else state.statistics
        variable.set_value(of[path])
    return model


def make_step(
    model: CLIPConfig,
    config: OptimizerConfig,
    step: StepConfig | None = None,
    *,
    mesh: Mesh | None = None,
    augment: Augment | None = None,
    platform: str | None = None,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]:
    """Returns a pure function (state, batch, key) -> (state, metrics), to be compiled by `jax.jit`.

    Args:
        model: the architecture.
        config: the optimiser.
        step: the loss and how to compute it.
        mesh: the mesh over all of whose axes the rows of a batch are split, with parameters
            replicated; None for one device.
        augment: a function of a key and uint8 images that returns such images.
        platform: the platform for which layers are chosen; by default that of the mesh, else of
            JAX's default device. On others the results are the same, but slower.

    Returns:
        The step. Its metrics are float32 scalars: `loss`; `accuracy`, the fraction of images whose
        own text is the nearest of the batch; `gradient_norm`, before clipping; `learning_rate`;
        `logit_scale`, the factor itself. It raises ValueError if micro-batches times devices don't
        divide the rows.

    Raises:
        ValueError: `patch_dropout` is set for a ResNet, which has no patches; or cuDNN's attention
            for a platform that doesn't have it.
    """
    how = step or StepConfig()
    platform = platform or _platform(mesh)
    if isinstance(model, SigLIPConfig) and how.loss != "sigmoid":
        raise ValueError(
            f'SigLIP is trained with loss="sigmoid", under [step] in a TOML file, as its pairs '
            f"have probabilities of their own. Got {how.loss!r}: give that, or a CLIP model."
        )
    if how.patch_dropout and not isinstance(model.vision, ViTConfig):
        raise ValueError("patch_dropout is for Vision Transformers; this model has a ResNet.")
    if how.attention == "cudnn" and platform not in ("gpu", "cuda"):
        raise ValueError(
            'attention="cudnn" is for NVIDIA GPUs; leave it out elsewhere. '
            f"The devices of this step are of the platform {platform}."
        )
    transformation, rate = make_optimizer(config, model), make_schedule(config)
    frozen = {path for path, factor in factors(config, model).items() if factor == 0}

    def take_step(
        state: TrainState, batch: Batch, key: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        images, tokens = batch["images"], batch["tokens"]
        if augment is not None:
            images = augment(key, images)
        whole = {"images": images, "tokens": tokens}
        if isinstance(model.vision, ViTConfig) and how.patch_dropout:
            whole["kept"] = _draw(
                jax.random.fold_in(key, 1), len(images), model.vision.num_patches, how.patch_dropout
            )
        micro = _cut(whole, how.micro_batches, mesh)
        embed = functools.partial(_embed, model, how, platform, frozen)
        measure = functools.partial(_measure, how.loss, mesh)
        # Around the backward pass too, because `linear_in_training` makes its products there.
        with computing(how.precision):
            gradients, statistics, (loss, accuracy) = contrastive_gradients(
                embed, measure, state.parameters, state.statistics, micro
            )
        # optax promotes dtypes, whatever the caller's rule is.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = transformation.update(
                gradients, state.optimizer, state.parameters
            )
            learning_rate = jnp.asarray(rate(state.step), jnp.float32)
        parameters: Any = optax.apply_updates(state.parameters, updates)
        parameters["logit_scale"] = jnp.minimum(parameters["logit_scale"], MAX_LOGIT_SCALE)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": learning_rate,
            "logit_scale": jnp.exp(parameters["logit_scale"]),
        }
        return TrainState(state.step + 1, parameters, statistics, optimizer_state), metrics

    return take_step


def compiler_options(platform: str | None = None) -> dict[str, str]:
    """Returns the `compiler_options` of `jax.jit` for a step on a platform.

    On CPUs they order operations for the least memory. XLA's default order takes about a quarter
    more, and with it `rematerialize` saves nothing.

    Args:
        platform: as in `make_step`; by default that of JAX's default device.
    """
    if (platform or default_device().platform) != "cpu":
        return {}
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def _platform(mesh: Mesh | None) -> str:
    return (default_device() if mesh is None else mesh.devices.flat[0]).platform


def _embed(
    config: CLIPConfig,
    how: StepConfig,
    platform: str,
    frozen: Collection[str],
    parameters: Arrays,
    statistics: Arrays,
    batch: Batch,
) -> tuple[tuple[Array, Array], Arrays]:
    model = build(config, dtype=how.dtype, precision=how.precision)
    for path, variable in variables(model).items():
        of = parameters if isinstance(variable, nnx.Param) else statistics
        variable.set_value(of[path])
    model.train()
    for path, module in nnx.iter_modules(model):
        # The statistics of frozen layers don't change either.
        if isinstance(module, BatchNorm) and "/".join(map(str, (*path, "scale"))) in frozen:
            module.eval()
    optimize_for_training(model, platform, how.attention)
    if how.rematerialize:
        rematerialize(model)
    patches = {"kept": batch["kept"]} if "kept" in batch else {}
    images = model.image_features(batch["images"], **patches)
    texts = [model.text_features(x, model.dtype) for x in jax.tree.leaves(batch["tokens"])]
    after = {path: v[...] for path, v in variables(model).items() if path in statistics}
    return (images, jnp.concatenate(texts)), after


def _measure(
    loss: str, mesh: Mesh | None, images: Array, texts: Array, parameters: Arrays
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    scale = parameters["logit_scale"]
    if loss == "sigmoid":
        return sigmoid_metrics(images, texts, scale, parameters["logit_bias"], mesh=mesh)
    return contrastive_metrics(images, texts, scale, mesh=mesh)


def _cut(batch: Batch, count: int, mesh: Mesh | None) -> dict[str, Any]:
    """Splits a batch into (micro-batches, rows, ...), separately on each device."""
    images, tokens = batch["images"], jax.tree.leaves(batch["tokens"])
    sizes = [len(x) for x in tokens]
    if sum(sizes) != len(images):
        raise ValueError(f"there must be as many texts as images. Got {sizes} and {len(images)}.")
    devices = 1 if mesh is None else mesh.size
    for rows in sizes:
        if rows % (count * devices) or not rows:
            raise ValueError(
                f"the rows of a batch must be a multiple of {count} micro-batches times {devices} "
                f"devices, {count * devices}, and so must each array of tokens. Got {rows}."
            )

    def cut(x: Array) -> Array:
        if mesh is None:
            return x.reshape(count, -1, *x.shape[1:])
        # Per device, so that no row moves to another.
        x = x.reshape(devices, count, -1, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(count, -1, *x.shape[3:])
        split = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))
        return jax.lax.with_sharding_constraint(x, split)

    # Each micro-batch has a part of every array of tokens, and the images that belong to it.
    starts = np.cumsum(sizes)[:-1].tolist() if count > 1 else []
    arrays: dict[str, Any] = {"tokens": [cut(x) for x in tokens]}
    for name, array in batch.items():
        if name != "tokens":
            parts = [cut(part) for part in jnp.split(array, starts)]
            arrays[name] = jnp.concatenate(parts, axis=1)
    return arrays


def _draw(key: Array, rows: int, patches: int, dropped: float) -> Int[Array, "b p"]:
    """Draws the patches to keep of each row, at least one, in ascending order."""
    order = jnp.argsort(jax.random.uniform(key, (rows, patches)))
    return jnp.sort(order[:, : max(1, round(patches * (1 - dropped)))])
