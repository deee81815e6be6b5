"""The driver of a job on Ray: gives chunks to encoders that are free, and rows to decoders.

It holds references to decoded rows, never the rows: these go from the process that decodes to the
one that encodes. Whatever is lost with a process or a node is done again.
"""

import collections
import contextlib
import functools
import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any

from clip_jax.embed.engines.ray_chunks import EncoderHandle, Feeder, GivenChunk, Group
from clip_jax.embed.engines.ray_cluster import accelerators, nodes
from clip_jax.embed.engines.ray_decoding import Told, decode
from clip_jax.embed.engines.ray_encoder import ChunkEncoder, Progressed
from clip_jax.embed.engines.ray_losses import EncoderLost, Lost, line, result_of
from clip_jax.embed.engines.rows import Reopened, between, crashed, groups
from clip_jax.embed.engines.work import Work
from clip_jax.naming import reading
from clip_jax.sources.folder import FolderShard

# Chunks of an encoder: while one is embedded, rows of the next are decoded.
CHUNKS = 2
# How often a group of rows is tried whose decoder crashes, and then each of its rows by itself.
TRIES = 3
# How often a chunk is tried whose encoder is lost; how many may be lost while no part is written.
MOST_TRIES = MOST_LOST = 10
# Seconds between two looks at signals, and at the cluster's nodes.
EVERY, LOOK = 0.2, 5.0


class Driver:
    """Runs the chunks of a job."""

    def __init__(
        self,
        work: Work,
        outline: list[Any],
        for_encoders: Callable[[], tuple[list[Any], list[Any]]],
        *,
        kind: str,
        encoders: int | None,
        decoders: int | None,
        batch_size: int | None,
        read_ahead: int,
        row_bytes: int,
        rows: int,
        rows_of_row_group: int,
        stays: bool,
    ):
        """Starts nothing yet.

        Args:
            work: the chunks.
            outline: the job's token, and a reference to its `Outline`.
            for_encoders: returns references to the `Outline` and to the model, once the output is
                this job's.
            kind: what encoders compute with: "GPU", "TPU" or "CPU".
            encoders: how many there are to be; None for as many as the cluster can have.
            decoders: the most groups that are decoded at a time; None for any number.
            batch_size: as for `embed`.
            read_ahead: the most bytes of decoded rows of an encoder.
            row_bytes: the bytes of a decoded row.
            rows: the most rows of a group.
            rows_of_row_group: the same where row groups must be read from their beginning.
            stays: whether the connection to the cluster stays, so that processes must be ended.
        """
        self._work, self._outline, self._kind = work, outline, kind
        self._for_encoders = for_encoders
        self._encoders_wanted, self._decoders = encoders, decoders
        self._batch_size, self._read_ahead, self._row_bytes = batch_size, read_ahead, row_bytes
        fitting = max(read_ahead // (2 * row_bytes), 1)
        self._rows, self._rows_of_row_group = min(rows, fitting), min(rows_of_row_group, fitting)
        self._stays = stays
        self._numbers = itertools.count()
        self._encoders: list[EncoderHandle] = []
        self._answers: dict[Any, Callable[[Any], None]] = {}  # what to do with each
        self._decoding: set[Any] = set()
        self._tries: collections.Counter[str] = collections.Counter()
        self._lost, self._lost_ever, self._room, self._looked = 0, False, 0, float("-inf")
        self._references: Any = None
        self._feeder = Feeder(work.plan.opened_chunks())

    def run(self) -> bool:
        """Embeds all chunks; returns whether there were any.

        Raises:
            OSError: the cluster, or one encoder after the other, is lost; and as `embed`.
            ValueError: as `embed`.
        """
        from ray.exceptions import RayError

        try:
            while True:
                self._give()
                if self._feeder.is_over and not any(e.chunks for e in self._encoders):
                    if self._lost_ever:  # which may have left files that they were writing
                        self._work.plan.clean()
                    return self._references is not None
                self._decode()
                self._wait()
        except RayError as error:
            raise OSError(f"the Ray cluster is lost: {line(error)}") from None
        finally:
            self._end()

    def _give(self) -> None:
        """Gives chunks to encoders: first to those that have none, then to new ones."""
        if self._feeder and self._references is None:
            self._work.begin()
            self._references = self._for_encoders()
        for encoder in sorted(self._encoders, key=lambda encoder: not encoder.is_ready):
            if self._feeder and not encoder.chunks:
                self._give_to(encoder)
        while self._feeder and len(self._encoders) < self._most_encoders():
            self._give_to(self._start_encoder())
        for encoder in self._encoders:
            while self._feeder and len(encoder.chunks) < CHUNKS:
                self._give_to(encoder)
        self._move()

    def _give_to(self, encoder: EncoderHandle) -> None:
        pending, rows = self._feeder.take()
        chunk, shard = pending.chunk, self._work.job.rows.shards[pending.chunk.shard]
        name = shard.name
        if isinstance(shard, FolderShard):
            shard = shard.between(chunk.begin, chunk.end)
        size = self._rows_of_row_group if isinstance(rows, Reopened) else self._rows
        waiting = collections.deque(groups(pending, rows, size))
        given = GivenChunk(
            next(self._numbers), pending, rows, shard, name, encoder, waiting=waiting
        )
        encoder.chunks.append(given)

    def _move(self) -> None:
        """Moves chunks from encoders that wait for a place in the cluster to idle ones."""
        waiting = [e for e in self._encoders if e.chunks and not e.is_ready]
        for encoder in self._encoders:
            if waiting and encoder.is_ready and not encoder.chunks:
                chunk = waiting[-1].chunks.pop(0)
                chunk.encoder = encoder
                encoder.chunks.append(chunk)
                waiting = [e for e in waiting if e.chunks]
                self._add(encoder)

    def _most_encoders(self) -> int:
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            self._room = self._encoders_wanted or max(accelerators()[1], 1)
        return self._room

    def _start_encoder(self) -> EncoderHandle:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # A slot of the CPUs is what decoders have: an encoder without an accelerator takes none.
        how: dict[str, Any] = {"num_cpus": 0}
        node = None
        if self._kind == "CPU":
            counts = collections.Counter(encoder.node for encoder in self._encoders)
            there = [node["NodeID"] for node in nodes()]
            node = min(there, key=lambda node: counts[node], default=None)
            if node is not None:
                how["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        elif self._kind == "GPU":
            how["num_gpus"] = 1
        else:
            how["resources"] = {self._kind: 1}
        remote: Any = ray.remote
        actor = remote(concurrency_groups={"writing": 1})(ChunkEncoder)
        handle = actor.options(**how).remote(*self._references, self._batch_size)
        encoder = EncoderHandle(handle, node)
        self._encoders.append(encoder)
        self._answers[handle.start.remote()] = functools.partial(self._started, encoder)
        return encoder

    def _started(self, encoder: EncoderHandle, answer: Any) -> None:
        with self._losses(encoder):
            result_of(answer)
            encoder.is_ready = True
            self._add(encoder)

    def _decode(self) -> None:
        """Has groups of rows decoded, of each encoder's chunks in order, as far as there is room.

        A group that finds nothing in flight is always admitted.
        """
        for encoder in sorted(self._encoders, key=lambda encoder: encoder.in_flight):
            while chunk := next((chunk for chunk in encoder.chunks if chunk.waiting), None):
                size, in_flight = len(chunk.waiting[0]) * self._row_bytes, encoder.in_flight
                if in_flight and in_flight + size > self._read_ahead:
                    break
                if self._decoders and len(self._decoding) >= self._decoders:
                    return
                group = Group(chunk.waiting.popleft(), size)
                chunk.decoding.append(group)
                self._send(chunk, group)

    def _send(self, chunk: GivenChunk, group: Group) -> None:
        import ray

        numbers = group.numbers
        rows = between(chunk.rows, numbers[0], numbers[-1] + 1)
        task: Any = ray.remote(decode)
        task = task.options(num_cpus=1, num_returns=2, max_retries=TRIES - 1)
        group.loaded, told = task.remote(self._outline, chunk.name, rows, numbers)
        self._decoding.add(told)
        self._answers[told] = functools.partial(self._decoded, chunk, group)

    def _decoded(self, chunk: GivenChunk, group: Group, answer: Any) -> None:
        self._decoding.discard(answer)
        if chunk.is_dropped:
            return
        try:
            self._note(result_of(answer))
            group.is_ready = True
        except Lost:
            self._isolate(chunk, group)
        self._add(chunk.encoder)

    def _isolate(self, chunk: GivenChunk, group: Group) -> None:
        """Tries each row of a group by itself whose decoder has crashed; or gives the row up."""
        if len(group.numbers) == 1:
            group.loaded = [crashed(chunk.rows, chunk.name, group.numbers[0], TRIES)]
            group.is_ready = True
            return
        alone = [Group([number], self._row_bytes) for number in group.numbers]
        place = chunk.decoding.index(group)
        chunk.decoding.remove(group)
        for i, each in enumerate(alone):
            chunk.decoding.insert(place + i, each)
            self._send(chunk, each)

    def _add(self, encoder: EncoderHandle) -> None:
        """Gives an encoder the rows that are decoded, chunk by chunk and in order."""
        while encoder.is_ready and (chunk := encoder.current) is not None:
            actor = encoder.actor
            if not chunk.has_begun:
                chunk.has_begun = True
                actor.begin.remote(chunk.number, chunk.pending, chunk.shard)
            while chunk.decoding and chunk.decoding[0].is_ready:
                group = chunk.decoding.popleft()
                chunk.adding.append(group)
                answer = actor.add.remote(chunk.number, group.loaded)
                self._answers[answer] = functools.partial(self._added, chunk, group)
                group.loaded = None
            if chunk.decoding or chunk.waiting:
                return
            chunk.is_ending = True
            answer = actor.embed_rest.remote(chunk.number)
            self._answers[answer] = functools.partial(self._ended, chunk)

    def _added(self, chunk: GivenChunk, group: Group, answer: Any) -> None:
        if not chunk.is_dropped:
            chunk.adding.remove(group)
            with self._losses(chunk.encoder, chunk):
                self._count(chunk, result_of(answer))

    def _ended(self, chunk: GivenChunk, answer: Any) -> None:
        if not chunk.is_dropped:
            with self._losses(chunk.encoder, chunk):
                self._count(chunk, result_of(answer))
                commit = chunk.encoder.actor.commit.options(concurrency_group="writing")
                answer = commit.remote(chunk.number)
                self._answers[answer] = functools.partial(self._committed, chunk)

    def _committed(self, chunk: GivenChunk, answer: Any) -> None:
        if not chunk.is_dropped:
            with self._losses(chunk.encoder, chunk):
                self._work.counts.parts += result_of(answer)
                chunk.encoder.chunks.remove(chunk)
                self._lost = 0

    def _count(self, chunk: GivenChunk, progressed: Progressed) -> None:
        counts = self._work.counts
        chunk.rows_done += progressed.rows
        chunk.errors_done += progressed.errors
        counts.rows += progressed.rows
        counts.errors += progressed.errors
        counts.last_error = progressed.last_error or counts.last_error
        counts.include(progressed.seconds, processes=len(self._encoders))
        self._work.after_row()

    def _note(self, told: Told) -> None:
        counts = self._work.counts
        counts.include(told.seconds)
        counts.losses.include(told.losses)
        for key, message in told.warned:
            with reading(key) if key else contextlib.nullcontext():
                warnings.warn(message, stacklevel=2)

    @contextlib.contextmanager
    def _losses(self, encoder: EncoderHandle, chunk: GivenChunk | None = None):
        """Has what the block finds to be lost done again."""
        try:
            yield
        except EncoderLost as lost:
            self._lose(encoder, lost)
        except Lost as lost:
            if chunk is None:
                self._lose(encoder, lost)
            else:
                encoder.actor.drop.remote(chunk.number)
                self._redo(chunk, lost)

    def _lose(self, encoder: EncoderHandle, lost: Lost) -> None:
        import ray

        if encoder not in self._encoders:
            return
        self._encoders.remove(encoder)
        with contextlib.suppress(Exception):  # it may only be out of reach
            ray.kill(encoder.actor)
        for chunk in list(encoder.chunks):
            self._redo(chunk, lost)
        self._lost, self._lost_ever = self._lost + 1, True
        self._looked = float("-inf")
        if self._lost > MOST_LOST:
            raise OSError(f"{self._lost} encoders were lost without a part written: {line(lost)}")

    def _redo(self, chunk: GivenChunk, lost: Lost) -> None:
        chunk.is_dropped = True
        chunk.encoder.chunks.remove(chunk)
        self._work.counts.rows -= chunk.rows_done
        self._work.counts.errors -= chunk.errors_done
        name = chunk.pending.chunk.name
        self._tries[name] += chunk.has_begun
        if self._tries[name] >= MOST_TRIES:
            raise OSError(f"the encoder of part {name} was lost {MOST_TRIES} times: {line(lost)}")
        self._feeder.give_back((chunk.pending, chunk.rows))

    def _wait(self) -> None:
        """Waits for an answer, and does what is to be done with all that are there."""
        import ray

        if not self._answers:
            time.sleep(EVERY / 10)
            return
        waiting = list(self._answers)
        found, _ = ray.wait(waiting, num_returns=1, timeout=EVERY, fetch_local=False)
        if found:
            found, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        for answer in found:
            self._answers.pop(answer)(answer)

    def _end(self) -> None:
        import ray

        self._feeder.close()
        if not self._stays:  # and a cluster that a signal has ended, too, wouldn't answer
            return
        for decoding in self._decoding:
            with contextlib.suppress(Exception):
                ray.cancel(decoding)
        for encoder in self._encoders:
            with contextlib.suppress(Exception):
                ray.kill(encoder.actor)
