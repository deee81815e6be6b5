"""The rows that a section plans, run one after the other until its time is over."""

import collections
import dataclasses
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.accelerator import keep
from benchmarks.accelerator.rows import (
    ERROR,
    NO_MEMORY,
    NOT_HERE,
    NOT_REACHED,
    OK,
    Row,
    Rows,
)

OUT_OF_TIME = "out of time"
# How a worker ends that can measure no more although there is more to be measured: its device
# has failed for good, as after an illegal address, and a new process may have it back.
RESTART = 75


class NotHere(Exception):
    """What a row is of isn't installed, or not for this device; says what."""


class OutOfMemory(Exception):
    """A process that a row has started has run out of memory."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A row that is planned.

    Attributes:
        what: is measured, without the size.
        contender: who.
        run: measures with a size and gives `value` and `unit`, besides whatever else the row is to
            hold: `ratio` and `beside`, `note`, numbers for the table of defaults. With
            `larger` it asks to be run with twice the size, too, after all other cases.
        size: to begin with, halved as long as the memory doesn't suffice.
        size_name: of what the size is.
        seconds: it takes at least; with less time left it isn't begun.
        about: what the row says besides, whatever becomes of it.
    """

    what: str
    contender: str
    run: Callable[[int | None], dict[str, Any]]
    size: int | None = None
    size_name: str = "batch"
    seconds: float = 0.0
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> list:
        """Tells it from the others of its section, in a row, too."""
        return [self.what, self.contender, self.size]

    def row(self, section: str, status: str, size: int | None = None, **others: Any) -> Row:
        """A row of this case."""
        return {
            "section": section,
            "what": self.what,
            "contender": self.contender,
            "status": status,
            "size": self.size if size is None else size,
            "size_name": self.size_name,
            "case": self.key,
            **self.about,
            **others,
        }


def missing(cases: Sequence[Case], rows: Sequence[Row], section: str) -> list[Case]:
    """The cases of a section that have no row, or only ones of sizes that were too large."""
    done = [
        row["case"]
        for row in rows
        if row.get("section") == section and not row.get("is_followed", False)
    ]
    return [case for case in cases if case.key not in done]


def run_cases(
    section: str,
    cases: Sequence[Case],
    rows: Rows,
    deadline: float,
    *,
    hurry: bool = True,
    uses_device: bool = True,
) -> int:
    """Runs what has no row yet; every case has one in the end, whatever happens.

    Args:
        section: its name.
        cases: in the order of their worth.
        rows: where they go.
        deadline: of `time.monotonic`, after which nothing is begun.
        hurry: whether cases that need more than the time left aren't begun.
        uses_device: whether this process does; else it has others for that, and leaves it alone.

    Returns:
        The status to exit with: 0, or `RESTART` if the device has failed with cases left.
    """
    todo = collections.deque((case, case.size) for case in missing(cases, rows.read(), section))
    while todo:
        case, size = todo.popleft()
        left = deadline - time.monotonic()
        is_larger = size != case.size
        if left < (case.seconds if hurry else 0):
            if not is_larger:  # else it has a row
                rows.add(case.row(section, NOT_REACHED, note=OUT_OF_TIME))
            continue
        status, asks_for_more = _run(section, case, size, rows)
        if asks_for_more and size is not None:
            todo.append((case, 2 * size))  # behind all that have no row yet
        if status == ERROR and todo and uses_device and not _device_works():
            return RESTART
    return 0


def _run(section: str, case: Case, size: int | None, rows: Rows) -> tuple[str, bool]:
    """Writes the rows of a case; what became of the last, and whether it asks for a larger one."""
    planned = case.size or 0
    while True:
        begin = time.monotonic()
        status, fields = _attempt(case, size)
        fields["seconds"] = round(time.monotonic() - begin, 1)
        asks_for_more = fields.pop("larger", False) and (size or 0) >= planned
        smaller = None
        if status == NO_MEMORY:
            keep.forget()
            if size is not None and 1 < size <= planned:  # at half of a larger one it did fit
                smaller = size // 2
        rows.add(case.row(section, status, size, **fields, is_followed=smaller is not None))
        if smaller is None:
            return status, asks_for_more
        size = smaller


def _attempt(case: Case, size: int | None) -> tuple[str, dict[str, Any]]:
    """What becomes of a case, and what its row is to hold."""
    try:
        return OK, dict(case.run(size))
    except Exception as error:
        status, fields = kind_of(error), {"note": line_of(error)}
        if status == ERROR:
            traceback.print_exc()
        # What hangs on the tracebacks is what has filled the memory.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        return status, fields


def kind_of(error: Exception) -> str:
    """What becomes of a row that ends with this."""
    if isinstance(error, NotHere | ModuleNotFoundError):
        return NOT_HERE
    text = str(error).lower()
    if (
        isinstance(error, OutOfMemory | MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # PyTorch's
        or "resource_exhausted" in text
        or "out of memory" in text
        or "alloc_failed" in text  # cuBLAS's and cuDNN's
    ):
        return NO_MEMORY
    return ERROR


def line_of(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, NotHere):
        return text
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _device_works() -> bool:
    """Whether frameworks that are in use still compute."""
    try:
        if jax := sys.modules.get("jax"):
            jax.block_until_ready(jax.numpy.arange(8) + 1)
        torch = sys.modules.get("torch")
        if torch and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except Exception:
        traceback.print_exc()
        return False
    return True
