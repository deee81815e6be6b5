"""Approximate search measured: recall against exact search, time, size, and what building takes.

Run: python -m benchmarks.approximate --inputs FOLDER --out benchmarks/results/approximate.md
Needs: pip install 'clip-jax-flax[test,index]', and for 10,000,000 rows 12 GB of disk. Some sections
alone: --sections build; the rows of the others stay in the table, from approximate.json beside it.
Expect: what benchmarks/results/approximate.md has, on a machine that does nothing else.
"""

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.approximate_inputs import DIM, Drawn, finished_job

SECTIONS = ("build", "search", "command")
# Queries of each sort, and the seed of those that are in no index.
QUERIES, HELD_OUT = 100, 10**6
K = 10

Row = tuple[str, str]  # what was measured, and what came of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    parser.add_argument("--inputs", type=Path, required=True, help="a folder for the embeddings")
    parser.add_argument("--rows", type=int, nargs="*", default=(1_000_000, 10_000_000))
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=SECTIONS)
    options = parser.parse_args()
    kept = Path(options.out).with_suffix(".json") if options.out else None
    for count in options.rows:
        out = finished_job(options.inputs, count)
        for section in options.sections:
            print(f"measuring {section} of {count:,} rows", file=sys.stderr)
            before = os.getloadavg()[0]
            rows = list(globals()[f"measure_{section}"](out, count))
            load = f"{before:.1f} to {os.getloadavg()[0]:.1f}"
            print(json.dumps([rows, load]), file=sys.stderr)
            measured = json.loads(kept.read_text()) if kept and kept.exists() else {}
            command = shlex.join(["python", "-m", "benchmarks.approximate", *sys.argv[1:]])
            how = f"`{command}`, {datetime.date.today().isoformat()}"
            measured.setdefault(f"{count:,}", {})[section] = {
                "rows": rows,
                "how": how,
                "load": load,
            }
            if kept:
                kept.write_text(json.dumps(measured, indent=1) + "\n")
            write(options.out, measured)


def measure_build(out: Path, count: int) -> Iterator[Row]:
    """The command, from its start to its end."""
    (out / "index.faiss").unlink(missing_ok=True)
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "clip_jax", "index", str(out)])
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    size = (out / "index.faiss").stat().st_size
    parts = sum(path.stat().st_size for path in out.glob("part-*"))
    yield "building", f"{time.monotonic() - begin:,.0f} s"
    yield "processor time of building", f"{usage.ru_utime + usage.ru_stime:,.0f} s"
    yield "most memory of building (resident)", f"{usage.ru_maxrss / 2**20:.1f} GiB"
    yield "size of the index", f"{size / 1e6:,.0f} MB; its parts {parts / 1e6:,.0f} MB"


def measure_search(out: Path, count: int) -> Iterator[Row]:
    """One query at a time, of an index that is held open, and the same by exact search."""
    from clip_jax.embed.results import finished_job as job_of
    from clip_jax.search import open_index
    from clip_jax.search.exact import best_rows
    from clip_jax.search.index import Index

    drawn, rows = Drawn(), Index(str(out), job_of(str(out)))
    sorts = {"rows": drawn.rows(HELD_OUT, QUERIES), "texts": drawn.texts(HELD_OUT, QUERIES)}
    queries = np.concatenate([*sorts.values()])
    cosines, nearest = _nearest(rows, queries)
    begin = time.perf_counter()
    index = open_index(out)
    yield "opening the index", f"{time.perf_counter() - begin:.2f} s"
    found, times, busy = [], [], []
    for turn in range(3):  # in the first one files are mapped and lists are checked
        for query in queries:
            begin, cpu = time.perf_counter(), time.process_time()
            _, numbers = index.search(query[None], K)
            times.append(time.perf_counter() - begin)
            busy.append(time.process_time() - cpu)
            if turn == 0:
                found.append(len({*numbers[0].tolist()} & {*nearest[len(found)].tolist()}) / K)
    first, later = times[: len(queries)], times[len(queries) :]
    for place, name in enumerate(sorts):
        mine = slice(place * QUERIES, (place + 1) * QUERIES)
        yield f"recall at {K}, queries like {name}", f"{np.mean(found[mine]):.3f}"
        yield (
            f"cosine of the first and of number {K}, queries like {name} (median)",
            f"{np.median(cosines[mine, 0]):.2f}, {np.median(cosines[mine, -1]):.2f}",
        )
    yield "a query, warm: median", f"{1e3 * np.median(later):.1f} ms"
    yield (
        "processor time of a warm query: median",
        f"{1e3 * np.median(busy[len(queries) :]):.1f} ms",
    )
    yield "a query for the first time: median", f"{1e3 * np.median(first):.1f} ms"
    begin = time.perf_counter()
    index.search(queries, K)
    together = (time.perf_counter() - begin) / len(queries)
    yield f"a query of {len(queries)} at once", f"{1e3 * together:.1f} ms"
    begin = time.perf_counter()
    index.rows(numbers[0].tolist())
    taken = 1e3 * (time.perf_counter() - begin)
    yield f"keys and captions of {K} rows, for the first time", f"{taken:.1f} ms"
    for _ in range(2):  # the first one compiles
        begin = time.perf_counter()
        best_rows(rows, queries[0], K)
    yield "exact search in its place", f"{time.perf_counter() - begin:.2f} s"


def _nearest(rows: Any, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cosines and numbers of the K rows nearest to each query, by comparing all."""
    cosines = np.full((len(queries), K), -np.inf, np.float32)
    numbers = np.zeros((len(queries), K), np.int64)
    for begin, end in rows.blocks(1 << 15):
        block = np.empty((end - begin, DIM), rows.dtype)
        rows.read(begin, end, block)
        there = queries @ block.astype(np.float32).T
        best = np.argpartition(-there, K, axis=1)[:, :K]
        cosines = np.concatenate([cosines, np.take_along_axis(there, best, 1)], axis=1)
        numbers = np.concatenate([numbers, best + begin], axis=1)
        order = np.argsort(-cosines, axis=1)[:, :K]
        cosines = np.take_along_axis(cosines, order, 1)
        numbers = np.take_along_axis(numbers, order, 1)
    return cosines, numbers


def measure_command(out: Path, count: int) -> Iterator[Row]:
    """`clip-jax search --approximate`, from Python's start to its end, with a small model."""
    command = [sys.executable, "-m", "clip_jax", "search", str(out), "a bicycle", "--approximate"]
    times, busy = [], []
    for turn in range(4):
        if turn == 0:
            _forget(out)
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        times.append(time.perf_counter() - begin)
        busy.append(usage.ru_utime + usage.ru_stime)
    yield "the command as a whole, files not in the page cache", f"{times[0]:.1f} s"
    yield "the command as a whole, files in it: median of 3", f"{np.median(times[1:]):.1f} s"
    yield "processor time of the command: median of 3", f"{np.median(busy[1:]):.1f} s"


def _forget(out: Path) -> None:
    """Has the system drop what it keeps of an output's files in memory."""
    for path in out.iterdir():
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def write(path: str | None, measured: dict[str, Any]) -> None:
    """Writes the report."""
    counts = list(measured)
    whats = dict.fromkeys(
        what
        for section in SECTIONS
        for count in counts
        for what, _ in measured[count].get(section, {"rows": []})["rows"]
    )
    values = {
        (count, what): value
        for count in counts
        for section in measured[count].values()
        for what, value in section["rows"]
    }
    table = [[what, *(values.get((count, what), "") for count in counts)] for what in whats]
    hows = dict.fromkeys(
        f"{note['how']}; load {note['load']}" for of in measured.values() for note in of.values()
    )
    report.write(
        path,
        f"""# Approximate search

{report.header("1 x cpu; other programs ran beside it")}

Measured section by section, with the machine's load (runnable processes) before and after:

{chr(10).join(f"- {how}" for how in hows)}

Embeddings of {DIM} columns in float16, in parts of 8,192 rows, drawn with clusters
(`benchmarks/approximate_inputs.py`): a row is the sum of what all have in common, one of 20,000
concepts of unequal size (a hundred share a subject), what differs within a concept in 48 directions
of decreasing size, and noise; two rows have a cosine of 0.5 in the median. Queries: {QUERIES} drawn
as rows are, and {QUERIES} as texts lie to pictures, about a concept but in another cone, with
cosines of some 0.3 to the nearest rows. Kind, lists and memory as the command chooses them.

{report.table(table, ["what", *(f"{count} rows" for count in counts)])}

Processor time is what a query takes where nothing else runs; the times around it wait for other
programs on the two cores. Of the command it goes to importing JAX and compiling the text tower.
Not measured here: embeddings of photographs, object stores.
""",
    )


if __name__ == "__main__":
    main()
