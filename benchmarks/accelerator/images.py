"""Section 2: images a second, ours with every choice that there is against PyTorch's.

Each row is measured in turns with our tower as it comes, the base, so the ratios of a group have
one denominator. "On the device" means inputs that lie there, pixels for us and normalised floats
for PyTorch, and results that stay there; "host to host" means pixels from the host and embeddings
back on it, ours by the public encoder.
"""

import functools
from typing import Any

from benchmarks.accelerator import keep, models, ours, peers_of_images
from benchmarks.accelerator.cases import Case
from benchmarks.accelerator.flops import image_flops, peak_gflops
from benchmarks.accelerator.names import (
    ALL_ROWS,
    COMPILED,
    COMPILED_HOST,
    CUDNN,
    EAGER,
    ENCODER,
    FLOATS,
    OURS,
    PLAIN,
    REDUCED,
    SCANNED,
    SINGLE_QUERY,
    TOKAMAX,
    TRITON,
    XLA,
)
from benchmarks.accelerator.timing import TINY, Contender, alone, beside
from clip_jax.catalog import lookup

UNIT = "images/s"
DTYPE = "bfloat16"
VARIANTS = {
    OURS: ours.Variant(),
    XLA: ours.Variant(attention="xla"),
    CUDNN: ours.Variant(attention="cudnn"),
    TOKAMAX: ours.Variant(attention="tokamax"),
    ALL_ROWS: ours.Variant(is_pooled=False),
    SINGLE_QUERY: ours.Variant(is_single_query=True),
    SCANNED: ours.Variant(is_scanned=True),
    PLAIN: ours.Variant(is_plain=True),
    TRITON: ours.Variant(has_triton=True),
}
# Model, batch, contenders: by worth, so that what is not reached matters least.
PLAN = (
    (models.L14, 256, (OURS, COMPILED, XLA, CUDNN)),
    (models.B32, 256, (OURS, COMPILED, CUDNN, XLA)),
    (models.B32, 1024, (OURS, COMPILED)),
    (models.L14, 256, (ENCODER, PLAIN, TRITON, TOKAMAX)),
    (models.B16, 256, (OURS, COMPILED, XLA, CUDNN)),
    (models.L14_336, 256, (OURS, COMPILED)),
    (models.B32, 256, (PLAIN, TRITON, TOKAMAX, EAGER, ENCODER)),
    (models.RN50, 256, (OURS, COMPILED)),
    (models.B32, 1, (OURS, TRITON, CUDNN, REDUCED)),
    (models.B32, 32, (OURS, COMPILED, TRITON)),
    (models.L14, 256, (SCANNED, SINGLE_QUERY, ALL_ROWS, FLOATS, EAGER, COMPILED_HOST)),
    (models.B32, 256, (SCANNED, SINGLE_QUERY, ALL_ROWS, FLOATS)),
    (models.RN50, 256, (TRITON, EAGER, ENCODER)),
    (models.L14_336, 256, (XLA, CUDNN, TOKAMAX, EAGER)),
    (models.B16, 256, (TOKAMAX, EAGER)),
)
# Tiny, each way of computing once.
TINY_PLAN = (
    (models.L14, 8, (OURS, XLA, CUDNN, COMPILED, ENCODER, SCANNED, SINGLE_QUERY)),
    (models.L14, 8, (ALL_ROWS, FLOATS, TOKAMAX, EAGER, COMPILED_HOST, PLAIN, TRITON)),
    (models.B32, 1, (OURS, REDUCED)),
    (models.RN50, 2, (OURS, EAGER)),
)
# Seconds that a row takes at least: compiling, mostly.
SECONDS = {models.B32: 10, models.B16: 10, models.L14: 18, models.L14_336: 25, models.RN50: 15}
COMPILES = (COMPILED, COMPILED_HOST, REDUCED)


def cases(tiny: bool) -> list[Case]:
    planned = []
    for name, batch, contenders in TINY_PLAN if tiny else PLAN:
        for contender in contenders:
            run = functools.partial(_run, name, contender, tiny)
            seconds = SECONDS[name] * (2 if contender in COMPILES else 1)
            planned.append(
                Case(
                    f"{models.label(name, tiny)} images, {DTYPE}",
                    contender,
                    run,
                    batch,
                    seconds=5 if contender == EAGER else seconds,
                    about={
                        "kind": "images",
                        "model": name,
                        "dtype": DTYPE,
                        "tokens": models.tokens_of(models.config_of(name, tiny)),
                    },
                )
            )
    return planned


def _run(name: str, contender: str, tiny: bool, batch: int | None) -> dict[str, Any]:
    assert batch is not None
    turns = TINY if tiny else {}
    base = keep.once(("base", name, batch), lambda: _made(name, OURS, batch, tiny))
    if contender == OURS:
        row = alone(base, UNIT, **turns)
    else:
        row = beside(base, _made(name, contender, batch, tiny), UNIT, **turns)
    if contender in VARIANTS:
        row["attention"] = VARIANTS[contender].attention_on_device(models.model_of(name, tiny))
    return row | _share(name, row["value"], tiny)


def _made(name: str, contender: str, batch: int, tiny: bool) -> Contender:
    pixels = models.pixels_of(models.config_of(name, tiny), batch)
    if contender in VARIANTS:
        model = models.model_of(name, tiny)
        return ours.on_device(contender, model, VARIANTS[contender], pixels)
    if contender == FLOATS:
        floats = models.normalized(pixels)
        return ours.on_device(contender, models.model_of(name, tiny), ours.Variant(), floats)
    if contender == ENCODER:
        model = models.model_of(name, tiny)
        encoder = ours.encoder(model, batch, dtype=DTYPE, precision="default")
        return ours.from_host(contender, encoder.images, _several(pixels))
    return peers_of_images.contender_of(name, contender, pixels, DTYPE, tiny)


def _several(pixels: Any) -> Any:
    """Four batches a call, so that the next is on its way while one is computed."""
    import numpy as np

    return np.concatenate([pixels] * 4)


def _share(name: str, rate: float, tiny: bool) -> dict[str, Any]:
    """Which share of the peak, measured beside it, a rate is."""
    gflops = 0.0 if tiny else lookup(name).gflops
    flops = image_flops(models.config_of(name, tiny), catalog_gflops=gflops)
    peak = peak_gflops(DTYPE, tiny=tiny)
    return {"peak_gflops": peak, "share": rate * flops / 1e9 / peak}
