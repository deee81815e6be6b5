"""Section 8: seconds from a process's start to its first embedding, by what the cache holds.

A model in a native folder, loaded and asked for one image by a new process each time: without a
compile cache, with an empty one, and with what the process before has left there.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.accelerator import keep, models
from benchmarks.accelerator.cases import Case

NONE, EMPTY, FULL = "no cache", "an empty cache", "a full cache"
_CODE = """
from benchmarks.accelerator.processes import die_with_parent
die_with_parent()
import json, sys, time
folder, cache = sys.argv[1:]
import numpy as np
import clip_jax
imported = time.monotonic()
model, _ = clip_jax.load(folder, dtype="bfloat16", precision="default")
loaded = time.monotonic()
n = model.config.vision.image_size
encoder = clip_jax.Encoder(model, compile_cache=cache or None)
encoder.images(np.zeros((1, n, n, 3), np.uint8))
print(json.dumps([imported, loaded, time.monotonic()]))
"""

_SAVE = """
from benchmarks.accelerator.processes import die_with_parent
die_with_parent()
import sys
import clip_jax
from benchmarks.accelerator import models
name, tiny, folder = sys.argv[1:]
clip_jax.save(models.model_of(name, bool(tiny)), folder)
"""


def cases(tiny: bool) -> list[Case]:
    planned = []
    for name in (models.B32,) if tiny else (models.B32, models.L14):
        for way in (EMPTY, FULL, NONE):
            planned.append(
                Case(
                    f"{models.label(name, tiny)} first embedding of a process, bfloat16",
                    f"clip_jax.Encoder, {way}",
                    functools.partial(_run, name, way, tiny),
                    seconds=12,
                    about={"kind": "first", "model": name},
                )
            )
    return planned


def _folder(name: str, tiny: bool) -> Path:
    """The model on disk, by a process that leaves the device alone."""
    folder = Path(tempfile.mkdtemp(prefix="accelerator-model-"))
    command = [sys.executable, "-c", _SAVE, name, "tiny" if tiny else "", f"{folder}/model"]
    subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    return folder


def _run(name: str, way: str, tiny: bool, _: int | None) -> dict[str, Any]:
    folder = keep.once(("folder", name), lambda: _folder(name, tiny))
    cache = folder / "cache"
    found = len(list(cache.glob("*"))) if cache.exists() else 0
    command = [sys.executable, "-c", _CODE, f"{folder}/model", "" if way == NONE else str(cache)]
    begin = time.monotonic()
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if answer.returncode:
        raise RuntimeError(f"the process ended with status {answer.returncode}")
    imported, loaded, done = json.loads(answer.stdout.splitlines()[-1])
    kept = f"; found {found} files in the cache" if way == FULL else ""
    return {
        "value": done - begin,
        "unit": "s",
        "way": way,
        "note": f"imported after {imported - begin:.1f} s, loaded after {loaded - begin:.1f} s"
        + kept,
    }
