"""Runs chunks on a Ray cluster: CPUs decode, accelerators embed, and Ray places the work."""

import collections
import contextlib
import dataclasses
import os
import uuid
from collections.abc import Iterator
from typing import Any

import jax

from clip_jax.embed.counts import Counts
from clip_jax.embed.engines import rows as rows_
from clip_jax.embed.engines.places import versions
from clip_jax.embed.engines.ray_cluster import accelerators, connected, nodes
from clip_jax.embed.engines.ray_decoding import Outline, open_shard
from clip_jax.embed.engines.ray_driver import Driver
from clip_jax.embed.engines.ray_encoder import Loading
from clip_jax.embed.engines.ray_losses import Lost, raised
from clip_jax.embed.engines.work import Work
from clip_jax.embed.setup import PRESETS, Preset
from clip_jax.loading import CpuGate
from clip_jax.nn import CLIP
from clip_jax.sources import Record, Rows, Shard
from clip_jax.storage import absolute, is_remote
from clip_jax.weights.opened import LoadOptions

# The most rows of a group that one process decodes at a time: more would come late, and be more to
# do again; fewer would cost more than they take. Texts take next to nothing.
PICTURES, TEXTS = 32, 1024
# The same where a row group must be read from its beginning for each.
OF_A_ROW_GROUP = 256
# Threads of a decoder that reads from a store, which has it wait.
THREADS = 8
# How many files are opened ahead of those that are embedded.
OPENING = 8
# The least memory of a cluster on this machine for decoded rows.
LEAST_MEMORY = 256 << 20


@dataclasses.dataclass
class RayEngine:
    """Runs chunks on a Ray cluster.

    Attributes:
        address: "auto" or HOST:PORT; None for a cluster on this machine that ends with the job.
        encoders: how many processes embed; None for one per accelerator, or per node without any.
        decoders: the most groups of rows decoded at a time; None for what the CPUs can take.
        batch_size: rows of a batch over the devices of an encoder; None for the default.
        num_threads: threads of a decoder.
        read_ahead: the most bytes of rows to read ahead of each encoder.
        model: the model as it was given.
        preset: how a model given by name or path computes.
        options: how it is loaded.
    """

    address: str | None
    encoders: int | None
    decoders: int | None
    batch_size: int | None
    num_threads: int | None
    read_ahead: int
    model: CLIP | str | os.PathLike[str]
    preset: Preset
    options: LoadOptions
    # Whether all processes of the job end with the connection.
    _ends: bool = dataclasses.field(default=True, init=False)

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Joins or starts the cluster for the block, in which this process uses no accelerator."""
        memory = max(LEAST_MEMORY, 3 * self.read_ahead)
        with connected(self.address, memory) as ends, _on_cpu():
            self._ends = ends
            yield

    def run(self, work: Work) -> bool:
        """As `Engine.run`."""
        import ray

        job = work.job
        kind, _ = accelerators()
        inputs = [shard.path for shard in job.rows.shards]
        remote = any(is_remote(path) for path in inputs)
        here = [] if os.path.isabs(job.source) else [os.getcwd()]
        outline = Outline(
            job.outline(),
            work.formats,
            self.num_threads or (THREADS if remote else 1),
            kind == "CPU",
            os.getcwd(),
            [] if remote else [absolute(inputs[0]), *here],
            versions(),
            uuid.uuid4().hex,
        )
        if not is_remote(job.out) and (count := _num_machines()) > 1:
            work.counts.remarks.append(
                f"{job.out} is a path, and the cluster has {count} machines: all must share it"
            )
        reference = [outline.token, ray.put(outline)]
        work.plan.open_by(_Opening(reference, work).open)
        return Driver(
            work,
            reference,
            # What is begun may have noted the columns' types.
            lambda: (
                [ray.put(dataclasses.replace(outline, job=job.outline()))],
                [ray.put(self._travelling(job.opened))],
            ),
            kind=kind,
            encoders=self.encoders,
            decoders=self.decoders,
            batch_size=self.batch_size,
            read_ahead=self.read_ahead,
            row_bytes=_row_bytes(work),
            rows=TEXTS if job.layout.what == "texts" else PICTURES,
            rows_of_row_group=OF_A_ROW_GROUP,
            stays=not self._ends,
        ).run()

    def _travelling(self, opened: Any) -> Any:
        """Returns the model as it travels to the encoders."""
        if isinstance(self.model, CLIP):
            return opened
        name = os.fspath(self.model)
        name = os.path.abspath(name) if os.path.exists(name) else name
        return Loading(name, self.options, PRESETS[self.preset])


class _Opening:
    """Opens shards where the cluster has room, ahead of the plan."""

    def __init__(self, reference: list[Any], work: Work):
        self._reference = reference
        self._next = collections.deque(s for s in work.plan.unopened() if not rows_.is_light(s))
        self._begun: dict[int, Any] = {}

    def open(self, shard: Shard) -> Rows:
        """Opens a shard; returns rows that can travel."""
        import ray
        from ray.exceptions import RayError

        if rows_.is_light(shard):
            return rows_.opened(shard)
        self._begin(shard)
        while self._next and len(self._begun) < OPENING:
            self._begin(self._next.popleft())
        try:
            return ray.get(self._begun.pop(id(shard)))
        except RayError as error:
            found = raised(error)
            if isinstance(found, Lost):  # whatever befalls other processes
                return rows_.opened(shard)
            raise found from None

    def _begin(self, shard: Shard) -> None:
        import ray

        if id(shard) not in self._begun:
            task = ray.remote(open_shard).options(num_cpus=1, max_retries=3)
            self._begun[id(shard)] = task.remote(self._reference, shard)


def _row_bytes(work: Work) -> int:
    """Returns the bytes that a decoded row takes."""
    loader = work.job.loader(Counts(), CpuGate(is_shared=False), work.formats)
    return loader.size(Record(""))


def _num_machines() -> int:
    return len({node["NodeManagerHostname"] for node in nodes()})


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """Has JAX put arrays on the CPU in the block, so that accelerators are the encoders'."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # this process is told not to have it
        yield
        return
    with jax.default_device(device):
        yield
