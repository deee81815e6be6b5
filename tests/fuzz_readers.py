"""Readers against mutated files: `python -m tests.fuzz_readers tar --seconds 600 --seed 0`.

Each input is a valid file that was changed by its structure or byte by byte. A process of its own
reads it as an embedding job does, with a limit of memory, under a watchdog. Faults are errors other
than those that a reader may raise, inputs that take longer than ten seconds, processes that die,
and neighbours lost: rows that the change can't have touched, in the same file or in the next one.

Prints counts as JSON, and the seed of each fault; `--only SEED` reads that one again, with its
traceback. Exit status 1 if there was a fault.
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from tests import fuzz_inputs, fuzz_pictures

KINDS = {**fuzz_inputs.TABLES, "images": fuzz_pictures.images}

# Seconds that an input may take of a core, on which others may be at work, and bytes of memory.
PATIENCE = 10
MEMORY = 2 << 30


def read(path: Path, kind: str) -> dict[str, str | None]:
    """What an embedding job reads of a file: each row's key, and its problem."""
    from clip_jax.loading import Loader
    from clip_jax.preprocess import Preprocess
    from clip_jax.sources import Columns
    from clip_jax.sources.faults import all_records, opened
    from clip_jax.sources.inputs import open_input
    from clip_jax.storage import Unreachable

    loader = Loader(
        preprocess=None if kind in ("csv", "jsonl") else Preprocess(32),
        context_length=None if kind == "images" else 16,
        exif_transpose=False,
    )
    found: dict[str, str | None] = {}
    source = path.parent if kind == "images" else f"{path.parent}/*{path.suffix}"
    try:
        shards = open_input(source, Columns(others=("more",) if kind != "images" else ())).shards
    except Unreachable:
        raise
    except (OSError, ValueError) as error:  # the job says it and ends
        return {"": str(error)}
    for shard in shards:
        rows = opened(shard)
        count = len(rows)
        assert count < 1_000_000, "a million rows of a few kilobytes"
        for number, record in enumerate(all_records(rows, shard.name, 0, count)):
            loaded = loader(None, number, record)
            if loaded.record.key in found:  # a mutation may make two of a key
                found[f"{loaded.record.key} {number}"] = loaded.problem
            else:
                found[loaded.record.key] = loaded.problem
    return found


def attempt(folder: Path, kind: str, seed: int) -> str | None:
    """One input; what is wrong with how it was read, if anything is."""
    rng = random.Random(f"{kind} {seed}")
    case = KINDS[kind](rng)
    for old in folder.iterdir():
        old.unlink()
    for name, data in case.files.items():
        (folder / name).write_bytes(data)
    path = folder / case.mutated
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read(path, kind)
    if "" in found and not case.may_be_refused:
        return f"refused: {found['']}"
    lost = [key for key in case.neighbours if found.get(key, "not there") is not None]
    if lost and "" not in found:
        return f"lost {lost[0]}: {found.get(lost[0], 'not there')}"
    return None


def work(kind: str, first: int, deadline: float, last: int | None) -> None:
    """Reads inputs one after another, and says so line by line; dies where it takes too long."""
    read_once_to_import_all(kind)
    limit = _used() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    faulthandler.register(signal.SIGPROF, chain=True)  # which then ends the process
    seed = first
    with tempfile.TemporaryDirectory() as name:
        while time.time() < deadline and (last is None or seed < last):
            faulthandler.dump_traceback_later(20 * PATIENCE, exit=True)
            signal.setitimer(signal.ITIMER_PROF, PATIENCE)
            print(json.dumps({"seed": seed}), flush=True)
            try:
                fault = attempt(Path(name), kind, seed)
            except BaseException as error:
                fault = f"{type(error).__name__}: {error}"
                print(traceback.format_exc(), file=sys.stderr, flush=True)
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(json.dumps({"done": seed, "fault": fault, "peak": peak}), flush=True)
            seed += 1


def read_once_to_import_all(kind: str) -> None:
    """What is imported on first use is part of no input's memory."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = KINDS[kind](random.Random(0))
        for file, data in case.files.items():
            (Path(name) / file).write_bytes(data)
        read(Path(name) / case.mutated, kind)


def fuzz(kind: str, seconds: float, seed: int, count: int | None = None) -> dict[str, object]:
    """Has a process read mutated files; another where one dies.

    Args:
        kind: of the files.
        seconds: for how long.
        seed: of the first one.
        count: of the inputs, at most.

    Returns:
        How many inputs were read, the faults by their seeds, and the peak of the memory in MB.
    """
    deadline, last = time.time() + seconds, None if count is None else seed + count
    begin, faults, peaks = seed, {}, [0]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    while time.time() < deadline and (last is None or seed < last):
        command = [sys.executable, "-m", "tests.fuzz_readers", kind, "--work", str(seed)]
        command += ["--until", str(deadline)] + ([] if last is None else ["--last", str(last)])
        with tempfile.TemporaryFile("w+") as log:
            running = None
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    said = json.loads(line)
                    running = said.get("seed")
                    if "done" in said:
                        seed = said["done"] + 1
                        peaks.append(said["peak"])
                        if said["fault"]:
                            faults[said["done"]] = said["fault"]
            if process.returncode and running is None:
                log.seek(0)
                raise RuntimeError(log.read()[-2000:])
            if running is not None:  # it was at that one
                log.seek(0)
                faults[running] = f"died with {process.returncode}: {log.read()[-1500:]}"
                seed = running + 1
    return {
        "kind": kind,
        "inputs": seed - begin,
        "faults": faults,
        "peak_mb": max(peaks) >> 10,
        "seconds": round(time.time() - deadline + seconds),
    }


def _used() -> int:
    """Bytes of address space."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def main() -> int:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int)
    parser.add_argument("--only", type=int, metavar="SEED", help="this one alone, in this process")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--last", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        work(args.kind, args.work, args.until, args.last)
        return 0
    if args.only is not None:
        with tempfile.TemporaryDirectory() as name:
            print(attempt(Path(name), args.kind, args.only))
        return 0
    found = fuzz(args.kind, args.seconds, args.seed, args.count)
    print(json.dumps(found, indent=1))
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
