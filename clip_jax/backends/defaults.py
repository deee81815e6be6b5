"""Defaults chosen by measurement, each with the figure behind it.

A row is added or changed only after a measurement by `benchmarks/accelerator`; all results are kept
in `benchmarks/results/`.
"""

import dataclasses
from typing import Literal

import numpy as np

# XLA's own operations, or cuDNN's fused kernel, which needs half precision.
Attention = Literal["xla", "cudnn"]


@dataclasses.dataclass(frozen=True)
class Default:
    """A row of the table of attention.

    Attributes:
        value: the implementation.
        platform: the platform, as `jax.Device.platform` names it; None for any.
        card: a part of `jax.Device.device_kind`; None for any.
        dtypes: names of the dtypes in which the towers compute; empty for any.
        min_tokens: the least number of tokens in a sequence.
        reason: the figure, the card and the versions; or that nothing was measured.
    """

    value: Attention
    platform: str | None = None
    card: str | None = None
    dtypes: tuple[str, ...] = ()
    min_tokens: int = 0
    reason: str = ""

    def fits(self, platform: str, card: str, dtype: np.dtype, num_tokens: int) -> bool:
        """Whether the row applies to such sequences on such devices."""
        return (
            self.platform in (None, platform)
            and (self.card is None or self.card in card)
            and (not self.dtypes or dtype.name in self.dtypes)
            and num_tokens >= self.min_tokens
        )


# The first row that fits is used.
ATTENTION = (
    Default("xla", platform="cpu", reason="there is no other"),
    Default("xla", reason="not measured: no GPU or TPU has run benchmarks/accelerator yet"),
)

# Default rows of a batch per device: on CPUs measured with ViT-B/32 to L/14
# (benchmarks/results/encode.md); on others not measured.
BATCH_SIZE = {"cpu": 32}
BATCH_SIZE_ELSEWHERE = 256


def default_attention(platform: str, card: str, dtype: np.dtype, num_tokens: int) -> Default:
    """Returns the row of the table for sequences of `num_tokens` tokens.

    Args:
        platform: the platform, as `jax.Device.platform` names it.
        card: the kind of device, as `jax.Device.device_kind` names it.
        dtype: dtype in which the towers compute.
        num_tokens: the number of tokens in a sequence.
    """
    return next(row for row in ATTENTION if row.fits(platform, card, dtype, num_tokens))


def default_batch_size(platform: str) -> int:
    """Returns the default rows of a batch per device of a platform."""
    return BATCH_SIZE.get(platform, BATCH_SIZE_ELSEWHERE)
