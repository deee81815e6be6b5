"""Checks of a job's options, before anything is read, and of its rows, once they are known."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np

from clip_jax.embed.counts import Counts
from clip_jax.embed.device_resize import Resizing
from clip_jax.embed.plan import Plan
from clip_jax.embed.setup import PRESETS, TOWERS
from clip_jax.messages import counted
from clip_jax.sources import Where

EngineName = Literal["local", "ray"]
ENGINES = ("local", "ray")


def check_options(
    what: str | None,
    preset: str,
    dtype: str,
    format: str,
    rows_per_part: object,
    max_errors: int | None,
    shard: Any,
) -> None:
    """Checks the options of `embed`.

    Raises:
        ValueError: one is out of range.
    """
    choices: Sequence[tuple[str, object, tuple]] = (
        ("what", what, (None, *TOWERS)),
        ("preset", preset, tuple(PRESETS)),
        ("dtype", dtype, ("float32", "float16")),
        ("format", format, ("parquet", "npy")),
    )
    for name, value, known in choices:
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}. Got {value!r}.")
    if type(rows_per_part) is not int:
        raise ValueError(f"rows_per_part must be an int. Got {rows_per_part!r}.")
    if rows_per_part < 1:
        raise ValueError(f"rows_per_part must be at least 1. Got {rows_per_part}.")
    if shard is not None and [type(number) for number in shard] != [int, int]:
        raise ValueError(f"shard must be two ints, such as (0, 2). Got {shard!r}.")
    if max_errors is not None and max_errors < 0:
        raise ValueError(f"max_errors must be at least 0. Got {max_errors}.")


def check_engine(
    engine: str, address: str | None, encoders: int | None, decoders: int | None, resize: str
) -> None:
    """Checks the options of `embed` that say who runs the chunks, and who resizes.

    Raises:
        ValueError: one is out of range, or for another engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}. Got {engine!r}.")
    if resize not in get_args(Resizing):
        raise ValueError(f"resize must be 'host' or 'device'. Got {resize!r}.")
    if engine == "ray" and resize == "device":
        raise ValueError(
            "resize='device' is for engine='local': with Ray, pictures are resized where they are "
            "decoded, on any number of machines"
        )
    given = {"address": address, "encoders": encoders, "decoders": decoders}
    if engine != "ray" and (names := [name for name, value in given.items() if value is not None]):
        raise ValueError(f"{', '.join(names)}: for engine='ray'. Got engine={engine!r}.")
    check_counts(encoders=encoders, decoders=decoders)
    if engine == "ray" and jax.distributed.is_initialized():
        raise ValueError(
            "engine='ray' is started by one process, and jax.distributed has joined several: "
            "leave it out, or start one process"
        )


def check_counts(**counts: object) -> None:
    """Checks options that are None or a number of things.

    Raises:
        ValueError: one is neither.
    """
    for name, given in counts.items():
        count = as_int(given)
        if count is not None and (type(count) is not int or count < 1):
            raise ValueError(f"{name} must be an int of at least 1. Got {given!r}.")


def as_int(number: Any) -> Any:
    """Returns NumPy's integers as an int; anything else as it is."""
    return int(number) if isinstance(number, np.integer) else number


def require_pyarrow() -> None:
    """Checks that pyarrow is there.

    Raises:
        ModuleNotFoundError: it isn't; names the extra.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "embedding writes Parquet with pyarrow: pip install 'clip-jax-flax[embed]'"
        ) from None


def check_some(source: str, plan: Plan, where: Where) -> None:
    """Checks that there are rows, given the conditions that they must fit.

    Raises:
        ValueError: the whole input was seen and has none.
    """
    if plan.is_empty:
        what = f"no row of {source} fits where {where}" if where else f"{source} is empty"
        raise ValueError(f"{what}: there is no row to embed")


def check_errors(counts: Counts, max_errors: int | None) -> None:
    """Checks that not too many rows have failed.

    Raises:
        ValueError: they have.
    """
    count = counts.errors + counts.errors_before
    if max_errors is not None and count > max_errors:
        last = f"the last one: {counts.last_error}" if counts.last_error else "all in earlier runs"
        raise ValueError(
            f"{counted(count, 'row')} could not be embedded, more than max_errors={max_errors}; "
            f"{last}. Parts "
            "that are finished count."
        )
