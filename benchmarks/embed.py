"""Embedding jobs and search, measured: throughput, memory, kills, starts.

Run: python -m benchmarks.embed --out benchmarks/results/embed.md
Needs: pip install 'clip-jax-flax[test,reference]'. Some sections alone: --sections job start; the
rows of the others stay in the table, from embed.json beside it.
Expect: what benchmarks/results/embed.md has, on a machine that does nothing else.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import report
from benchmarks.embed_inputs import (
    BATCH,
    CORES,
    MILLION,
    finished_folder,
    finished_million,
    full_model,
    make_pictures,
    odd_jpegs,
    small_model,
)
from clip_jax.preprocess import decode_image

SECTIONS = (
    "job",
    "pytorch",
    "loading",
    "simplejpeg",
    "memory",
    "kills",
    "processes",
    "start",
    "search",
)
KILLS = 30

Row = tuple[str, str, str, str]  # what, as measured, the figure, our limit for it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--pictures", type=int, default=5000, help="of the whole job")
    parser.add_argument("--compared", type=int, default=2000, help="of the job beside PyTorch's")
    parser.add_argument("--loaded", type=int, default=1000, help="of loading alone")
    parser.add_argument("--alone", type=int, default=1024, help="rows of the encoder alone")
    parser.add_argument("--rows", type=int, nargs=2, default=(2000, 50_000), help="of memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inputs", type=Path, help="a folder that keeps pictures for next time")
    options = parser.parse_args()
    kept = Path(options.out).with_suffix(".json") if options.out else None
    measured = json.loads(kept.read_text()) if kept and kept.exists() else {}
    command = shlex.join(["python", "-m", "benchmarks.embed", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as scratch:
        for section in options.sections:
            print(f"measuring {section}", file=sys.stderr)
            folder = Path(scratch, section)
            folder.mkdir()
            rows = list(globals()[f"measure_{section}"](folder, options))
            date = datetime.date.today().isoformat()
            if kept and kept.exists():  # now, because another run may have written it meanwhile
                measured = json.loads(kept.read_text())
            measured[section] = {"rows": rows, "how": f"`{command}`, {date}"}
            if kept:
                kept.write_text(json.dumps(measured, indent=1) + "\n")
    there = [section for section in SECTIONS if section in measured]
    commands = {measured[section]["how"]: None for section in there}
    report.write(
        options.out,
        f"""# Embedding jobs and search

{report.header()}

Measured section by section, by:

{chr(10).join(f"- {how}" for how in commands)}

JPEGs of 500 x 375; ViT-B/32 of random weights, float32, batch {BATCH}. Jobs from the call on: the
model's hash and compilation are in their time. Memory, kills and processes: small pictures and a
small model, whose own memory hides less.

{
            report.table(
                [row[:3] for section in there for row in measured[section]["rows"]],
                ["what", "measured", "figure"],
            )
        }

simplejpeg and Pillow each bring a libjpeg-turbo of their own, so equal pixels are not guaranteed
from one release to the next; it is not used. On a CPU, reading and decoding take their time from
the encoder, on the same cores.
Not measured here: GPUs, several hosts, real object stores.
""",
    )


def measure_job(folder: Path, options: argparse.Namespace) -> Iterable[Row]:
    """The whole job against the encoder alone, before it and after it."""
    import clip_jax
    from clip_jax.embed import embed

    pictures, model = make_pictures(options.inputs or folder, options.pictures), full_model()
    encoder = clip_jax.Encoder(model, batch_size=BATCH)
    pixels = np.random.default_rng(0).integers(0, 256, (8 * BATCH, 224, 224, 3), np.uint8)
    encoder.images(pixels[:BATCH])

    def alone() -> float:
        calls = -(-options.alone // len(pixels))
        start = time.perf_counter()
        for _ in range(calls):
            encoder.images(pixels)
        return calls * len(pixels) / (time.perf_counter() - start)

    before = alone()
    start = time.perf_counter()
    summary = embed(pictures, model, folder / "job", batch_size=BATCH, progress=False)
    rate, after = options.pictures / (time.perf_counter() - start), alone()
    print(summary, before, after, file=sys.stderr)
    bare = (before + after) / 2
    yield (
        f"whole job of {options.pictures:,} against the encoder alone, {options.alone:,} rows "
        "before it and after it",
        f"{rate:.1f} and {bare:.1f} rows/s ({before:.1f}, {after:.1f}); waited "
        f"{summary.waited:.1f} s of {summary.seconds:.0f} for data",
        ratio(rate, bare),
        ">= 0.90",
    )


def measure_pytorch(folder: Path, options: argparse.Namespace) -> Iterable[Row]:
    """The same job by a plain script with PyTorch, in a process of its own; a, b, b, a."""
    from clip_jax.embed import embed

    pictures, model = make_pictures(options.inputs or folder, options.compared), full_model()

    def job() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            start = time.perf_counter()
            summary = embed(pictures, model, out, batch_size=BATCH, progress=False)
            seconds = time.perf_counter() - start
        print(f"{seconds:.1f} s; {summary}", file=sys.stderr)
        return options.compared / seconds

    def script() -> float:
        command = [sys.executable, "-m", "benchmarks.embed_inputs", pictures, folder / "torch.npy"]
        return options.compared / float(subprocess.check_output(command))

    rate, torch = take_turns(2, job, script)
    yield (
        f"whole job of {options.compared:,} against a PyTorch script, twice each, alternating",
        speeds(rate, torch),
        ratio(rate, torch),
        ">= 1.15",
    )


def measure_loading(folder: Path, options: argparse.Namespace) -> Iterable[Row]:
    """Reading, decoding, resizing and cropping, against a plain loop on as many threads."""
    import grain

    from clip_jax import Preprocess, open_image
    from clip_jax.loading import Loader, loading
    from clip_jax.sources import open_input

    preprocess, pictures = Preprocess(224), make_pictures(options.inputs or folder, options.loaded)
    paths = sorted(pictures.iterdir())

    def ours() -> float:
        start = time.perf_counter()
        rows = open_input(pictures).shards[0].open()
        records = ((None, i, record) for i, record in enumerate(rows.records(0, len(rows))))
        loader = Loader(
            preprocess=preprocess,
            context_length=None,
            exif_transpose=False,
        )
        with loading(records, loader, num_threads=CORES, read_ahead=256 << 20) as ready:
            count = sum(loaded.problem is None for loaded in ready)
        return count / (time.perf_counter() - start)

    def plain() -> float:
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
            for _ in pool.map(lambda path: preprocess.pixels(open_image(path)), paths):
                pass
        return len(paths) / (time.perf_counter() - start)

    def by_grain() -> float:
        rows = grain.MapDataset.source(paths).map(lambda path: preprocess.pixels(open_image(path)))
        start = time.perf_counter()
        read = grain.ReadOptions(num_threads=CORES, prefetch_buffer_size=500)
        count = sum(1 for _ in rows.to_iter_dataset(read))
        return count / (time.perf_counter() - start)

    what, limit = f"loading of {len(paths):,} against", ">= 0.95"
    loader, loop, grains = take_turns(options.rounds, ours, plain, by_grain)
    yield f"{what} a Pillow loop", speeds(loader, loop), ratio(loader, loop), limit
    yield f"{what} Grain, {CORES} threads", speeds(loader, grains), ratio(loader, grains), "-"


def measure_memory(folder: Path, options: argparse.Namespace) -> Iterable[Row]:
    """The largest resident memory of a job over few and over many rows; medians of three."""
    peaks: dict[int, list[float]] = {count: [] for count in options.rows}
    for turn in range(3):
        for count in options.rows:
            pictures = make_pictures(options.inputs or folder, count, size=(32, 24))
            process = start_job(folder, pictures, folder / f"memory-{count}-{turn}")
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0
            peaks[count].append(usage.ru_maxrss / 1024)
    print(peaks, file=sys.stderr)
    few, many = (statistics.median(peaks[count]) for count in options.rows)
    yield (
        f"resident memory, {options.rows[1]:,} rows against {options.rows[0]:,}",
        f"{many:.0f} and {few:.0f} MB",
        f"{many / few - 1:+.1%}",
        "<= +5%",
    )


def measure_kills(folder: Path, options: argparse.Namespace) -> Iterable[Row]:
    """Thirty kills at random moments, then a last run."""
    count, rows, out = 12_000, 4, folder / "killed"
    pictures = make_pictures(options.inputs or folder, count, size=(64, 48))
    how = ["--rows-per-part", str(rows)]
    assert start_job(folder, pictures, folder / "undisturbed", *how).wait() == 0
    rng = random.Random(0)
    for kill in range(KILLS):
        before, process = parts(out), start_job(folder, pictures, out, *how)
        # Half of them while it writes parts, half wherever they hit: in its start, mostly.
        while kill % 2 and process.poll() is None and parts(out) < before + 2:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2 if kill % 2 else 2))
        assert process.poll() is None, "it was done before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = parts(out)
    assert start_job(folder, pictures, out, *how).wait() == 0
    what = f"{KILLS} SIGKILLs, {done:,} of {count // rows:,} parts after them, then a last run"
    yield what, *compared(folder / "undisturbed", out, count), "the same"


def measure_processes(folder: Path, options: argparse.Namespace) -> Iterable[Row]:
    """Two under jax.distributed; one is killed half-way, then both are started again."""
    from tests import processes

    count, two = 2000, folder / "two"
    two.mkdir()
    (two / "pictures").symlink_to(make_pictures(options.inputs or folder, count, size=(64, 48)))
    (two / "model").symlink_to(small_model(folder))
    assert processes.run_two(two, "embed")
    (two / "out").rename(two / "undisturbed")
    with processes.started(two, "embed") as running:
        while parts(two / "out") < count // 4:  # of count / 2
            assert all(process.poll() is None for process in running)
            time.sleep(0.002)
        running[1].kill()
        done = parts(two / "out")
    processes.run_two(two, "embed")
    what = f"two processes, one killed after {done} of {count // 2} parts, both started again"
    yield what, *compared(two / "undisturbed", two / "out", count), "the same"


def measure_start(folder: Path, options: argparse.Namespace) -> Iterable[Row]:
    """A job over a million rows that are all there."""
    from clip_jax.embed import embed

    for what, errors, finished in (
        ("rows of a text file", 1, finished_million),
        ("files of a folder", 0, finished_folder),
    ):
        source, model, out = finished(options.inputs or folder)
        times = []
        for _ in range(options.rounds):
            start = time.perf_counter()
            summary = embed(source, model, out, dtype="float16", progress=False)
            times.append(time.perf_counter() - start)
            assert (summary.rows, summary.rows_before) == (0, MILLION - errors)
        yield (
            f"start of a job over 1,000,000 finished {what}",
            f"all CRCs, sizes and times; {min(times):.2f} to {max(times):.2f} s",
            f"{statistics.median(times):.2f} s",
            "<= 10 s",
        )


def measure_search(folder: Path, options: argparse.Namespace) -> Iterable[Row]:
    """The nearest of a million rows, after the model is loaded."""
    from clip_jax.search import search

    _, model, out = finished_million(options.inputs or folder)
    times = []
    for _ in range(options.rounds + 1):  # the first one compiles
        start = time.perf_counter()
        assert len(search(out, model, "a red bicycle", 20)) == 20
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])
    yield (
        "search over 1,000,000 x 512 float16, 20 nearest",
        f"{min(times[1:]):.2f} to {max(times[1:]):.2f} s; the first, which compiles, "
        f"{times[0]:.2f} s",
        f"{seconds:.2f} s",
        "<= 1 s",
    )


def measure_simplejpeg(folder: Path, options: argparse.Namespace) -> Iterable[Row]:
    """Another decoder in Pillow's place, on one thread; nothing else here needs it."""
    try:
        import simplejpeg
    except ModuleNotFoundError:
        print("left out: pip install simplejpeg", file=sys.stderr)
        return

    paths = sorted(make_pictures(options.inputs or folder, options.loaded).iterdir())

    def decode(data: bytes) -> Image.Image:
        return Image.fromarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))

    kinds = odd_jpegs()
    same = sum(
        np.array_equal(np.asarray(decode(data)), np.asarray(decode_image(data).convert("RGB")))
        for data in kinds
    )
    images = [path.read_bytes() for path in paths[:200]]

    def rate(decoder: Callable[[bytes], Image.Image]) -> float:
        start = time.perf_counter()
        for data in images:
            decoder(data)
        return len(images) / (time.perf_counter() - start)

    theirs, pillow = take_turns(options.rounds, lambda: rate(decode), lambda: rate(decode_image))
    measured = f"{speeds(theirs, pillow)}; same pixels in {same} of {len(kinds)} colour JPEGs"
    yield "simplejpeg instead of Pillow, one thread", measured, ratio(theirs, pillow), "-"


def start_job(folder: Path, pictures: Path, out: Path, *options: str) -> subprocess.Popen:
    """The command, with a model that takes no time."""
    command = [sys.executable, "-m", "clip_jax", "embed", pictures, "--out", out, *options]
    return subprocess.Popen(
        [*command, "--model", small_model(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def take_turns(rounds: int, *contenders: Callable[[], float]) -> list[float]:
    """The median of each one's rates; all of them go to standard error."""
    rates: list[list[float]] = [[] for _ in contenders]
    for turn in range(rounds):
        order = range(len(contenders))
        for i in reversed(order) if turn % 2 else order:
            rates[i].append(contenders[i]())
    print([[round(rate, 1) for rate in found] for found in rates], file=sys.stderr)
    return [statistics.median(found) for found in rates]


def compared(undisturbed: Path, out: Path, count: int) -> tuple[str, str]:
    """Whether the rows are all there once, and the files the same."""
    from clip_jax.embed import read_embeddings

    keys = read_embeddings(out).to_table(columns=["key"])["key"].to_pylist()
    files = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (undisturbed, out)
    ]
    return (
        f"{len(keys):,} rows, {len(set(keys)):,} distinct, of {count:,}",
        "all files identical" if files[0] == files[1] else "FILES DIFFER",
    )


def parts(out: Path) -> int:
    return len(list(out.glob("part-*")))


def speeds(ours: float, theirs: float) -> str:
    return f"{ours:,.1f} and {theirs:,.1f} rows/s"


def ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}"


if __name__ == "__main__":
    main()
