"""Loads changed checkpoints for as long as one likes: each is refused with one error, or loads.

    python -m tests.fuzz_checkpoints safetensors --seconds 600 --seed 1

A process of its own loads them, with two gigabytes of memory besides what it begins with, and for
each ten seconds of computing, or five minutes on the clock. What it dies of counts as a failure,
and another goes on with the next. A failure names its number, with which `--first N --count 1`
makes the same file again.
"""

import argparse
import collections
import faulthandler
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clip_jax.errors import CheckpointError
from clip_jax.weights import load
from tests import checkpoint_mutations, container_mutations

KINDS = (*checkpoint_mutations.KINDS, *container_mutations.KINDS)

# Of computing, so that it doesn't matter who else uses the machine; and on the clock, for what
# waits.
SECONDS_EACH, SECONDS_ON_THE_CLOCK = 10, 300
MEMORY = 2 << 30
# Characters of a message: twenty names of a thousand at most.
LONG = 30_000


def write_mutant(kind: str, rng: random.Random, folder: Path) -> Path:
    """Writes a changed checkpoint of a kind; its path, as `load` takes it."""
    others = kind in container_mutations.KINDS
    return (container_mutations if others else checkpoint_mutations).write_mutant(kind, rng, folder)


def load_any(path: Path) -> Any:
    """Loads a folder, or a file with what it doesn't say."""
    return load(
        path, **({"activation": "quick_gelu", "num_heads": (1, 1)} if path.is_file() else {})
    )


def fuzz(
    kind: str,
    seed: int,
    folder: Path,
    numbers: Any,
    *,
    read: Callable[[Path], Any] = load_any,
    after: Callable[[int, dict[str, int]], None] = lambda number, counts: None,
) -> tuple[dict[str, int], dict[str, str]]:
    """Loads the changed checkpoints of these numbers.

    Args:
        kind: one of KINDS.
        seed: of all of them.
        folder: where they are written, one over the other.
        numbers: an iterable of them.
        read: what loads one.
        after: is called before each, with its number and the counts so far.

    Returns:
        How many were refused, loaded and failed; and what failed, with a number of each place.
    """
    counts: collections.Counter[str] = collections.Counter(refused=0, loaded=0, failed=0)
    failures: dict[str, str] = {}
    for number in numbers:
        after(number, counts)
        path = write_mutant(kind, random.Random(f"{kind} {seed} {number}"), folder)
        try:
            read(path)
            counts["loaded"] += 1
        except CheckpointError as error:
            counts["refused"] += 1
            if len(str(error)) > LONG:
                failures.setdefault("long message", f"{number}: {len(str(error)):,} characters")
        except Exception as error:
            counts["failed"] += 1
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} at {frame.filename}:{frame.lineno}"
            failures.setdefault(place, f"{number}: {str(error)[:200]}")
    return dict(counts), failures


def _work(args: argparse.Namespace, until: float) -> None:
    """A worker's whole life: it says where it is before each file, and at the end what it saw."""
    kind, seed, first, count, folder = args.kind, args.seed, args.first, args.count, args.worker
    warnings.simplefilter("ignore")
    state, stacks = folder / "state.json", (folder / "stacks.txt").open("w")
    write_mutant(kind, random.Random(0), folder)
    fuzz(kind, -1, folder, range(20))  # whatever is imported or set up on first use
    before = _memory("VmHWM")
    # Of addresses, not of pages: so it stands for what was asked for and never touched, too.
    limit = _memory("VmSize") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    # Shows where it is, and then does what the signal does by itself, which is to end the process.
    faulthandler.register(signal.SIGPROF, file=stacks, chain=True)

    def numbers() -> Any:
        number = first
        while time.time() < until and (count is None or number < first + count):
            yield number
            number += 1

    def after(number: int, counts: dict[str, int]) -> None:
        state.write_text(json.dumps({"number": number, "counts": counts}))
        signal.setitimer(signal.ITIMER_PROF, args.seconds_each)
        faulthandler.dump_traceback_later(SECONDS_ON_THE_CLOCK, exit=True, file=stacks)

    counts, failures = fuzz(kind, seed, folder, numbers(), after=after)
    signal.setitimer(signal.ITIMER_PROF, 0)
    faulthandler.cancel_dump_traceback_later()
    growth = _memory("VmHWM") - before
    (folder / "end.json").write_text(json.dumps([counts, failures, growth]))


def _memory(what: str) -> int:
    """Bytes that this process has by one of Linux's counts."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) << 10
    raise ValueError(what)


def main(argv: list[str] | None = None) -> int:
    """Fuzzes, prints counts and failures; 1 if there are any of these."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER")
    parser.add_argument("--count", type=int, help="files, instead of seconds alone")
    parser.add_argument("--seconds-each", type=float, default=SECONDS_EACH, help="of computing")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where files that kill go")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    until = time.time() + args.seconds
    if args.worker:
        _work(args, until)
        return 0
    total: collections.Counter[str] = collections.Counter()
    failures: dict[str, str] = {}
    growth, first, last = 0, args.first, args.first + (args.count or sys.maxsize)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while first < last and (seconds := until - time.time()) > 0:
            command = [sys.executable, "-m", "tests.fuzz_checkpoints", args.kind]
            command += ["--seconds", str(seconds), "--seed", str(args.seed), "--first", str(first)]
            command += ["--seconds-each", str(args.seconds_each), "--worker", str(folder)]
            command += ["--count", str(last - first)] if args.count else []
            run = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if run.returncode == 0:
                counts, found, grown = json.loads((folder / "end.json").read_text())
                total.update(counts)
                failures |= found
                growth = max(growth, grown)
                break
            if not (folder / "state.json").exists():
                raise RuntimeError(f"the worker could not begin: {run.stderr}")
            state = json.loads((folder / "state.json").read_text())
            total.update(state["counts"])
            total["killed"] += 1
            stack = (folder / "stacks.txt").read_text() or run.stderr
            failures[f"{state['number']}: status {run.returncode}"] = stack[-2000:]
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                for path in folder.glob("mutant*"):
                    copy = shutil.copytree if path.is_dir() else shutil.copy
                    copy(path, args.keep / f"{state['number']}-{path.name}")
            first = state["number"] + 1
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    about = {"grown_mb": growth >> 20, "computing_s": round(used.ru_utime + used.ru_stime)}
    print(json.dumps({"kind": args.kind, "seed": args.seed, **total, **about}))
    for place, what in failures.items():
        print(f"{place}\n  {what}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
