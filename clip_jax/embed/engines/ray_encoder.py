"""What Ray runs on each accelerator: embeds the decoded rows of chunks, and writes their parts."""

import concurrent.futures
import dataclasses
import platform
import time
from collections.abc import Mapping
from typing import Any

from clip_jax.embed.ahead import Ahead
from clip_jax.embed.counts import Counts
from clip_jax.embed.engines.embedding import commit, encoder_of
from clip_jax.embed.engines.places import check_here
from clip_jax.embed.engines.ray_decoding import Outline
from clip_jax.embed.identity import JOB
from clip_jax.embed.part_builder import PartBuilder
from clip_jax.embed.plan import Pending
from clip_jax.loading import CpuGate, Loaded
from clip_jax.nn import model_digest
from clip_jax.sources import Shard
from clip_jax.storage import storage
from clip_jax.weights import load
from clip_jax.weights.opened import LoadOptions, Opened, open_model


@dataclasses.dataclass(frozen=True)
class Loading:
    """How a node loads a model that was given by name or path.

    Attributes:
        model: its name or path.
        options: how it is to be loaded.
        how: further arguments of `clip_jax.load`.
    """

    model: str
    options: LoadOptions
    how: Mapping[str, Any]

    def opened(self) -> Opened:
        """Loads it."""
        return open_model(self.model, self.options, load, **self.how)


@dataclasses.dataclass(frozen=True)
class Progressed:
    """What the driver learns of an encoder's call.

    Attributes:
        rows: rows that were embedded since the last call.
        errors: rows that could not be.
        last_error: the last of these.
        seconds: how long each stage took since the last call.
    """

    rows: int
    errors: int
    last_error: str
    seconds: dict[str, float]


class ChunkEncoder:
    """An actor: embeds chunks, one after the other, and writes their parts."""

    def __init__(self, outline: list[Any], model: list[Any], batch_size: int | None):
        """Does nothing yet.

        Args:
            outline: a reference to the `Outline`, in a list.
            model: a reference to an `Opened` or a `Loading`, in a list.
            batch_size: as for `embed`.
        """
        self._outline, self._model, self._batch_size = outline, model, batch_size
        self._counts, self._gate = Counts(), CpuGate(is_shared=False)
        self._builders: dict[int, PartBuilder] = {}
        self._told, self._since = (0, 0), 0.0

    def start(self) -> str:
        """Loads the model; returns a description of the device.

        Raises:
            ValueError: this node lacks something, or has another model of that name.
        """
        import ray

        outline: Outline = ray.get(self._outline[0])
        check_here(outline.folder, outline.paths, outline.versions)
        self._job = job = outline.job
        try:
            storage(job.out).size(f"{job.out}/{JOB}")
        except FileNotFoundError:
            raise ValueError(
                f"{job.out} is another folder on the node {platform.node()}: give one that all "
                "nodes share, or an address such as s3://"
            ) from None
        found: Any = ray.get(self._model[0])
        opened = found.opened() if isinstance(found, Loading) else found
        if isinstance(found, Loading):
            expected, digest = job.identity["model"], model_digest(opened.model)
            if digest != expected:
                raise ValueError(
                    f"{found.model} is another model on the node {platform.node()}: its "
                    f"fingerprint is {digest[:16]}, and {expected[:16]} where the job was started"
                )
        self._encoder = encoder_of(opened.model, self._batch_size)
        is_cpu = self._encoder.device.platform == "cpu"
        pool = None if is_cpu else concurrent.futures.ThreadPoolExecutor(1, "clip-jax-encode")
        self._ahead = Ahead(pool, self._counts)
        self._since = time.monotonic()
        return f"{self._encoder.device.device_kind} of {platform.node()}"

    def begin(self, number: int, pending: Pending, shard: Shard) -> None:
        """Begins a chunk, given its number, of which there is only one."""
        self._builders[number] = PartBuilder(
            pending, shard, self._job.layout, self._encoder, self._counts, self._gate, self._ahead
        )

    def add(self, number: int, group: list[Loaded]) -> Progressed:
        """Adds the next rows of a chunk."""
        builder, counts = self._builders[number], self._counts
        counts.include({"waiting": time.monotonic() - self._since})
        for loaded in group:
            builder.add(loaded)
        return self._progressed()

    def embed_rest(self, number: int) -> Progressed:
        """Embeds what is left of a chunk whose rows have all been added."""
        self._builders[number].embed_rest()
        return self._progressed()

    def commit(self, number: int) -> int:
        """Writes a chunk's part, while others are embedded; returns how many files that were."""
        builder, before = self._builders.pop(number), self._counts.parts
        commit(builder, self._job.parts, self._counts, self._job.check_ours)
        return self._counts.parts - before

    def drop(self, number: int) -> None:
        """Forgets a chunk."""
        self._builders.pop(number, None)

    def _progressed(self) -> Progressed:
        counts, told = self._counts, self._told
        now = counts.rows, counts.errors
        self._told, self._since = now, time.monotonic()
        return Progressed(now[0] - told[0], now[1] - told[1], counts.last_error, counts.taken())
