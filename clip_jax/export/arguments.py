"""Checks what is asked of an export, before anything is traced."""

import dataclasses
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from clip_jax.backends.adapted import is_plain
from clip_jax.config import TextConfig
from clip_jax.export.manifest import FORMAT, NAME
from clip_jax.export.programs import ImageInput
from clip_jax.inputs import check_ends
from clip_jax.nn import CLIP
from clip_jax.nn.clip import check_dtype, check_model
from clip_jax.sentence_piece import AnyTokenizer, check_belongs

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
MOST_ROWS = (1 << 31) - 1  # JAX counts rows in 32 bits
MOST_PIXELS_A_SIDE = 99_999  # of a frame, which no model has to take


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of an export to StableHLO, checked.

    Attributes:
        platforms: the platforms to lower for.
        batch: rows of a batch; None for any number.
        frame_size: height and width of uint8 frames; None for images of the model's size.
        dtype: dtype in which the towers compute.
    """

    platforms: tuple[str, ...]
    batch: int | None
    frame_size: tuple[int, int] | None
    dtype: np.dtype

    @classmethod
    def of(
        cls,
        *,
        platforms: Sequence[str],
        batch: int | None,
        image_input: str,
        frame_size: tuple[int, int] | None,
        dtype: DTypeLike,
        weights: str,
    ) -> "Options":
        """Returns the options; raises ValueError if one is wrong, or they don't go together."""
        names, computed = _as_platforms(platforms), check_dtype(dtype)
        if computed == jnp.float16 and "tpu" in names:
            raise ValueError(
                "TPUs don't compute in float16: give bfloat16, or platforms without tpu."
            )
        if image_input not in get_args(ImageInput):
            raise ValueError(f'image_input must be "pixels" or "frames". Got {image_input!r}.')
        if (image_input == "frames") != (frame_size is not None):
            raise ValueError(
                'image_input="frames" and frame_size=(height, width) go together. '
                f"Got {image_input!r} and {frame_size}."
            )
        if weights not in ("beside", "inside"):
            raise ValueError(f'weights must be "beside" or "inside". Got {weights!r}.')
        sides = None if frame_size is None else _as_frame_size(frame_size)
        return cls(names, as_batch(batch), sides, computed)


def check_evaluating(model: CLIP) -> None:
    """Raises TypeError if it is no model of both towers.

    Raises ValueError if it is in training mode, or has layers that its configuration doesn't say,
    in place of which its own would be exported.
    """
    check_model(model)
    if not model.use_running_average:
        raise ValueError("the model is in training mode: call model.eval() first.")
    if not is_plain(model):
        raise ValueError(
            "the model has been adapted, by a class or layers of its own, which export doesn't "
            "know: export clip_jax.from_parameters(model.config, parameters), with what was "
            "learned, such as LoRA's products, added to the kernels."
        )


def check_tokenizer(tokenizer: AnyTokenizer | None, config: TextConfig) -> None:
    """Checks a tokenizer, if there is one, that is to be written beside a model's programs.

    Raises:
        TypeError: it is no tokenizer.
        ValueError: it is another model's, or has tokens of which nothing says if a text ends there.
    """
    check_belongs(tokenizer, config.vocab_size)
    if tokenizer is not None:
        check_ends(tokenizer.vocab_size, config)


def check_cleaning(tokenizer: AnyTokenizer | None) -> None:
    """Raises ValueError for a cleaning of CLIP's texts that no exported folder keeps."""
    if getattr(tokenizer, "rules", "openai") == "huggingface":
        raise ValueError(
            "texts of an exported folder are cleaned as OpenAI's, and this tokenizer cleans them "
            "as Hugging Face's: give one that was loaded without preprocessing=, and the ids that "
            "this one makes to the exported model in place of strings."
        )


def as_batch(batch: int | None) -> int | None:
    """Returns a number of rows, or None for any; raises ValueError for anything else."""
    if batch is None:
        return None
    try:
        rows = 0 if isinstance(batch, bool) else operator.index(batch)
    except TypeError:
        rows = 0
    if not 1 <= rows <= MOST_ROWS:
        raise ValueError(
            f"batch must be a whole number from 1 to {MOST_ROWS:,}, or None for any number. "
            f"Got {batch!r}."
        )
    return rows


def check_replaceable(folder: Path, replace: bool) -> None:
    """Raises FileExistsError if the folder is something else, or not to be replaced."""
    if not os.path.lexists(folder) or (folder.is_dir() and not os.listdir(folder)):
        return
    manifest = folder / NAME
    is_ours = manifest.is_file() and FORMAT.encode() in manifest.read_bytes()[:1000]
    if not is_ours:
        raise FileExistsError(
            f"{folder} exists and is no exported model: choose another name, or remove it first"
        )
    if not replace:
        raise FileExistsError(f"{folder} exists already: choose another name, or remove it first")


def check_flatbuffers() -> None:
    """Raises ModuleNotFoundError if JAX lacks what it serialises programs with."""
    try:
        import flatbuffers  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "jax.export keeps programs with flatbuffers: pip install 'clip-jax-flax[export]'",
            name="flatbuffers",
        ) from None


def _as_platforms(platforms: Sequence[str]) -> tuple[str, ...]:
    try:
        names: list[Any] = [platforms] if isinstance(platforms, str) else list(platforms)
    except TypeError:
        names = [platforms]
    if unknown := [name for name in names if name not in PLATFORMS]:
        hint = "; for GPUs say cuda or rocm" if "gpu" in unknown else ""
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}{hint}. Got {unknown}.")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"platforms must be named once each, at least one. Got {names}.")
    return tuple(names)


def _as_frame_size(size: Any) -> tuple[int, int]:
    try:
        height, width = (0 if isinstance(side, bool) else operator.index(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    if not (1 <= height <= MOST_PIXELS_A_SIDE and 1 <= width <= MOST_PIXELS_A_SIDE):
        raise ValueError(
            f"frame_size must be a height and a width in whole pixels, 1 to "
            f"{MOST_PIXELS_A_SIDE:,} each. Got {size!r}."
        )
    return height, width
