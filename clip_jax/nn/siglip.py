"""SigLIP: CLIP's two towers with a probability for each pair by itself (Zhai et al. 2023)."""

import math
from typing import Any

import jax
from flax import nnx
from jax.nn.initializers import constant
from jaxtyping import Array, Float

from clip_jax.config import CLIPConfig, SigLIPConfig
from clip_jax.nn.clip import CLIP
from clip_jax.nn.linear import parameter


class SigLIP(CLIP):
    """A SigLIP or SigLIP 2 model; everything that takes a `CLIP` takes it too.

    What its towers have otherwise is in their configurations: attention pooling from a learned
    probe, no class token, a text without a mask that is pooled at its last position. So its texts
    always have the full context length, padding included.
    """

    config_class = SigLIPConfig

    def __init__(self, config: SigLIPConfig, *, rngs: nnx.Rngs | None = None, **options: Any):
        """Builds a model, as `CLIP`."""
        super().__init__(config, rngs=rngs, **options)
        self.logit_scale = parameter(rngs, constant(math.log(10)))

    @staticmethod
    def probabilities(logits: Float[Array, "i t"]) -> Float[Array, "i t"]:
        """Returns the probability of each pair by itself: the sigmoid of its logit."""
        return jax.nn.sigmoid(logits)


def build(config: CLIPConfig, **options: Any) -> CLIP:
    """Builds a model of the family of its configuration: `SigLIP` or `CLIP`, with their arguments.

    Example:
        >>> import clip_jax
        >>> model, _ = clip_jax.load("emoji")
        >>> type(build(model.config)).__name__  # without rngs, of shapes alone
        'CLIP'
    """
    return (
        SigLIP(config, **options) if isinstance(config, SigLIPConfig) else CLIP(config, **options)
    )
