"""Counts of a job's rows and parts, and of the time that each stage took."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping

from clip_jax.channels import Losses
from clip_jax.messages import counted
from clip_jax.sources.chosen import Tally

CLOCKS = ("waiting", "reading", "decoding", "device", "blocked", "writing")


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of a job.

    Attributes:
        rows: rows embedded by this run.
        errors: rows of this worker that could not be embedded, in earlier runs too.
        parts: parts written by this run.
        rows_before: rows embedded by earlier runs.
        rows_to_do: rows left to do, after a dry run.
        parts_to_do: parts left to do, after a dry run.
        verified: rows of earlier runs that were found to equal the input.
        seconds: how long the run took, compilation included.
        waited: seconds in which the device waited for data.
        reading: seconds of reading, summed over all threads.
        decoding: seconds of decoding, resizing and cropping, likewise summed.
        device: seconds of computing.
        blocked: seconds in which rows that were ready waited for the device.
        writing: seconds of writing parts, which runs in parallel with the rest.
        remarks: what else there is to know, such as how many pictures have lost something.
    """

    rows: int = 0
    errors: int = 0
    parts: int = 0
    rows_before: int = 0
    rows_to_do: int = 0
    parts_to_do: int = 0
    verified: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    reading: float = 0.0
    decoding: float = 0.0
    device: float = 0.0
    blocked: float = 0.0
    writing: float = 0.0
    remarks: tuple[str, ...] = ()

    @property
    def bottleneck(self) -> str:
        """The slowest stage: "reading", "decoding", "device", "writing" or "host".

        "host" is the job's own work in Python, between the rows' decoding and the device.
        """
        rest = max(self.seconds - self.waited - self.blocked, 0.0)
        if self.waited >= max(self.blocked, rest):
            return "reading" if self.reading > self.decoding else "decoding"
        if self.blocked >= rest:
            return "device"
        return "writing" if self.writing > rest / 2 else "host"

    def __str__(self) -> str:
        if self.verified:
            rest = dataclasses.replace(self, verified=0)
            return f"{counted(self.verified, 'row')} verified: as in the input\n{rest}"
        if self.parts_to_do:
            return (
                f"to do: {counted(self.rows_to_do, 'row')} in "
                f"{counted(self.parts_to_do, 'part')}; done before: "
                f"{self.rows_before:,} rows, {counted(self.errors, 'error')}"
            )
        if not self.parts:
            errors = counted(self.errors, "error")
            return f"no part to write: {self.rows_before:,} rows are there, {errors}"
        return (
            f"{counted(self.rows, 'row')} in {counted(self.parts, 'part')}, "
            f"{self.rows_before:,} rows before, {counted(self.errors, 'error')}; "
            f"{self.seconds:.1f} s, {self.rows / self.seconds:,.1f} rows/s"
            f"\nbottleneck: {self.bottleneck} (waited for data {self.waited:.1f} s, device "
            f"{self.device:.1f} s, writing {self.writing:.1f} s; in all threads reading "
            f"{self.reading:.1f} s, decoding {self.decoding:.1f} s)"
        )


class Counts:
    """Counts and clocks of a running job.

    Attributes:
        losses: the pictures that lose something on their way to pixels.
        tally: the rows that fit the conditions of the input.
        remarks: what else whoever started the job should know.
    """

    def __init__(self) -> None:
        """Starts the clock."""
        self._seconds: dict[str, float] = dict.fromkeys(CLOCKS, 0.0)
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self.rows = self.errors = self.parts = self.verified = 0
        self.rows_before = self.errors_before = self.parts_before = 0
        self.last_error = ""
        self.losses = Losses()
        self.tally = Tally()
        self.remarks: list[str] = []

    @contextlib.contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Adds the time of a block to a clock; thread-safe."""
        start = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[what] += time.monotonic() - start

    def taken(self) -> dict[str, float]:
        """Returns the seconds of each clock, and sets all to 0."""
        with self._lock:
            seconds, self._seconds = self._seconds, {clock: 0.0 for clock in CLOCKS}
        return seconds

    def include(self, seconds: Mapping[str, float], processes: int = 1) -> None:
        """Adds the clocks of another process, one of several that did the same at a time."""
        with self._lock:
            for clock, each in seconds.items():
                self._seconds[clock] += each / processes

    @property
    def waiting(self) -> float:
        """The fraction of the time, 0 to 1, in which the device waited for data."""
        return self._seconds["waiting"] / max(time.monotonic() - self._start, 1e-9)

    @property
    def seconds_to_write(self) -> float:
        """How long it takes to write a part, on average so far."""
        return self._seconds["writing"] / max(self.parts, 1)

    def failed(self, error: str) -> None:
        """Counts a row that could not be embedded."""
        self.errors += 1
        self.last_error = error

    def kept(self) -> str:
        """Returns the message for a job that is stopped."""
        return (
            f"{counted(self.parts, 'part')} written now and {self.parts_before:,} written before "
            "are kept; the same command goes on from there"
        )

    def summary(self, rows_to_do: int = 0, parts_to_do: int = 0) -> Summary:
        """Returns the result so far."""
        return Summary(
            rows=self.rows,
            errors=self.errors + self.errors_before,
            parts=self.parts,
            rows_before=self.rows_before,
            rows_to_do=rows_to_do,
            parts_to_do=parts_to_do,
            verified=self.verified,
            seconds=time.monotonic() - self._start,
            waited=self._seconds["waiting"],
            reading=self._seconds["reading"],
            decoding=self._seconds["decoding"],
            device=self._seconds["device"],
            blocked=self._seconds["blocked"],
            writing=self._seconds["writing"],
            remarks=(*self.remarks, *self.tally.sentences(), *self.losses.sentences()),
        )
