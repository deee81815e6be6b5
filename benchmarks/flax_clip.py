"""Flax CLIP of transformers 4 against clip_jax.compat: time of a jitted call, equality of outputs.

transformers 4 runs in an environment of its own (benchmarks/flax_clip_golden.py says how to make
it), so each contender is a process of its own; they are called in turns.

    python -m benchmarks.flax_clip .venv-tf4/bin/python --out benchmarks/results/flax_clip.md
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from tests import flax_clip as cases

BATCH, ROUNDS, LIMIT, TOLERANCE = 8, 15, 1.0, 1e-6
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "eos_token_id": 2,
}
TOWERS = {
    "text tower of ViT-L/14 (Stable Diffusion 1, Flux)": ("Text", TEXT),
    "image tower of ViT-B/32": ("Vision", {}),
}
OURS, THEIRS = "clip_jax", "transformers 4.57.3"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", help="the interpreter of the environment with transformers 4")
    parser.add_argument("--out", help="a Markdown file to write the table to")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="calls of each")
    arguments = parser.parse_args()
    if os.environ.get(_WORKER):
        work(json.loads(os.environ[_WORKER]))
        return 0
    rows, is_within = [], True
    for name, (kind, config) in TOWERS.items():
        times, error = compare(kind, config, arguments.python, arguments.rounds)
        ours, theirs = (statistics.median(wall for wall, _ in times[who]) for who in times)
        pairs = list(zip(times[OURS], times[THEIRS], strict=True))
        ratio, of_processor = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
        row = (name, f"{ours:.3f} s", f"{theirs:.3f} s", f"{ratio:.2f}", f"{of_processor:.2f}")
        rows.append((*row, f"{error:.1e}"))
        is_within &= ratio <= LIMIT and error < TOLERANCE
    notes = (
        f"A jitted call with {BATCH} rows, with random weights that both have, in float32. The two "
        f"are called in turns, {arguments.rounds} times each; times are medians, the ratio is the "
        f"median of the rounds' ratios, by the clock and in processor time, "
        f"which tells the two apart where other programs run beside. The error is that of the last "
        f"hidden state: L2 of the difference over L2."
    )
    columns = ("what", OURS, THEIRS, "ratio", "of processor time", "relative error")
    text = "\n\n".join(["# Flax CLIP", report.header(), notes, report.table(rows, columns)])
    report.write(arguments.out, text)
    return 0 if is_within else 1


def compare(
    kind: str, config: dict[str, Any], python: str, rounds: int
) -> tuple[dict[str, list[tuple[float, float]]], float]:
    """Returns each call's seconds by the clock and of the processor, and the outputs' error."""
    with tempfile.TemporaryDirectory() as folder:
        files = {who: str(Path(folder, f"{i}.npy")) for i, who in enumerate((OURS, THEIRS))}
        workers = {
            OURS: worker(sys.executable, "clip_jax.compat", kind, config, files[OURS]),
            THEIRS: worker(python, "transformers", kind, config, files[THEIRS]),
        }
        for process in workers.values():  # compiled, and run once
            answer(process)
        times: dict[str, list[tuple[float, float]]] = {who: [] for who in workers}
        for i in range(rounds):
            for who in list(workers)[:: 1 if i % 2 else -1]:
                process = workers[who]
                assert process.stdin is not None
                process.stdin.write("call\n")
                process.stdin.flush()
                times[who].append(answer(process))
        for process in workers.values():
            process.communicate()
        ours, theirs = (np.load(files[who]).astype(np.float64) for who in (OURS, THEIRS))
    return times, float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


# --- what runs in the processes

_WORKER = "CLIP_JAX_FLAX_WORKER"


def worker(python: str, module: str, kind: str, config: dict[str, Any], file: str) -> Any:
    task = json.dumps({"module": module, "kind": kind, "config": config, "file": file})
    return subprocess.Popen(
        [python, "-m", "benchmarks.flax_clip", python],
        env={**os.environ, _WORKER: task},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def answer(process: Any) -> tuple[float, float]:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args[0]} ended without an answer: run its call by hand")
    wall, processor = map(float, line.split())
    return wall, processor


def work(task: dict[str, Any]) -> None:
    import importlib

    import jax
    from flax import traverse_util

    library = importlib.import_module(task["module"])
    kind = task["kind"]
    config = getattr(library, f"CLIP{kind}Config")(**task["config"])
    model = getattr(library, f"FlaxCLIP{kind}Model")(config, _do_init=False)
    flat = traverse_util.flatten_dict(model.params_shape_tree, sep="/")
    params = jax.device_put(cases.random_params({path: a.shape for path, a in flat.items()}))
    rng = np.random.default_rng(0)
    if kind == "Text":
        inputs = rng.integers(0, 49408, (BATCH, 77), np.int32)
    else:
        inputs = rng.normal(size=(BATCH, 3, 224, 224)).astype(np.float32)
    call = jax.jit(lambda params, inputs: model(inputs, params=params, train=False).to_tuple())
    np.save(task["file"], np.asarray(call(params, inputs)[0]))
    inputs = jax.device_put(inputs)
    jax.block_until_ready(call(params, inputs))
    print(0, 0, flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter(), time.process_time()
        jax.block_until_ready(call(params, inputs))
        print(time.perf_counter() - begin[0], time.process_time() - begin[1], flush=True)


if __name__ == "__main__":
    sys.exit(main())
