"""Embedding jobs on Ray, measured: the rate beside that of one process, and kills at random.

Run: python -m benchmarks.embed_ray --out benchmarks/results/embed_ray.md
Needs: pip install 'clip-jax-flax[test]'. Sections alone: --sections rate.
Expect: what benchmarks/results/embed_ray.md has, on a machine that does nothing else.
"""

import argparse
import datetime
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks import report
from benchmarks.embed_inputs import BATCH, make_pictures
from clip_jax.messages import counted

SECTIONS = ("rate", "kills")
KILLS = 20

Row = tuple[str, str, str]  # what, as measured, the figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=2, help="of the rate, alternating")
    parser.add_argument("--inputs", type=Path, help="a folder that keeps pictures for next time")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    options = parser.parse_args()
    kept = Path(options.out).with_suffix(".json") if options.out else None
    measured = json.loads(kept.read_text()) if kept and kept.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for section in options.sections:
            folder = Path(scratch, section)
            folder.mkdir()
            load = os.getloadavg()[1]
            rows = list(globals()[f"measure_{section}"](folder, options))
            busy = f"load {load:.0f} before and {os.getloadavg()[1]:.0f} after"
            command = shlex.join(["python", "-m", "benchmarks.embed_ray", *sys.argv[1:]])
            how = f"{section}: `{command}`, {datetime.date.today().isoformat()}; {busy}"
            measured[section] = {"rows": rows, "how": how}
            if kept:
                kept.write_text(json.dumps(measured, indent=1) + "\n")
    there = [section for section in SECTIONS if section in measured]
    how = "\n".join(f"- {measured[section]['how']}" for section in there)
    report.write(
        options.out,
        f"""# Embedding on Ray

{report.header()}

Measured section by section, by these commands; the load is that of all the machine's work over five
minutes, on its two cores:

{how}

JPEGs of 500 x 375; ViT-B/32 of random weights, float32, batch {BATCH}. Each job is the command from
its start to its end, in a process of its own; its rate from the first row on is what it prints. Ray
starts a cluster on this machine for each. Kills: a small model and small pictures, on three nodes
of `ray.cluster_utils.Cluster` beside a head.

{
            report.table(
                [row for section in there for row in measured[section]["rows"]],
                ["what", "measured", "figure"],
            )
        }

Not measured here: accelerators, clusters of several machines, object stores.
""",
    )


def measure_rate(folder: Path, options: argparse.Namespace) -> Iterable[Row]:
    """The same command with either engine, by turns."""
    import clip_jax
    from clip_jax.catalog import lookup
    from tests.embedding_jobs import contents
    from tests.models import fresh

    pictures = make_pictures(options.inputs or folder, options.pictures)
    clip_jax.save(fresh(lookup("ViT-B/32").config), folder / "model")
    whole: dict[str, list[float]] = {"local": [], "ray": []}
    own: dict[str, list[float]] = {"local": [], "ray": []}
    for turn in range(options.rounds):
        for engine in ("local", "ray") if turn % 2 == 0 else ("ray", "local"):
            out = folder / engine
            command = [sys.executable, "-m", "clip_jax", "embed", str(pictures), "--out", str(out)]
            command += ["--model", str(folder / "model"), "--batch-size", str(BATCH)]
            command += ["--rows-per-part", "512", "--engine", engine]
            start = time.perf_counter()
            said = subprocess.check_output(command, text=True)
            whole[engine].append(options.pictures / (time.perf_counter() - start))
            print(engine, whole[engine][-1], said, file=sys.stderr)
            found = re.search(r"([\d,.]+) rows/s", said)
            assert found is not None
            own[engine].append(float(found[1].replace(",", "")))
        same = contents(folder / "local") == contents(folder / "ray")
        for engine in whole:
            subprocess.check_call(["rm", "-r", str(folder / engine)])
        assert same
    for what, rates in (("from start to end", whole), ("from the first row on", own)):
        ray, local = (statistics.median(rates[engine]) for engine in ("ray", "local"))
        spans = [f"{min(rates[e]):.1f} to {max(rates[e]):.1f}" for e in ("ray", "local")]
        yield (
            f"Ray against one process, {options.pictures:,} pictures, {what}; {options.rounds} "
            "rounds, alternating",
            f"{ray:.1f} and {local:.1f} rows/s ({spans[0]}; {spans[1]}); all files identical",
            f"{ray / local:.2f}",
        )


def measure_kills(folder: Path, options: argparse.Namespace) -> Iterable[Row]:
    """Kills at random of workers, encoders, nodes and the driver."""
    from tests.ray_kills import torture

    start, count = time.perf_counter(), 2000
    done = torture(folder, pictures=count, kills=KILLS, seed=options.seed)
    jobs = counted(done.pop("finished"), "job")
    kinds = ", ".join(f"{number} {kind}s" for kind, number in sorted(done.items()))
    yield (
        f"{KILLS} SIGKILLs ({kinds}) in {jobs} of {count:,} pictures, 4 in a part, on "
        f"3 nodes, {time.perf_counter() - start:.0f} s",
        f"{count:,} rows and 1 error in each, as it has to be",
        "all files identical to one process's",
    )


if __name__ == "__main__":
    main()
