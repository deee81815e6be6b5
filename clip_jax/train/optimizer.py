"""The optimiser: AdamW as published for CLIP, or Muon; learning rates and frozen parameters."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from clip_jax.config import CLIPConfig, ResNetConfig
from clip_jax.shapes import parameter_shapes

Parameters = Mapping[str, jax.Array]  # by their paths in the public tree


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Hyperparameters; the defaults are those published for ViTs (Radford et al. 2021, appendix F).

    Attributes:
        name: "adamw", as published, or "muon": matrices in transformer blocks are updated by their
            orthogonalised momentum (Jordan et al. 2024), scaled to the size of Adam's steps so
            that one learning rate and weight decay serve both (Liu et al. 2025, section 2.2); all
            others by AdamW.
        learning_rate: the peak, at the end of the warm-up.
        warmup_steps: steps of a linear rise from 0.
        total_steps: steps of the warm-up and of the half cosine to `final_learning_rate`.
        final_learning_rate: the rate at the last step and after it.
        b1: decay of Adam's mean of gradients.
        b2: decay of Adam's mean of squares; 0.999 was published for ResNets.
        eps: Adam's epsilon; 1e-8 was published for ResNets.
        weight_decay: decoupled; only for arrays with two axes or more.
        max_gradient_norm: the L2 norm that all gradients together are clipped to; None for none.
        learning_rates: factors of the learning rate by regular expression; the first found in a
            path counts; 0 freezes.
        freeze_image: "none", "all", or the number of last blocks of the image tower to train,
            together with the layers after them.
        freeze_text: the same for the text tower.
    """

    name: str = "adamw"
    learning_rate: float = 5e-4
    warmup_steps: int = 2000
    total_steps: int = 100_000
    final_learning_rate: float = 0.0
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    max_gradient_norm: float | None = 1.0
    learning_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    freeze_image: str | int = "none"
    freeze_text: str | int = "none"

    def __post_init__(self):
        """Checks the fields.

        Raises:
            ValueError: a number is out of range, or a name or a regular expression is invalid.
        """
        if self.name not in ("adamw", "muon"):
            raise ValueError(f"name must be 'adamw' or 'muon'. Got {self.name!r}.")
        if not 0 <= self.warmup_steps <= self.total_steps or self.total_steps < 1:
            raise ValueError(
                "there must be a step or more, and no more of warm-up. "
                f"Got total_steps={self.total_steps} and warmup_steps={self.warmup_steps}."
            )
        for name in ("learning_rate", "final_learning_rate", "eps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more. Got {getattr(self, name)}.")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be from 0 to 1, and not 1. Got {getattr(self, name)}."
                )
        if self.max_gradient_norm is not None and not self.max_gradient_norm > 0:
            raise ValueError(f"max_gradient_norm must be above 0. Got {self.max_gradient_norm}.")
        for name in ("freeze_image", "freeze_text"):
            value = getattr(self, name)
            if value not in ("none", "all") and not (type(value) is int and value >= 0):
                raise ValueError(
                    f'{name} must be "none", "all", or how many of the last blocks to train. '
                    f"Got {value!r}."
                )
        for pattern, factor in self.learning_rates.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"learning_rates: {pattern!r} is no regular expression: {error}."
                ) from None
            if not factor >= 0:
                raise ValueError(f"learning_rates: {pattern!r} must be 0 or more. Got {factor}.")


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Returns the learning rate by step: a linear rise from 0, then half a cosine."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        # Optax needs at least one decay step; with a warm-up only, it is never reached.
        decay_steps=max(config.total_steps, config.warmup_steps + 1),
        end_value=config.final_learning_rate,
    )


def factors(config: OptimizerConfig, model: CLIPConfig) -> dict[str, float]:
    """Returns each parameter's factor of the learning rate by path; 0 for frozen ones.

    Raises:
        ValueError: an expression is found in no path, there are fewer blocks, or nothing is left
            to train.
    """
    paths = [path for path in parameter_shapes(model) if not _is_statistic(path)]
    patterns = {pattern: re.compile(pattern) for pattern in config.learning_rates}
    for pattern, expression in patterns.items():
        if not any(map(expression.search, paths)):
            raise ValueError(
                f"learning_rates: {pattern!r} is found in no parameter's path; "
                f"paths are such as {paths[0]!r}."
            )
    frozen = _frozen_image(config.freeze_image, model, paths)
    frozen |= _frozen_text(config.freeze_text, model, paths)

    def factor(path: str) -> float:
        if path in frozen:
            return 0.0
        found = (config.learning_rates[p] for p, e in patterns.items() if e.search(path))
        return float(next(found, 1.0))

    result = {path: factor(path) for path in paths}
    if not any(result.values()):
        raise ValueError("nothing is left to train: every parameter is frozen.")
    return result


def make_optimizer(config: OptimizerConfig, model: CLIPConfig) -> optax.GradientTransformation:
    """Returns an optimiser for a dictionary of parameters by path, which may have `logit_bias`.

    Frozen parameters take no memory in its state, and their gradients don't count in the norm.
    """
    by_path = factors(config, model)

    def labels(parameters: Parameters) -> dict[str, str]:
        return {path: "train" if by_path.get(path, 1.0) else "freeze" for path in parameters}

    def is_matrix(parameters: Parameters) -> Any:
        return jax.tree.map(lambda x: jnp.ndim(x) >= 2, parameters)

    def scaled(updates: Any, parameters: Any = None) -> Any:
        def scale(key: tuple, update: Any) -> Any:
            return update * by_path.get(key[0].key, 1.0)

        return jax.tree_util.tree_map_with_path(scale, updates)

    clip = (
        optax.identity()
        if config.max_gradient_norm is None
        else limit_norm(config.max_gradient_norm)
    )
    train = optax.chain(
        clip,
        _direction(config),
        optax.add_decayed_weights(config.weight_decay, is_matrix),
        optax.stateless(scaled),
        optax.scale_by_learning_rate(make_schedule(config)),
    )
    return optax.partition({"train": train, "freeze": optax.set_to_zero()}, labels)


def limit_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales all gradients by one factor, so that their L2 norm is at most `max_norm`.

    As `optax.clip_by_global_norm`, but without a division per number: XLA's CPU backend considers
    divisions too expensive to fuse with the use of their result, and writes all gradients again.
    """

    def limit(gradients: Any, parameters: Any = None) -> Any:
        factor = max_norm / jnp.maximum(optax.tree.norm(gradients), max_norm)
        return jax.tree.map(lambda x: x * factor, gradients)

    return optax.stateless(limit)


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns the transformation of gradients to steps of unit scale."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    if config.name == "adamw":
        return adam

    def labels(parameters: Parameters) -> dict[str, str]:
        # Muon isn't meant for embedding tables and projections into the joint space.
        return {
            path: "muon" if "/resblocks/" in path and jnp.ndim(value) == 2 else "adam"
            for path, value in parameters.items()
        }

    def to_adam_size(updates: Any, parameters: Any = None) -> Any:
        # The RMS of an orthogonal (m, n) is 1 / sqrt(max(m, n)); that of Adam's steps is about 0.2.
        return jax.tree.map(lambda x: 0.2 * max(x.shape) ** 0.5 * x, updates)

    def as_matrices(parameters: Any) -> Any:
        return jax.tree.map(lambda x: optax.contrib.MuonDimensionNumbers(), parameters)

    muon = optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=as_matrices),
        optax.stateless(to_adam_size),
    )
    return optax.partition({"muon": muon, "adam": adam}, labels)


def _is_statistic(path: str) -> bool:
    return path.endswith(("/mean", "/var", "/num_batches_tracked"))


def _frozen_image(freeze: str | int, model: CLIPConfig, paths: list[str]) -> set[str]:
    tower = [path for path in paths if path.startswith("visual/")]
    if isinstance(model.vision, ResNetConfig):
        blocks = [
            f"visual/layer{stage}/{i}/"
            for stage, depth in enumerate(model.vision.stage_depths, start=1)
            for i in range(depth)
        ]
        after = ("visual/attnpool/",)
    else:
        blocks = [f"visual/transformer/resblocks/{i}/" for i in range(model.vision.num_layers)]
        after = ("visual/ln_post/", "visual/proj", "visual/attnpool/")
    return _frozen("freeze_image", freeze, tower, blocks, after)


def _frozen_text(freeze: str | int, model: CLIPConfig, paths: list[str]) -> set[str]:
    tower = [path for path in paths if not path.startswith(("visual/", "logit_"))]
    blocks = [f"transformer/resblocks/{i}/" for i in range(model.text.num_layers)]
    return _frozen("freeze_text", freeze, tower, blocks, ("ln_final/", "text_projection"))


def _frozen(
    name: str, freeze: str | int, tower: list[str], blocks: list[str], after: tuple[str, ...]
) -> set[str]:
    """Returns the paths of a tower that are not trained."""
    if isinstance(freeze, str):
        return set(tower) if freeze == "all" else set()
    if freeze > len(blocks):
        raise ValueError(f"{name} must be at most {len(blocks)}, the tower's blocks. Got {freeze}.")
    trained = (*blocks[len(blocks) - freeze :], *after)
    return {path for path in tower if not path.startswith(trained)}
