"""Section 5: pairs a second and peak memory of a training step, against PyTorch with autocast.

Each way in a process of its own (`step.py`), in bfloat16, from arrays on the device to the loss,
with the largest power of two of pairs that fits: begun with a guess, halved where the memory
doesn't suffice, doubled where it was half empty. Captions of natural length: ours in groups of
their lengths, as `clip-jax train` does it, PyTorch's at 77 columns.
"""

import functools
import json
import os
import subprocess
import sys
from typing import Any

from benchmarks.accelerator import models
from benchmarks.accelerator.cases import Case, NotHere, OutOfMemory
from benchmarks.accelerator.step import STATUSES

OURS = "clip_jax"
CUDNN = "clip_jax, cuDNN attention"
REMATERIALIZED = "clip_jax, rematerialize"
MICRO = "clip_jax, 8 micro-batches"
BOTH = "clip_jax, 8 micro-batches, rematerialize"
TORCH, TORCH_COMPILED = "PyTorch SDPA, autocast", "PyTorch SDPA, autocast, compiled"
OPTIONS = {
    CUDNN: {"attention": "cudnn"},
    REMATERIALIZED: {"rematerialize": True},
    MICRO: {"micro_batches": 8},
    BOTH: {"rematerialize": True, "micro_batches": 8},
}
# Pairs to begin with on 80 GB, by the model and the way; micro-batches are of one eighth.
GUESSES = {
    models.L14: {OURS: 128, CUDNN: 128, TORCH: 128, TORCH_COMPILED: 128, REMATERIALIZED: 1024},
    models.B32: {OURS: 1024, CUDNN: 1024, TORCH: 1024, TORCH_COMPILED: 1024, REMATERIALIZED: 4096},
}
MICRO_GUESSES = {models.L14: 1024, models.B32: 4096}
# By worth. Seconds that a row takes at least: a start, and compiling.
PLAN = (
    (models.L14, OURS, 60),
    (models.L14, TORCH, 25),
    (models.L14, CUDNN, 60),
    (models.B32, OURS, 30),
    (models.B32, TORCH, 20),
    (models.L14, REMATERIALIZED, 60),
    (models.B32, REMATERIALIZED, 40),
    (models.L14, MICRO, 60),
    (models.B32, MICRO, 40),
    (models.L14, BOTH, 70),
    (models.B32, BOTH, 50),
    (models.L14, TORCH_COMPILED, 80),
    (models.B32, TORCH_COMPILED, 50),
)
TINY_PLAN = ((models.B32, OURS, 0), (models.B32, BOTH, 0), (models.B32, TORCH, 0))
# Nobody else wants the device then: JAX may have all but what the driver keeps.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
# Where the peak is below this share of the memory, twice as many pairs are tried.
HALF_EMPTY = 0.46


def cases(tiny: bool) -> list[Case]:
    planned = []
    for name, way, seconds in TINY_PLAN if tiny else PLAN:
        size = 16 if tiny else GUESSES[name].get(way, MICRO_GUESSES[name])
        run = functools.partial(_run, name, way, tiny)
        about = {"kind": "training", "model": name, "dtype": "bfloat16"}
        what = f"{models.label(name, tiny)} training step, bfloat16"
        planned.append(Case(what, way, run, size, seconds=seconds, about=about))
    return planned


def _run(name: str, way: str, tiny: bool, batch: int | None) -> dict[str, Any]:
    spec = {
        "model": name,
        "way": way,
        "batch": batch,
        "tiny": tiny,
        "rematerialize": False,
        "micro_batches": 1,
        **OPTIONS.get(way, {}),
    }
    command = [sys.executable, "-m", "benchmarks.accelerator.step", json.dumps(spec)]
    answer = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}
    )
    last = (answer.stdout.splitlines() or ["it said nothing"])[-1]
    if answer.returncode == STATUSES["out of memory"]:
        raise OutOfMemory(last)
    if answer.returncode == STATUSES["not here"]:
        raise NotHere(last)
    if answer.returncode:
        raise RuntimeError(f"the step's process ended with status {answer.returncode}: {last}")
    found = json.loads(last)
    peak, limit = found["peak_bytes"], found["limit_bytes"]
    memory = f"peak {peak / 2**30:.1f} GiB, " if peak else ""
    return {
        "value": found["rate"],
        "unit": "pairs/s",
        "peak_bytes": peak,
        "loss": found["loss"],
        "note": f"{memory}first step in {found['first']:.1f} s, loss {found['loss']:.4f}",
        "larger": bool(peak and limit and peak < HALF_EMPTY * limit),
    }
