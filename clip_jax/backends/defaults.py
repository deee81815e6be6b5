"""Defaults by measurement: what is taken where nobody says it, each with the figure behind it.

A row is added, or its value changed, when `benchmarks/accelerator` has measured it; both results
are kept in `benchmarks/results/`.
"""

import dataclasses
from typing import Literal

import numpy as np

# Of attention: XLA's own operations, or cuDNN's fused kernel, which takes half precision only.
Attention = Literal["xla", "cudnn"]


@dataclasses.dataclass(frozen=True)
class Default:
    """A row of the table of attention.

    Attributes:
        value: what is taken.
        platform: of the devices, as `jax.Device.platform` says it; None is any.
        card: what is part of the name that `jax.Device.device_kind` gives; None is any.
        dtypes: in which the towers compute; empty is any.
        min_tokens: of a sequence, from which on it is taken.
        reason: the figure, the card and the versions; or that there is none.
    """

    value: Attention
    platform: str | None = None
    card: str | None = None
    dtypes: tuple[str, ...] = ()
    min_tokens: int = 0
    reason: str = ""

    def fits(self, platform: str, card: str, dtype: np.dtype, num_tokens: int) -> bool:
        """Whether the row is for such sequences on such devices."""
        return (
            self.platform in (None, platform)
            and (self.card is None or self.card in card)
            and (not self.dtypes or dtype.name in self.dtypes)
            and num_tokens >= self.min_tokens
        )


# The first row that fits is taken.
ATTENTION = (
    Default("xla", platform="cpu", reason="there is no other"),
    Default("xla", reason="not measured: no GPU or TPU has run benchmarks/accelerator yet"),
)

# Rows of a batch for each device, where none is given: on CPUs measured with ViT-B/32 to L/14
# (benchmarks/results/encode.md); on others not measured.
BATCH_SIZE = {"cpu": 32}
BATCH_SIZE_ELSEWHERE = 256


def default_attention(platform: str, card: str, dtype: np.dtype, num_tokens: int) -> Default:
    """The row of the table for sequences of so many tokens.

    Args:
        platform: of the devices, as `jax.Device.platform` says it.
        card: their kind, as `jax.Device.device_kind` says it.
        dtype: in which the towers compute.
        num_tokens: of a sequence.
    """
    return next(row for row in ATTENTION if row.fits(platform, card, dtype, num_tokens))


def default_batch_size(platform: str) -> int:
    """Rows of a batch for each device of a platform."""
    return BATCH_SIZE.get(platform, BATCH_SIZE_ELSEWHERE)
