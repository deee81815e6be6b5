"""Section 7: search over 10,000,000 x 512 float16, and a linear probe's sweep over 50,000 x 768.

The embeddings are a job's parts, written on the spot by all cores; where that takes too long, there
are fewer of them and the row says so. They are read from the system's memory, where they have just
been written. The scan alone is over a block that lies on the device.
"""

import concurrent.futures
import contextlib
import functools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accelerator.cases import Case, NotHere
from benchmarks.accelerator.timing import TINY, Contender, alone
from clip_jax.config import CLIPConfig, TextConfig, ViTConfig

DIM = 512
ROWS, PROBE_ROWS, PROBE_DIM = 10_000_000, 50_000, 768
# Rows of a part, and the seconds after which no other is begun.
PART, WRITING_SECONDS = 131_072, 12.0
NEAREST = 20
SEARCH, SCAN, SWEEP = "clip_jax.search", "the scan alone, on the device", "clip_jax.sweep"


def cases(tiny: bool) -> list[Case]:
    about = {"kind": "search"}
    rows = 4096 if tiny else ROWS
    probe = 400 if tiny else PROBE_ROWS
    width = 16 if tiny else PROBE_DIM
    return [
        Case(
            f"search, {DIM} columns of float16, {NEAREST} nearest",
            SEARCH,
            functools.partial(_search, tiny),
            rows,
            "rows",
            seconds=WRITING_SECONDS + 8,
            about=about,
        ),
        Case(
            f"sweep of a linear probe, {width} columns, 10 classes",
            SWEEP,
            functools.partial(_sweep, width, tiny),
            probe,
            "rows",
            seconds=12,
            about={"kind": "probe"},
        ),
        Case(
            f"search, {DIM} columns of float16, {NEAREST} nearest",
            SCAN,
            functools.partial(_scan, tiny),
            rows // 8,
            "rows",
            seconds=5,
            about=about,
        ),
    ]


def _search(tiny: bool, count: int | None) -> dict[str, Any]:
    from clip_jax.search import search

    assert count is not None
    folder = Path(tempfile.mkdtemp(prefix="accelerator-search-"))
    try:
        begin = time.perf_counter()
        model, out, written = finished_job(folder, count, PART if not tiny else 1024)
        writing = time.perf_counter() - begin
        taken = []
        for _ in range(2 if tiny else 3):
            begin = time.perf_counter()
            found = search(out, model, "a red bicycle", NEAREST)
            taken.append(time.perf_counter() - begin)
            if len(found) != NEAREST:
                raise RuntimeError(f"{len(found)} found instead of {NEAREST}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = statistics.median(taken[1:])
    fewer = f"of {written:,} rows, for want of time; " if written < count else ""
    return {
        "value": written / seconds,
        "unit": "rows/s",
        "rows": written,
        "query_seconds": seconds,
        "note": f"{fewer}{seconds:.2f} s a query, the first {taken[0]:.1f} s; {writing:.0f} s to "
        "write them",
    }


def finished_job(folder: Path, rows: int, part_rows: int) -> tuple[Any, Path, int]:
    """A model, the folder that an embedding job of so many rows would have left, and the rows.

    Of fewer rows where writing takes too long. Parts are one another's rows in another order of
    columns, so that no two rows are equal and few have to be drawn.
    """
    import pyarrow as pa

    from benchmarks.accelerator.weights import random_tree
    from clip_jax.embed import embed
    from clip_jax.embed.chunks import Chunk, divide
    from clip_jax.embed.parts import Part
    from clip_jax.embed.results import parts_of
    from clip_jax.nn import from_parameters

    text = TextConfig(width=64, num_layers=2, num_heads=1)
    config = CLIPConfig(DIM, ViTConfig(32, 8, 64, num_layers=2, num_heads=1), text)
    model = from_parameters(config, random_tree(config))
    source, out = folder / "texts.txt", folder / "job"
    source.write_text("\n" * 2)
    # Its job.json, by a job that stops at its first row, which is blank.
    with contextlib.suppress(ValueError):
        embed(
            source,
            model,
            out,
            dtype="float16",
            rows_per_part=part_rows,
            progress=False,
            max_errors=0,
        )
    target = parts_of(str(out), json.loads((out / "job.json").read_text()))
    drawn = np.random.default_rng(0).standard_normal((part_rows, DIM), np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    drawn = drawn.astype(np.float16)
    deadline = time.monotonic() + WRITING_SECONDS

    def write(chunk: Chunk) -> int:
        if time.monotonic() > deadline:
            return 0
        keys = pa.array(np.arange(chunk.begin, chunk.end)).cast(pa.string())
        matrix = np.ascontiguousarray(np.roll(drawn[: len(chunk)], chunk.number, axis=1))
        part = Part(pa.table({"key": keys, "caption": keys}), {"embedding": matrix})
        target.write(chunk, rows, part, [])
        return len(chunk)

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        written = sum(pool.map(write, divide(0, rows, part_rows)))
    return model, out, written


def _scan(tiny: bool, count: int | None) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    assert count is not None
    rows = jax.random.normal(jax.random.key(0), (count, DIM), jnp.float16)
    query = jax.random.normal(jax.random.key(1), (DIM,), jnp.float32)

    @jax.jit
    def best(rows: Any, query: Any) -> Any:
        scores = (rows.astype(jnp.float32) * query[None]).sum(axis=-1)
        return jax.lax.top_k(scores, NEAREST)

    def run(calls: int) -> None:
        jax.block_until_ready([best(rows, query) for _ in range(calls)])

    row = alone(Contender(SCAN, run, count), "rows/s", **(TINY if tiny else {}))
    gigabytes = row["value"] * DIM * 2 / 1e9
    return row | {"note": f"{gigabytes:,.0f} GB/s"}


def _sweep(width: int, tiny: bool, count: int | None) -> dict[str, Any]:
    from clip_jax.evaluate import sweep

    assert count is not None
    try:
        from benchmarks.evaluate import drawn
    except ModuleNotFoundError as error:
        raise NotHere(str(error)) from None
    features, labels = drawn(count * 6 // 5, width, 10)
    features = features.astype(np.float32)
    data = features[:count], labels[:count], features[count:], labels[count:]
    taken = []
    trials: Sequence[Any] = ()
    for _ in range(1 if tiny else 2):
        begin = time.perf_counter()
        trials = sweep(*data, max_iter=20 if tiny else 1000).trials
        taken.append(time.perf_counter() - begin)
    iterations = sum(trial.num_iterations for trial in trials)
    best = max(trials, key=lambda trial: trial.accuracy)
    return {
        "value": taken[-1],
        "unit": "s",
        "note": f"{len(trials)} fits, {iterations} iterations; {taken[0]:.1f} s the first time; "
        f"best C = {best.C:.3g}, {best.accuracy:.1%}",
    }
