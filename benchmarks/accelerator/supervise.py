"""Runs sections one after the other, each in a process of its own with a share of the time."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.accelerator.cases import OUT_OF_TIME, RESTART, missing
from benchmarks.accelerator.processes import kill_tree
from benchmarks.accelerator.rows import ERROR, NOT_REACHED, Rows
from benchmarks.accelerator.sections import Section

ROOT = Path(__file__).resolve().parent.parent.parent
# Seconds after its share that a section has to finish the row it is at.
GRACE = 10.0
# What the processes print besides rows: warnings, and the tracebacks of rows that failed.
LOG = "log.txt"


class Supervisor:
    """The processes of all sections; a context, at whose end none of them is left.

    The process of the first section is started with the context, that of each other with the one
    before it: they import while nobody waits for them.
    """

    def __init__(
        self,
        sections: Sequence[Section],
        rows: Rows,
        *,
        tiny: bool = False,
        environment: Mapping[str, str] | None = None,
        grace: float = GRACE,
    ):
        """Starts nothing yet.

        Args:
            sections: in their order.
            rows: where their rows go.
            tiny: whether with small models.
            environment: of their processes, besides this one's.
            grace: seconds after its share that a section has to finish the row it is at.
        """
        self._grace = grace
        self._workers = [_Worker(section, rows, tiny, environment or {}) for section in sections]
        self._weights = [section.weight for section in sections]

    def __enter__(self) -> "Supervisor":
        self._workers[0].start()
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.close()

    def run(self, seconds: float) -> None:
        """Runs all sections in so many seconds; whatever happens in one, the next has its turn.

        What a section leaves of its share is for those after it, and what it takes beyond it is
        theirs, too.
        """
        deadline = time.monotonic() + seconds
        for i, worker in enumerate(self._workers):
            if i + 1 < len(self._workers):
                self._workers[i + 1].start()
            left = max(0.0, deadline - time.monotonic())
            worker.run(left * self._weights[i] / sum(self._weights[i:]), self._grace)


class _Worker:
    """A section's process, and those that take its place where it dies."""

    def __init__(self, section: Section, rows: Rows, tiny: bool, environment: Mapping[str, str]):
        self._section, self._rows, self._tiny = section, rows, tiny
        self._environment = environment
        self._scratch = ""
        self._process: subprocess.Popen | None = None

    def close(self) -> None:
        """Leaves nothing of the process, nor of what it wrote to its temporary folder."""
        self._end()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def start(self) -> None:
        """Starts a process, which imports what it needs and waits."""
        self._scratch = self._scratch or tempfile.mkdtemp(prefix="accelerator-")
        folder = self._rows.path.parent
        command = [sys.executable, "-m", "benchmarks.accelerator.worker", self._section.module]
        command += [str(folder), *(["--tiny"] if self._tiny else [])]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {"PYTHONPATH": path, "TMPDIR": self._scratch, "PYTHONUNBUFFERED": "1"}
        environment = {**os.environ, **self._environment, **self._section.environment, **own}
        with open(folder / LOG, "ab") as log:
            # A group of its own, but no session: what ends all of this session's ends it as well.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=log, env=environment, process_group=0
            )

    def run(self, share: float, grace: float) -> None:
        """Has it measure, and others in its place where it dies, until the share is over."""
        deadline, name = time.monotonic() + share, self._section.name
        while True:
            status = self._turn(deadline, grace)
            left = missing(self._section.cases(self._tiny), self._rows.read(), name)
            if left and status is None:  # it was killed for its time
                note = f"stopped: {OUT_OF_TIME}"
                self._rows.add(left.pop(0).row(name, NOT_REACHED, note=note))
            elif left and status != RESTART:
                self._rows.add(left.pop(0).row(name, ERROR, note=_how(status)))
            if status is None or time.monotonic() > deadline:
                for case in left:
                    self._rows.add(case.row(name, NOT_REACHED, note=OUT_OF_TIME))
                break
            if not left:
                break
            self.start()
        self.close()

    def _turn(self, deadline: float, grace: float) -> int | None:
        """The status that the process ends with; None if it had to be killed for its time."""
        process, seconds = self._process, max(0.0, deadline - time.monotonic())
        assert process is not None and process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it has died already, as its status tells
                process.stdin.write(f"{seconds}\n".encode())
                process.stdin.close()
            return process.wait(seconds + grace)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            kill_tree(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whom it has left behind
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        process.wait()


def _how(status: int | None) -> str:
    assert status is not None
    if status < 0:
        return f"the process was ended by {signal.Signals(-status).name} here"
    return f"the process ended with status {status} here; {LOG} has its words"
