"""Where an encoder's time goes on a CPU: operations of the compiled program, from JAX's profiler.

Also what a scan over the layers would give: the seconds to compile, and the milliseconds to run.

    python -m benchmarks.encode_profile --out benchmarks/results/encode_profile.md
"""

import argparse
import collections
import glob
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import clip_jax
from benchmarks import report
from clip_jax.catalog import lookup
from clip_jax.placement import OneDevice
from tests.models import random_images, random_parameters, to_float

CASES = [("ViT-B/32", 1), ("ViT-B/32", 32), ("ViT-L/14", 8), ("RN50", 1), ("RN50", 32)]
CALLS = 8
SHOWN = 14  # rows of a table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="Markdown")
    arguments = parser.parse_args()
    parts = ["# Where the time of encoding goes", report.header()]
    parts.append(
        "Milliseconds a call that the threads of XLA spent in the operations of one kind and "
        f"shape, the mean of {CALLS} calls under the profiler, the largest {SHOWN}. Two threads "
        "may be in one operation at a time, so the sum may be more than the call takes, which is "
        "a few per cent longer than without the profiler. `dot_general` are matrix products, with "
        "their shape (rows, outputs); other names are those of the last step of a loop that does "
        "several (`sub` and `add` in a ResNet: Winograd's transforms)."
    )
    for name, batch in CASES:
        print(name, batch, file=sys.stderr, flush=True)
        config = lookup(name).config
        model = clip_jax.from_parameters(config, random_parameters(config))
        images = np.array(to_float(random_images(batch, config.vision.image_size)))
        seconds, rows = profile(model, images)
        parts += [
            f"## {name}, batch {batch}: {1e3 * seconds:,.1f} ms",
            report.table(rows, ["ms a call", "times", "operation", "shape"]),
        ]
    parts += ["## Scan over layers", scan_trial()]
    report.write(arguments.out, "\n\n".join(parts))
    return 0


def profile(model: clip_jax.CLIP, images: np.ndarray) -> tuple[float, list[tuple]]:
    """Seconds of a call, and the time of its operations by kind and shape."""
    programs = []
    encoder = clip_jax.Encoder(model, batch_size=len(images))

    def compile_for_profiling(self, function: Callable, leaves: list, rows: jax.Array) -> Callable:
        lowered = jax.jit(function).lower(leaves, rows)
        programs.append(lowered.compile(compiler_options={"xla_cpu_enable_xprof_traceme": True}))
        return programs[-1]

    plain, OneDevice.compile = OneDevice.compile, compile_for_profiling
    try:
        encoder.images(images)
    finally:
        OneDevice.compile = plain
    encoder.images(images)
    taken = []
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder)
        for _ in range(CALLS):
            begin = time.perf_counter()
            encoder.images(images)
            taken.append(time.perf_counter() - begin)
        jax.profiler.stop_trace()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(path)
    operations = _operations(programs[0].as_text())
    total, times = collections.Counter(), collections.Counter()
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in operations:
                    total[operations[event.name]] += event.duration_ns
                    times[operations[event.name]] += 1
    rows = [
        (f"{ns / CALLS / 1e6:.2f}", round(times[key] / CALLS), *key)
        for key, ns in total.most_common(SHOWN)
    ]
    return statistics.median(taken), rows


def _operations(program: str) -> dict[str, tuple[str, str]]:
    """What an instruction of a compiled program does, and the shape that comes of it."""
    line = re.compile(
        r"^\s+(?:ROOT )?%?([\w.\-]+) = ([a-z0-9]+\[[\d,]*\])\S* ([a-z\-]+)\((.*)", re.M
    )
    found = {}
    for name, shape, operation, rest in line.findall(program):
        if source := re.search(r'op_name="([^"]*)"', rest):
            operation = source[1].rpartition("/")[2]
        found[name] = operation, shape
    return found


def scan_trial() -> str:
    """Compiling and running a ViT-B/32's layers, unrolled and as a scan over stacked arrays."""
    config = lookup("ViT-B/32").config
    model = clip_jax.from_parameters(config, random_parameters(config))
    blocks = list(model.visual.transformer.resblocks)

    def unrolled(blocks: list, x: jax.Array) -> jax.Array:
        for block in blocks:
            x = block(x, is_causal=False)
        return x

    def scanned(blocks: object, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, block: (block(x, is_causal=False), None), x, blocks)[0]

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    rows = []
    for batch in (1, 32):
        x = jax.random.normal(jax.random.key(0), (batch, 50, 768))
        programs, compiling, running = {}, {}, collections.defaultdict(list)
        for name, function, layers in (
            ("unrolled", unrolled, blocks),
            ("scan", scanned, stacked),
        ):
            begin = time.perf_counter()
            programs[name] = jax.jit(function).lower(layers, x).compile(), layers
            compiling[name] = time.perf_counter() - begin
        for _ in range(9):
            for name, (program, layers) in programs.items():
                begin = time.perf_counter()
                jax.block_until_ready(program(layers, x))
                running[name].append(1e3 * (time.perf_counter() - begin))
        for name in programs:
            rows.append((batch, name, compiling[name], statistics.median(running[name])))
    table = report.table(rows, ["batch", "layers", "lowering and compiling, s", "a call, ms"])
    return (
        "The twelve layers of a ViT-B/32's image tower with the model's own arrays, all rows "
        "computed, alternating, medians of 9. The parameter tree holds one array a layer; a scan "
        f"needs them stacked, which is a copy of all weights at the start.\n\n{table}"
    )


if __name__ == "__main__":
    sys.exit(main())
