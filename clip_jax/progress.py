"""Progress of a long job: a bar on a terminal, elsewhere lines of JSON."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from clip_jax.messages import counted

# Seconds between lines of JSON.
EVERY = 30.0
# The least seconds between two updates of the bar.
REFRESH = 0.1


def announce(step: str, show: bool = True) -> None:
    """Prints on a terminal that a step of a job begins.

    Args:
        step: a description, such as "loading the model".
        show: whether to print at all.
    """
    if show and sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(f"{step} ...", file=sys.stderr)  # above a bar, if there is one


@contextlib.contextmanager
def announcing(show: bool = True) -> Iterator[None]:
    """Has the block announce each program that is compiled, which may take minutes.

    Args:
        show: whether to do so; else what surrounds the block decides.
    """
    before = _compiling.show
    _compiling.show = show or before
    try:
        yield
    finally:
        _compiling.show = before


def announce_compilation(what: str) -> None:
    """Announces in `announcing` that a program is compiled.

    Args:
        what: what the program is for, such as "pictures".
    """
    announce(f"compiling for {what}", _compiling.show)


class _Compiling:
    show = False  # of all threads: the encoder may be called in another


_compiling = _Compiling()


def remark(text: str, show: bool = True) -> None:
    """Prints what whoever started a job should know, also where there is no terminal.

    Args:
        text: the sentence; nothing is printed if it is empty.
        show: whether to print at all.
    """
    if show and text:
        from tqdm import tqdm

        for line in text.splitlines():
            tqdm.write(line, file=sys.stderr)  # above a bar


class Progress:
    """A display of the number of rows done.

    On a terminal it is a bar; elsewhere it prints a line of JSON every 30 seconds. Both go to
    standard error.

    Example:
        with Progress(show=True) as progress:
            for done, row in enumerate(rows, 1):
                ...
                progress.update(done, total=len(rows))
    """

    def __init__(self, show: bool):
        """Starts the clock.

        Args:
            show: whether to show anything.
        """
        from tqdm import tqdm  # not above: commands that compute nothing are quick without it

        self._start = self._last = self._shown = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._show = show
        self._bar = tqdm(unit="row", disable=not (show and self._is_terminal), smoothing=0.05)
        self._state = 0, 0, 0.0

    def update(
        self, rows: int, *, errors: int = 0, total: int | None = None, waiting: float = 0.0
    ) -> None:
        """Updates the display; cheap enough to be called for each row.

        Args:
            rows: the number of rows done.
            errors: the number of rows that have failed.
            total: the number of rows in all, if known.
            waiting: the fraction of the time, 0 to 1, in which the device waited for data.
        """
        self._state = rows, errors, waiting
        now = time.monotonic()
        if now - self._shown < REFRESH:
            return
        self._shown = now
        if self._is_terminal:
            self._bar.total = total
            self._draw()
        elif self._show and now - self._last >= EVERY:
            self._last = now
            seconds, done = max(now - self._start, 1e-9), rows + errors
            left = (total - done) * seconds / done if total is not None and done else None
            line: dict[str, Any] = {
                "rows": rows,
                "total": total,
                "rows_per_second": round(rows / seconds, 1),
                "remaining_seconds": None if left is None else round(left),
                "errors": errors,
                "waiting": round(waiting, 3),
            }
            print(json.dumps(line), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Shows the last state and ends the display."""
        self._draw()
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _draw(self) -> None:
        rows, errors, waiting = self._state
        text = f"{counted(errors, 'error')}, {waiting:.0%} waiting"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(rows + errors - self._bar.n)
