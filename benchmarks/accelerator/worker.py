"""What runs in a section's process: imports, then waits for its turn, then measures.

    python -m benchmarks.accelerator.worker SECTION DIR [--tiny]

The imports take seconds and no device, so they are done while the section before is measured. The
line on standard input says how many seconds there are.
"""

import argparse
import contextlib
import importlib
import sys
import time

from benchmarks.accelerator.cases import run_cases
from benchmarks.accelerator.processes import die_with_parent
from benchmarks.accelerator.rows import Rows
from benchmarks.accelerator.sections import section_of


def main() -> int:
    parser = argparse.ArgumentParser(description="What runs in a section's process.")
    parser.add_argument("module")
    parser.add_argument("folder")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    die_with_parent()
    section = section_of(arguments.module)
    for name in section.imports:
        # Of what is missing or broken the rows say so.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    turn = sys.stdin.readline()
    if not turn:  # there will be none
        return 0
    deadline = time.monotonic() + float(turn)
    cases = section.cases(arguments.tiny)
    rows = Rows(arguments.folder)
    return run_cases(
        section.name,
        cases,
        rows,
        deadline,
        hurry=not arguments.tiny,
        uses_device=section.uses_device,
    )


if __name__ == "__main__":
    sys.exit(main())
