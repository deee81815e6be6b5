"""Embedding jobs and search, measured: throughput, memory, kills, starts.

Run: python -m benchmarks.embed --out benchmarks/results/embed.md
Needs: pip install 'clip-jax-flax[test,reference]'. Some sections alone: --sections job start.
Expect: the figures of "reach", on a machine that does nothing else.
"""

import argparse
import concurrent.futures
import contextlib
import io
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import report
from clip_jax.embed.units import divide

SECTIONS = ("job", "loading", "memory", "kills", "start", "search")
CORES = len(os.sched_getaffinity(0))
BATCH = 32
MILLION = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--pictures", type=int, default=5000, help="of about 500 x 375")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows: list[tuple[str, str, str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for section in options.sections:
            print(f"measuring {section}", file=sys.stderr)
            rows += globals()[f"measure_{section}"](Path(folder), options)
    report.write(
        options.out,
        f"""# Embedding jobs and search

{report.header()}

{options.pictures} JPEGs of 500 x 375; ViT-B/32 of random weights, float32, batch {BATCH};
contenders take turns, medians of {options.rounds} rounds.

{report.table(rows, ["what", "measured", "figure", "reach"])}

Not measured here: GPUs, several hosts, real object stores. Two processes under `jax.distributed`,
one of them killed: `tests/test_embed.py`.
""",
    )


def measure_job(folder: Path, options: argparse.Namespace) -> Iterable[tuple[str, str, str, str]]:
    """The whole job against the encoder alone, and against a plain script with PyTorch."""
    import clip_jax
    from clip_jax.embed import embed
    from tests import reference
    from tests.models import reference_numbers

    pictures, config = make_pictures(folder, options.pictures), clip_jax.catalog.lookup("ViT-B/32")
    theirs = reference.randomize(reference.build(reference_numbers(config.config)), seed=0)
    arrays = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    model = clip_jax.from_parameters(*clip_jax.convert.from_pytorch(arrays))
    encoder = clip_jax.Encoder(model, batch_size=BATCH)
    pixels = np.random.default_rng(0).integers(0, 256, (8 * BATCH, 224, 224, 3), np.uint8)
    encoder.images(pixels[:BATCH])

    def alone() -> float:
        start = time.perf_counter()
        for _ in range(-(-options.pictures // len(pixels))):
            encoder.images(pixels)
        return -(-options.pictures // len(pixels)) * len(pixels) / (time.perf_counter() - start)

    def job() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            start = time.perf_counter()
            embed(pictures, model, out, batch_size=BATCH, progress=False)
            return options.pictures / (time.perf_counter() - start)

    def script() -> float:
        start = time.perf_counter()
        embed_by_pytorch(theirs, pictures, folder / "torch.npy")
        return options.pictures / (time.perf_counter() - start)

    rate, bare, torch = take_turns(options.rounds, job, alone, script)
    yield "whole job against the encoder alone", speeds(rate, bare), ratio(rate, bare), ">= 0.90"
    yield "whole job against a PyTorch script", speeds(rate, torch), ratio(rate, torch), ">= 1.15"


def measure_loading(
    folder: Path, options: argparse.Namespace
) -> Iterable[tuple[str, str, str, str]]:
    """Reading, decoding, resizing and cropping, against a plain loop on as many threads."""
    from clip_jax import Preprocess, open_image
    from clip_jax.embed.load import Loader, loading
    from clip_jax.embed.watch import Watch
    from clip_jax.sources import open_input

    preprocess, pictures = Preprocess(224), make_pictures(folder, options.pictures)
    paths = sorted(pictures.iterdir())

    def ours() -> float:
        start = time.perf_counter()
        rows = open_input(pictures).shards[0].open()
        records = ((None, i, record) for i, record in enumerate(rows.records(0, len(rows))))
        loader = Loader(
            preprocess=preprocess,
            context_length=None,
            exif_transpose=False,
            watch=Watch(show=False),
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

    loader, loop = take_turns(options.rounds, ours, plain)
    yield "loading against a Pillow loop", speeds(loader, loop), ratio(loader, loop), ">= 0.95"


def measure_memory(
    folder: Path, options: argparse.Namespace
) -> Iterable[tuple[str, str, str, str]]:
    """The largest resident memory of a job over few and over many rows."""
    model = small_model(folder)
    peaks = []
    for count in (2000, 50_000):
        pictures = make_pictures(folder, count, size=(32, 24))
        program = (
            "import resource, sys; from clip_jax.embed import embed; "
            "embed(sys.argv[1], sys.argv[2], sys.argv[3], progress=False); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [sys.executable, "-c", program, pictures, model, folder / f"memory-{count}"]
        peaks.append(int(subprocess.check_output(command)) / 1024)
    more = peaks[1] / peaks[0] - 1
    yield (
        "resident memory, 50,000 rows against 2,000",
        f"{peaks[1]:.0f} and {peaks[0]:.0f} MB",
        f"{more:+.1%}",
        "<= +5%",
    )


def measure_kills(folder: Path, options: argparse.Namespace) -> Iterable[tuple[str, str, str, str]]:
    """Thirty kills at random moments, then a last run."""
    from clip_jax.embed import read_embeddings

    count, out = 4000, folder / "killed"
    pictures, model = make_pictures(folder, count, size=(64, 48)), small_model(folder)
    command = [sys.executable, "-m", "clip_jax", "embed", pictures, "--model", model]
    command += ["--rows-per-part", "16", "--out"]

    def start(out: Path) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    assert start(folder / "undisturbed").wait() == 0
    rng, kills = random.Random(0), 0
    while kills < 30:
        before, process = parts(out), start(out)
        while process.poll() is None and parts(out) < min(before + 2, count // 16):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.2))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert start(out).wait() == 0
    keys = read_embeddings(out).to_table(columns=["key"])["key"].to_pylist()
    same = all(
        path.read_bytes() == (folder / "undisturbed" / path.name).read_bytes()
        for path in out.glob("part-*")
    )
    yield (
        f"{kills} SIGKILLs, then a last run",
        f"{len(keys):,} rows, {len(set(keys)):,} distinct, of {count:,}",
        "parts identical" if same else "PARTS DIFFER",
        "the same",
    )


def measure_start(folder: Path, options: argparse.Namespace) -> Iterable[tuple[str, str, str, str]]:
    """A job over a million rows that are all there."""
    from clip_jax.embed import embed

    source, model, out = finished_million(folder)
    times = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        summary = embed(source, model, out, dtype="float16", progress=False)
        times.append(time.perf_counter() - start)
        assert (summary.rows, summary.rows_before) == (0, MILLION - 1)
    seconds = statistics.median(times)
    yield "start of a job over 1,000,000 finished rows", "all CRCs", f"{seconds:.2f} s", "<= 10 s"


def measure_search(
    folder: Path, options: argparse.Namespace
) -> Iterable[tuple[str, str, str, str]]:
    """The nearest of a million rows, after the model is loaded."""
    from clip_jax.embed.index import Index, finished_job
    from clip_jax.embed.nearest import embed_query, nearest

    _, model, out = finished_million(folder)
    query = embed_query(model, "a red bicycle")
    times = []
    for _ in range(options.rounds + 1):  # the first one compiles
        start = time.perf_counter()
        index = Index(str(out), finished_job(str(out)))
        index.rows(nearest(index, query, 20)[1])
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])
    yield "search over 1,000,000 x 512 float16", "20 nearest", f"{seconds:.2f} s", "<= 1 s"


def make_pictures(folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> Path:
    """JPEGs with coarse and fine detail, as photographs have; made once."""
    target = folder / f"pictures-{count}-{size[0]}"
    if target.exists():
        return target
    target.mkdir()
    rng = np.random.default_rng(0)
    fine = rng.normal(0, 8, (size[1], size[0], 3))
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) + np.roll(fine, i, 0)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(target / f"{i:06d}.jpg", quality=90)
    return target


def small_model(folder: Path) -> Path:
    """The native folder of a model that takes no time."""
    import clip_jax
    from tests.models import SMALL_VIT, small

    if not (folder / "model").exists():
        clip_jax.save(small(SMALL_VIT), folder / "model")
    return folder / "model"


def finished_million(folder: Path) -> tuple[Path, Any, Path]:
    """Texts, a model of 512 columns, and what a job of theirs would have left; made once."""
    import dataclasses
    import json

    import pyarrow as pa

    from clip_jax.embed import embed
    from clip_jax.embed.index import parts_of
    from clip_jax.embed.parts import Error, Part
    from tests.models import SMALL_VIT, small

    source, out = folder / "million.txt", folder / "million"
    model = small(dataclasses.replace(SMALL_VIT, embed_dim=512))
    if out.exists():
        return source, model, out
    source.write_text("\n" + "".join(f"text {i}\n" for i in range(1, MILLION)))
    # Its job.json, by a job that stops at its first row, which is blank.
    with contextlib.suppress(ValueError):
        embed(source, model, out, dtype="float16", progress=False, max_errors=0)
    job = json.loads((out / "job.json").read_text())
    target = parts_of(str(out), job)
    rng = np.random.default_rng(0)
    for unit in divide(0, MILLION, 8192):
        numbers = range(max(unit.begin, 1), unit.end)
        matrix = rng.standard_normal((len(numbers), 512), np.float32)
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        keys = [f"million.txt:{i + 1}" for i in numbers]
        table = pa.table({"key": keys, "caption": [f"text {i}" for i in numbers]})
        errors = [Error(0, "million.txt:1", "blank")] * (unit.begin == 0)
        part = Part(table, {"embedding": matrix.astype(np.float16)})
        target.write(unit, MILLION, part, errors)
    return source, model, out


def embed_by_pytorch(model: Any, pictures: Path, out: Path) -> None:
    """What one writes first: the reference's model and preprocessing, and a DataLoader."""
    from tests import reference

    torch = reference.torch()
    transform = reference.clip().clip._transform(224)
    paths = sorted(pictures.iterdir())

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, i: int) -> Any:
            return transform(Image.open(io.BytesIO(paths[i].read_bytes())))

    loader = torch.utils.data.DataLoader(Pictures(), BATCH, num_workers=CORES)
    with torch.inference_mode():
        found = [torch.nn.functional.normalize(model.encode_image(batch)) for batch in loader]
    np.save(out, torch.cat(found).numpy())


def take_turns(rounds: int, *contenders: Callable[[], float]) -> list[float]:
    """The median of each one's rates."""
    rates: list[list[float]] = [[] for _ in contenders]
    for turn in range(rounds):
        order = range(len(contenders))
        for i in reversed(order) if turn % 2 else order:
            rates[i].append(contenders[i]())
    return [statistics.median(found) for found in rates]


def parts(out: Path) -> int:
    return len(list(out.glob("part-*")))


def speeds(ours: float, theirs: float) -> str:
    return f"{ours:,.1f} and {theirs:,.1f} rows/s"


def ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}"


if __name__ == "__main__":
    main()
