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
    Default(
        "cudnn",
        platform="gpu",
        card="H200",
        dtypes=("bfloat16", "float16"),
        min_tokens=197,
        reason="in bfloat16 1.32 times as fast at 197 tokens, 1.35 at 257 and 1.01 at 50: "
        "jax 0.11.2, accelerator-h200.md",
    ),
    Default(
        "cudnn",
        platform="gpu",
        card="H100",
        dtypes=("bfloat16", "float16"),
        min_tokens=197,
        reason="as on the H200, which is the same processor with faster memory",
    ),
    Default("xla", reason="not measured on this card by benchmarks/accelerator yet"),
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


def compiler_options(attention: Attention) -> dict[str, str | bool]:
    """Returns XLA's options for the programs of a tower with this attention.

    Beside cuDNN's attention Triton's matrix products don't pay: without them XLA has cuBLAS add
    biases and residuals within its products, and compiles in two thirds of the time. ViT-L/14 in
    bfloat16 is 1.07 times as fast: H200, jax 0.11.2, accelerator-h200.md.
    """
    return {"xla_gpu_enable_triton_gemm": False} if attention == "cudnn" else {}


def default_batch_size(platform: str) -> int:
    """Returns the default rows of a batch per device of a platform."""
    return BATCH_SIZE.get(platform, BATCH_SIZE_ELSEWHERE)
