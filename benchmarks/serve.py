"""Text queries to `clip-jax serve` over a million rows: 16 clients at once against one.

The rows are drawn at random, 512 wide in float16, and the model is a ViT-B/32 with random weights:
neither changes what an exact search costs. Server and clients share the machine. Each query is
another text, so that no answer is remembered; it asks for 10 rows.

Run: python -m benchmarks.serve --out benchmarks/results/serve.md
Expect: 16 clients' 95th percentile at most 4 times one client's median.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import report

DIM, CLIENTS, ROUNDS, QUERIES = 512, 16, 3, 20
WORDS = "red old small boat dog street snow child tree house night beach bird table city".split()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure clip-jax serve under 16 clients.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the rows are kept (default: nowhere)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        out = finished_job(folder, options.rows)
        port, ready, first = stack.enter_context(serving(out))
        numbers = itertools.count()
        one, many, rate = [], [], []
        ask(port, 5, numbers)  # pages are in memory from here on
        for _ in range(ROUNDS):
            one += ask(port, QUERIES, numbers)
            begin = time.perf_counter()
            answers = together(port, numbers)
            rate.append(len(answers) / (time.perf_counter() - begin))
            many += answers
    median, tail = float(np.median(one)), float(np.percentile(many, 95))
    rows = [
        ("1", f"{1000 * median:.0f} ms", f"{1000 * float(np.percentile(one, 95)):.0f} ms", ""),
        (
            str(CLIENTS),
            f"{1000 * float(np.median(many)):.0f} ms",
            f"{1000 * tail:.0f} ms",
            f"{float(np.median(rate)):.1f}",
        ),
    ]
    report.write(
        options.out,
        f"""# A page for several people at once: `clip-jax serve`

{report.header("CPU")}
- Load of the machine before, by others: {load:.1f}

{options.rows:,} rows of {DIM} float16 numbers, drawn at random; text queries by a ViT-B/32 with
random weights, each another text, for its 10 nearest rows of all (`--exact`). Server and clients
share the machine. {ROUNDS} rounds of {QUERIES} queries by one client, then by {CLIENTS} at once.

{report.table(rows, ["clients", "median", "95th percentile", "answers a second"])}

The 95th percentile of {CLIENTS} clients is **{tail / median:.1f} times** one client's median: what
comes while a search runs is embedded in one call, and answered by one pass over the rows.

The address is there after {first:.1f} s, the first answer after {ready:.0f} s: in between the rows
can be looked at, and programs for texts and pictures are compiled.
""",
    )


def finished_job(folder: Path, count: int) -> Path:
    """What an embedding job of so many texts would have left, in float16; made once."""
    import pyarrow as pa

    import clip_jax
    from clip_jax.embed import embed
    from clip_jax.embed.chunks import divide
    from clip_jax.embed.parts import Part
    from clip_jax.embed.results import parts_of
    from tests.models import fresh

    out = folder / f"rows-{count}"
    if (folder / f"{out.name}.done").exists():
        return out
    folder.mkdir(parents=True, exist_ok=True)
    clip_jax.save(fresh(clip_jax.config_of("ViT-B/32")), folder / "model")
    (folder / "texts.txt").write_text("\ntext\n")
    # Its job.json, by a job that stops at its first row, which is blank.
    with contextlib.suppress(ValueError):
        embed(
            folder / "texts.txt",
            folder / "model",
            out,
            dtype="float16",
            progress=False,
            max_errors=0,
        )
    parts = parts_of(str(out), json.loads((out / "job.json").read_text()))
    for chunk in divide(0, count, 8192):
        rng = np.random.default_rng(chunk.begin)
        rows = rng.standard_normal((len(chunk), DIM), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        numbers = range(chunk.begin, chunk.end)
        table = pa.table(
            {
                "key": [f"texts.txt:{i + 1}" for i in numbers],
                "caption": [f"text {i}" for i in numbers],
            }
        )
        parts.write(chunk, count, Part(table, {"embedding": rows.astype(np.float16)}), [])
    (folder / f"{out.name}.done").touch()
    return out


@contextlib.contextmanager
def serving(out: Path) -> Iterator[tuple[int, float, float]]:
    """Serves; gives the port, and the seconds until it was ready and until it had an address."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "clip_jax", "serve", str(out), "--port", "0", "--exact"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r":(\d+)/", process.stdout.readline())
        assert found
        port, first = int(found[1]), time.perf_counter() - begin
        while answer(port, "/healthz")[0] != 200:
            time.sleep(0.2)
        yield port, time.perf_counter() - begin, first
    finally:
        process.terminate()
        process.wait()


def answer(port: int, path: str, connection: http.client.HTTPConnection | None = None):
    """Returns the status and the document of an answer."""
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def ask(port: int, count: int, numbers: Iterator[int]) -> list[float]:
    """Asks one query after the other; gives the seconds of each."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    seconds = []
    for _ in range(count):
        number = next(numbers)
        words = np.random.default_rng(number).choice(WORDS, 5)
        query = urllib.parse.quote(f"{' '.join(words)} {number}")
        begin = time.perf_counter()
        status, hits = answer(port, f"/api/search?q={query}&k=10", connection)
        seconds.append(time.perf_counter() - begin)
        assert status == 200 and len(hits) == 10
    connection.close()
    return seconds


def together(port: int, numbers: Iterator[int]) -> list[float]:
    """As `ask`, by all clients at once."""
    seconds: list[float] = []
    threads = [
        threading.Thread(target=lambda: seconds.extend(ask(port, QUERIES, numbers)))
        for _ in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


if __name__ == "__main__":
    main()
