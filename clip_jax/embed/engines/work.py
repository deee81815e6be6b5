"""What a job asks of an engine. How a chunk is embedded and committed is in `embedding.py`."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from clip_jax.embed.counts import Counts
from clip_jax.embed.plan import Plan
from clip_jax.embed.setup import Job


@dataclasses.dataclass(frozen=True)
class Work:
    """The chunks to run.

    Attributes:
        job: the job.
        plan: what is left to do.
        counts: receives rows, errors and times.
        begin: makes the output this job's; called once, before the first row is embedded.
        after_row: called as rows are done; may raise to end the job.
        formats: the accepted formats of pictures.
        grace: the seconds after SIGTERM in which the process must end.
    """

    job: Job
    plan: Plan
    counts: Counts
    begin: Callable[[], None]
    after_row: Callable[[], None]
    formats: Sequence[str]
    grace: float = 0.0


class Engine(Protocol):
    """Runs the chunks of a job."""

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """Makes ready for the block what runs the chunks, before anything is read.

        Raises:
            ValueError: it can't do the work.
            OSError: it can't be reached.
            ModuleNotFoundError: an extra isn't installed.
        """
        ...

    def run(self, work: Work) -> bool:
        """Embeds the rows of a plan and writes their parts; returns whether there were any.

        Raises:
            ValueError: as `embed`.
            OSError: as `embed`.
            MemoryError: memory has run out.
        """
        ...
