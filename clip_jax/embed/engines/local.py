"""Runs chunks in this process: threads decode, all its devices embed, a thread writes parts."""

import concurrent.futures
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

from clip_jax.embed.ahead import calling
from clip_jax.embed.counts import Counts
from clip_jax.embed.device_resize import DeviceResizer, Resizing
from clip_jax.embed.engines.embedding import commit, encoder_of
from clip_jax.embed.engines.stopping import Stopping
from clip_jax.embed.engines.work import Work
from clip_jax.embed.part_builder import PartBuilder
from clip_jax.embed.parts import Parts
from clip_jax.encoder import Encoder
from clip_jax.loading import CpuGate, loading
from clip_jax.placement import device_of


@dataclasses.dataclass(frozen=True)
class LocalEngine:
    """Runs chunks in this process.

    Attributes:
        batch_size: rows of a batch over the devices of this process; None for the default.
        num_threads: threads that read and decode; None for one per core.
        read_ahead: the most bytes of rows to read ahead of the device.
        resize: who resizes pictures of sizes that repeat.
    """

    batch_size: int | None
    num_threads: int | None
    read_ahead: int
    resize: Resizing = "host"

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """As `Engine.ready`: there is nothing to do."""
        return contextlib.nullcontext()

    def run(self, work: Work) -> bool:
        """As `Engine.run`."""
        job, counts = work.job, work.counts
        is_cpu = device_of(job.model).platform == "cpu"
        gate = CpuGate(is_shared=is_cpu)
        resizer = None
        if self.resize == "device" and job.layout.what != "texts":
            resizer = DeviceResizer(job.preprocess)
        loader = job.loader(counts, gate, work.formats, resizer)
        counts.losses = loader.losses
        threads = self.num_threads or num_cores()
        encoder: Encoder | None = None
        builder: PartBuilder | None = None
        with (
            loading(
                work.plan.records(), loader, num_threads=threads, read_ahead=self.read_ahead
            ) as ready,
            calling(counts, is_threaded=not is_cpu) as ahead,
            _writing(job.parts, counts, job.check_ours) as write,
            Stopping(work.grace, counts, has_texts=job.layout.what != "images") as stopping,
        ):
            while True:
                with counts.timing("waiting"):
                    loaded = next(ready, None)
                if loaded is None:
                    return encoder is not None
                if encoder is None:
                    work.begin()
                    encoder = encoder_of(job.model, self.batch_size)
                if builder is None:
                    shard = job.rows.shards[loaded.chunk.chunk.shard]
                    builder = PartBuilder(
                        loaded.chunk, shard, job.layout, encoder, counts, gate, ahead, resizer
                    )
                builder.add(loaded)
                work.after_row()
                stopping.added(builder.num_left, builder.num_rows)
                if builder.is_complete:
                    write(builder)
                    stopping.handed_over(builder.num_rows)
                    builder = None


@contextlib.contextmanager
def _writing(
    parts: Parts, counts: Counts, check_ours: Callable[[], None]
) -> Iterator[Callable[[PartBuilder], None]]:
    """Yields a function that writes a part in a separate thread, while the next is computed.

    Before each part `check_ours` looks whether the output is still this job's.
    """
    last: list[concurrent.futures.Future] = []

    def write(builder: PartBuilder) -> None:
        builder.embed_rest()
        while last:
            last.pop().result()
        last.append(pool.submit(commit, builder, parts, counts, check_ours))

    with concurrent.futures.ThreadPoolExecutor(1, "clip-jax-write") as pool:
        yield write
        while last:
            last.pop().result()


def num_cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
