"""Every figure that an accelerator has to give, in one run of some minutes.

    python -m benchmarks.accelerator --minutes 9 --out DIR

Eight sections in the order of their worth, each in a process of its own with a share of the
minutes. Each row goes to DIR/rows.jsonl and is printed the moment it is known; at the end comes a
table, DIR/table.md. `--tiny` runs all of it with small models, on a CPU too: its figures say
nothing. README.md beside this file tells how to prepare a machine without a network.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator import machine, table
from benchmarks.accelerator.rows import NAME as ROWS
from benchmarks.accelerator.rows import Rows
from benchmarks.accelerator.sections import SECTIONS, Section
from benchmarks.accelerator.supervise import LOG, Supervisor
from clip_jax import signals

# What a run leaves in its folder.
FILES = (ROWS, table.NAME, LOG)
# Seconds of the whole that are kept for the start and for the table.
RESERVE = 5.0


class NoDevice(RuntimeError):
    """There is nothing here that could be measured."""


def main(arguments: Sequence[str] | None = None) -> int:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--minutes", type=_minutes, default=9.0, help="for everything; 9")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder; a temporary one")
    parser.add_argument("--tiny", action="store_true", help="small models, to see that it runs")
    numbers = [section.name.split()[0] for section in SECTIONS]
    parser.add_argument(
        "--sections", nargs="+", choices=numbers, default=numbers, help="some alone, by number"
    )
    options = parser.parse_args(arguments)
    sections = [section for section in SECTIONS if section.name.split()[0] in options.sections]
    deadline = begin + 60 * options.minutes - RESERVE
    return run(sections, options.out, deadline, tiny=options.tiny)


def run(
    sections: Sequence[Section], out: Path | None, deadline: float, *, tiny: bool = False
) -> int:
    """Runs sections until a time of `time.monotonic`, and writes the table; the exit status."""
    try:
        rows = Rows(_new_folder(out))
    except (OSError, ValueError) as error:
        return _complain(f"--out can't be written: {error}")
    environment = _quick() if tiny else {}
    try:
        with (
            signals.handled(_say),
            Supervisor(sections, rows, tiny=tiny, environment=environment) as supervisor,
        ):
            try:
                found = _looked_at(tiny)
            except (NoDevice, KeyboardInterrupt):
                for name in FILES:  # there was no run
                    (rows.path.parent / name).unlink(missing_ok=True)
                raise
            try:
                supervisor.run(deadline - time.monotonic())
            except KeyboardInterrupt:
                _say("interrupted: the rows so far stand")
                raise
            finally:
                table.write(rows, found, tiny=tiny)
    except KeyboardInterrupt as stop:
        return signals.exit_status(stop)
    except NoDevice as error:
        return _complain(str(error))
    return 0


def _looked_at(tiny: bool) -> dict[str, Any]:
    """The machine.

    Raises:
        NoDevice: it has nothing to measure; says what to do.
    """
    try:
        found = machine.look()
    except RuntimeError as error:
        raise NoDevice(f"JAX finds no device that works: {error}") from None
    if found["platform"] == "cpu" and not tiny:
        raise NoDevice(
            "no accelerator: JAX sees nothing but the CPU here. Install its plug-in for the "
            "device (pip install 'jax[cuda13]'), or see by --tiny that the program runs"
        )
    return found


def _new_folder(out: Path | None) -> Path:
    """The folder of a run, made and tried.

    Raises:
        OSError: it can't be written.
        ValueError: it holds another run.
    """
    if out is None:
        return Path(tempfile.mkdtemp(prefix="accelerator-"))
    out.mkdir(parents=True, exist_ok=True)
    if there := [name for name in FILES if (out / name).exists()]:
        raise ValueError(f"{out} holds {there[0]} of another run; give a new folder")
    Rows(out).path.touch(exist_ok=False)
    return out


def _quick() -> dict[str, str]:
    """What has tiny models computed without waste: by one thread, with XLA's least effort."""
    from tests import quickly

    return {"OMP_NUM_THREADS": "1", **quickly.ENVIRONMENT}


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0. Got {text}")
    return minutes


def _complain(text: str) -> int:
    _say(text)
    return 1


def _say(text: str) -> None:
    print(f"benchmarks.accelerator: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
