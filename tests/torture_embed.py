"""Embedding jobs that are hurt at random places, and must not lose, double or change a row.

    python -m tests.torture_embed faults --count 1000
    python -m tests.torture_embed kills --count 200
    python -m tests.torture_embed kills --count 200 --processes 2

`faults` lets one call of a job's file system fail, in this process; `kills` sends SIGKILL to real
processes, alone or two that share the work. Then the same command is started again, until it is
done, and its output must be that of an undisturbed job to the byte. Exits with 1 at the first that
isn't, and says by which seed. Short forms run with the tests.
"""

import argparse
import collections
import dataclasses
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import clip_jax
from clip_jax.embed import Columns, embed
from clip_jax.embed.engines import local
from tests import quickly
from tests.archives import parquet, write_tar
from tests.embedding_jobs import contents
from tests.faults import KINDS, Faults, injected
from tests.models import SMALL_VIT, small
from tests.pictures import noise

# Seconds after which a process hangs.
LONG = 900


@dataclasses.dataclass(frozen=True)
class Case:
    """A job, and what it leaves undisturbed.

    Attributes:
        source: its input.
        options: of `embed`.
        flags: the same for the command line.
        rows: of the input, in order, those that can't be embedded too.
        undisturbed: the files of its output.
    """

    source: Path
    options: dict[str, Any]
    flags: tuple[str, ...]
    rows: int
    undisturbed: dict[str, bytes]


def make_cases(folder: Path, size: int) -> list[Case]:
    """Jobs of all kinds of input and of both formats; some of their rows can't be embedded."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for i in range(size):
        (pictures / f"{i:03d}.png").write_bytes(b"bad" if i == size // 2 else noise(i))
    (folder / "tars").mkdir()
    for shard in range(4):
        members: dict[str, bytes] = {}
        for i in range(size // 4):
            members[f"{i:03d}.png"] = b"bad" if i == shard == 1 else noise(i)
            members[f"{i:03d}.txt"] = f"picture {i} of {shard}".encode()
        write_tar(folder / "tars" / f"{shard}.tar", members)
    captions = [f"number {i}" for i in range(size)]
    parquet(folder / "in.parquet", {"caption": captions, "key": captions, "n": [*range(size)]})
    jobs = [
        (pictures, {}, (), size),
        (
            folder / "tars" / "*.tar",
            {"what": "both", "format": "npy"},
            ("--what", "both", "--format", "npy"),
            size // 4 * 4,
        ),
        (
            folder / "in.parquet",
            {"columns": Columns(others=("n",)), "dtype": "float16"},
            ("--columns", "n", "--dtype", "float16"),
            size,
        ),
    ]
    return [Case(*given, undisturbed={}) for given in jobs]


def keys(out: Path) -> list[str]:
    """The keys of all rows, of those in the errors too."""
    files = [*out.glob("part-*"), *out.glob("metadata/*"), *out.glob("errors/**/*.parquet")]
    files = [path for path in files if not path.name.startswith(".") and path.is_file()]
    return [
        f"{path.name[-21:]} {key}"
        for path in files
        for key in pq.read_table(path)["key"].to_pylist()
    ]


def check_rows(case: Case, out: Path) -> None:
    """Each row is there exactly once."""
    found = collections.Counter(keys(out))
    assert len(found) == sum(found.values()) == case.rows, found.most_common(3)


def finished(out: Path) -> dict[str, bytes]:
    """The files of an output but for unfinished ones, which are known by their names."""
    found = contents(out) if out.exists() else {}
    return {name: data for name, data in found.items() if not Path(name).name.startswith(".")}


def check_whole(case: Case, out: Path) -> None:
    """What there is is what it is to be; but a row that fails may do so for another reason."""
    for name, content in finished(out).items():
        there, expected = content, case.undisturbed[name]
        if name.startswith("errors/"):
            there, expected = (
                pq.read_table(pa.BufferReader(data)).select(["key", "row"]).to_pydict()
                for data in (content, expected)
            )
        assert there == expected, f"{name} is another"


# --- faults


def run_in_process(case: Case, out: Path, **more: Any) -> clip_jax.embed.Summary:
    """The job, by the function."""
    options = {"rows_per_part": 3, "batch_size": 4, "num_threads": 2, "progress": False}
    return embed(case.source, model(), out, **options, **case.options, **more)


@functools.cache
def model() -> clip_jax.CLIP:
    return small(SMALL_VIT)


@functools.cache
def _encoder(size: int) -> clip_jax.Encoder:
    return clip_jax.Encoder(model(), batch_size=size, normalize=True, whole_batches=True)


def prepare_faults(folder: Path) -> list[tuple[Case, int]]:
    """The jobs, each with the number of calls in which something can fail."""
    local.encoder_of = lambda model, size: _encoder(size)  # one for all, as it compiles
    found = []
    for number, case in enumerate(make_cases(folder / "in", 12)):
        counting = Faults(folder, -1, "EIO", stays=False, rng=random.Random(0))
        with injected(counting):
            run_in_process(case, folder / f"undisturbed-{number}")
        case.undisturbed.update(contents(folder / f"undisturbed-{number}"))
        found.append((case, counting.calls))
    return found


def one_fault(cases: list[tuple[Case, int]], folder: Path, seed: int) -> str:
    """Hurts a job at a random place; says what failed, and how it ended."""
    rng = random.Random(seed)
    case, calls = rng.choice(cases)
    kind, stays = rng.choice(KINDS), rng.random() < 0.3
    # A few files more are read where there is something of an earlier run.
    faults = Faults(folder, rng.randrange(calls), kind, stays=stays, rng=rng)
    out = folder / "out"
    begun = rng.random() < 0.3
    if begun:
        run_in_process(case, out)
        for path in [*out.glob("part-*"), *out.glob("metadata/*")]:
            if rng.random() < 0.5:
                path.unlink()
    ended = "done"
    try:
        with injected(faults):
            run_in_process(case, out)
    except (OSError, ValueError, MemoryError) as error:
        ended = f"{type(error).__name__}: {error}"
    is_of_input = any(" in/" in call for call in faults.failed)
    if not is_of_input:
        check_whole(case, out)
    run_in_process(case, out)
    if is_of_input:  # what could not be read is among the errors; a shard as a single one
        run_in_process(case, out, retry_errors=True)
    check_rows(case, out)
    check_whole(case, out)
    assert finished(out).keys() == case.undisturbed.keys()
    shutil.rmtree(out)
    return f"{kind}{' on' if stays else ''}: {', '.join(faults.failed[:2])}: {ended}"


def run_faults(count: int, seed: int, verbose: bool = False) -> collections.Counter[str]:
    """Hurts so many jobs; how many ended how."""
    folder = Path(tempfile.mkdtemp(prefix="torture-")).resolve()
    said = ""
    ends: collections.Counter[str] = collections.Counter()
    try:
        cases = prepare_faults(folder)
        for number in range(seed, seed + count):
            try:
                said = one_fault(cases, folder, number)
            except BaseException:
                print(f"seed {number}: {said}", file=sys.stderr)
                raise
            if verbose:
                print(number, said, flush=True)
            is_done = said.endswith(": done")
            ends[f"{said.partition(':')[0]}: {'went on' if is_done else 'stopped'}"] += 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ends


# --- kills


def start(case: Case, folder: Path, out: Path, *more: str) -> subprocess.Popen:
    """The job, by the command."""
    command = [sys.executable, "-m", "clip_jax", "embed", str(case.source), "--out", str(out)]
    command += ["--model", str(folder / "model"), "--rows-per-part", "2", "--batch-size", "2"]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [*command, *case.flags, *more],
            stdout=log,
            stderr=log,
            env=os.environ | quickly.ENVIRONMENT | {"JAX_PLATFORMS": "cpu"},
            cwd=Path(__file__).parents[1],
        )


def prepare_kills(folder: Path) -> list[Case]:
    """The jobs, after one undisturbed run of each."""
    clip_jax.save(model(), folder / "model")
    cases = make_cases(folder / "in", 240)
    for number, case in enumerate(cases):
        out = folder / f"undisturbed-{number}"
        assert start(case, folder, out).wait(LONG) == 0, (folder / "log").read_text()[-2000:]
        case.undisturbed.update(contents(out))
        assert not [name for name in case.undisturbed if Path(name).name.startswith(".")]
    return cases


def kills(
    cases: list[Case], folder: Path, seed: int, processes: int
) -> Iterator[tuple[float, int]]:
    """Kills jobs for as long as it is asked to; gives each kill's moment, and the parts there."""
    rng = random.Random(seed)
    while True:
        case, out = rng.choice(cases), folder / "out"
        shares = [(f"--shard={i}/{processes}",) if processes > 1 else () for i in range(processes)]
        while True:
            running = [start(case, folder, out, *share) for share in shares]
            killed = rng.choice([running, *([one] for one in running)])
            begin = time.monotonic()
            wait(rng, out, running)
            moment = time.monotonic() - begin
            hit = 0
            for process in killed:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    hit += 1
            codes = [process.wait(LONG) for process in running]
            assert set(codes) <= {0, -signal.SIGKILL}, (folder / "log").read_text()[-2000:]
            check_whole(case, out)
            for _ in range(hit):
                yield moment, len(parts(out))
            if not any(codes):
                break
        assert contents(out) == case.undisturbed
        check_rows(case, out)
        shutil.rmtree(out)


def parts(out: Path) -> list[Path]:
    return [*out.glob("part-*"), *out.glob("metadata/*")]


def wait(rng: random.Random, out: Path, running: list[subprocess.Popen]) -> None:
    """Waits for a random moment: at any time of its start, or among the parts."""
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0, 5))
        return
    enough, deadline = len(parts(out)) + rng.randrange(40), time.monotonic() + LONG
    while len(parts(out)) < enough and any(process.poll() is None for process in running):
        assert time.monotonic() < deadline, "hangs"
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.03))


def run_kills(count: int, seed: int, processes: int, verbose: bool = False) -> dict[str, int]:
    """Kills so many processes."""
    folder = Path(tempfile.mkdtemp(prefix="torture-")).resolve()
    found = {"kills": 0, "before the first part": 0}
    try:
        for moment, there in kills(prepare_kills(folder), folder, seed, processes):
            found["kills"] += 1
            found["before the first part"] += not there
            if verbose:
                print(f"{found['kills']}: after {moment:.2f} s, {there} parts", flush=True)
            if found["kills"] >= count:
                break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("faults", "kills"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    begin = time.monotonic()
    run: Callable[[], Any] = {
        "faults": lambda: run_faults(args.count, args.seed, args.verbose),
        "kills": lambda: run_kills(args.count, args.seed, args.processes, args.verbose),
    }[args.what]
    for name, number in sorted(run().items()):
        print(f"{name}: {number}")
    print(f"no row lost, doubled or changed; {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
