"""Section 6: the whole embedding job against the encoder alone.

20,000 JPEGs of 500 x 375 in WebDataset's tar files, made on the spot; bfloat16 as the preset "fast"
has it. The encoder alone goes from pixels on the host to embeddings on it, with the job's program:
it is compiled for the one and comes from a cache for the other, so that neither's time holds it.
"""

import functools
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.accelerator import keep, models
from benchmarks.accelerator.cases import Case
from benchmarks.accelerator.timing import TINY, Contender, alone, take_turns

ALONE, JOB = "clip_jax.Encoder, host to host", "clip_jax.embed"
ON_DEVICE = 'clip_jax.embed, resize="device"'
UNIT = "rows/s"


def cases(tiny: bool) -> list[Case]:
    planned = []
    for name in (models.B32,) if tiny else (models.L14, models.B32):
        contenders = [(ALONE, _alone, 20), (JOB, _job, 25)]
        if name == models.B32:  # for which the host has the most to do
            contenders.append((ON_DEVICE, functools.partial(_job, resize="device"), 20))
        for contender, run, seconds in contenders:
            planned.append(
                Case(
                    f"{models.label(name, tiny)} embedding job, bfloat16",
                    contender,
                    functools.partial(run, name, tiny),
                    48 if tiny else 20_000,
                    "rows",
                    seconds=seconds,
                    about={"kind": "job", "model": name},
                )
            )
    return planned


def _batch(tiny: bool) -> int:
    return 16 if tiny else 256


def _model(name: str, tiny: bool) -> Any:
    from clip_jax.nn import from_parameters

    def make() -> Any:
        return from_parameters(
            models.config_of(name, tiny),
            models.tree_of(name, tiny),
            dtype="bfloat16",
            precision="default",
        )

    return keep.once(("fast", name), make)


def _encoder(name: str, tiny: bool) -> Contender:
    import clip_jax

    _keep_programs()
    # As the job makes it, so that the program is the same.
    encoder = clip_jax.Encoder(
        _model(name, tiny), batch_size=_batch(tiny), normalize=True, whole_batches=True
    )
    pixels = models.pixels_of(models.config_of(name, tiny), _batch(tiny) * (1 if tiny else 8))
    begin = time.perf_counter()
    encoder.images(pixels[: _batch(tiny)])
    compiling = time.perf_counter() - begin

    def run(calls: int) -> None:
        for _ in range(calls):
            encoder.images(pixels)

    return Contender(ALONE, run, len(pixels), compile_seconds=compiling)


def _alone(name: str, tiny: bool, count: int | None) -> dict[str, Any]:
    encoder = keep.once(("alone", name), lambda: _encoder(name, tiny))
    return alone(encoder, UNIT, **(TINY if tiny else {}))


def _job(name: str, tiny: bool, count: int | None, resize: Any = "host") -> dict[str, Any]:
    from clip_jax.embed import embed

    assert count is not None
    begin = time.perf_counter()
    source = keep.once(("pictures", count), lambda: _pictures(count, tiny))
    made = time.perf_counter() - begin
    encoder = keep.once(("alone", name), lambda: _encoder(name, tiny))
    out = tempfile.mkdtemp(prefix="accelerator-job-")
    try:
        begin = time.perf_counter()
        summary = embed(
            source,
            _model(name, tiny),
            f"{out}/job",
            batch_size=_batch(tiny),
            dtype="float16",
            resize=resize,
            progress=False,
        )
        whole = time.perf_counter() - begin
    finally:
        shutil.rmtree(out, ignore_errors=True)
    if summary.errors or summary.rows != count:
        raise RuntimeError(f"{summary.rows} of {count} rows, {summary.errors} errors")
    # The encoder once more, since what it is compared with has run some seconds later.
    (taken,) = take_turns([encoder], **(TINY if tiny else {"rounds": 3}))
    bare = encoder.rows / sorted(taken)[len(taken) // 2]
    rate = summary.rows / summary.seconds
    return {
        "value": rate,
        "unit": UNIT,
        "ratio": rate / bare,
        "beside": ALONE,
        "beside_value": bare,
        "bottleneck": summary.bottleneck,
        "note": (
            f"bottleneck: {summary.bottleneck}; waited {summary.waited:.1f} s of "
            f"{summary.seconds:.1f}, device {summary.device:.1f} s, blocked "
            f"{summary.blocked:.1f} s; {whole:.1f} s with the model's "
            f"hash; pictures made in {made:.1f} s"
        ),
    }


def _pictures(count: int, tiny: bool) -> str:
    from benchmarks.accelerator.pictures import make_shards

    # Removed with all that this process has in its temporary folder.
    return make_shards(Path(tempfile.mkdtemp()), count, **({"distinct": 8} if tiny else {}))


def _keep_programs() -> None:
    """Has JAX keep what it compiles from now on, in a folder of this process's own."""
    import jax

    folder = keep.once("programs", tempfile.mkdtemp)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
