"""An embedding job on a cluster of several nodes, whose processes are killed at random.

Run: python -m tests.ray_kills 20 [SEED]
"""

import collections
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import clip_jax
from tests import ray_clusters
from tests.embedding_jobs import contents, write_pictures
from tests.models import SMALL_VIT, small

KINDS = ("worker", "encoder", "node", "driver")


class Job:
    """The command that a user starts again whenever it was killed."""

    def __init__(self, folder: Path, out: Path, address: str):
        """Starts it."""
        command = [sys.executable, "-m", "clip_jax", "embed", str(folder / "in"), "--out", str(out)]
        command += ["--model", str(folder / "model"), "--rows-per-part", "4", "--batch-size", "4"]
        if address:
            command += ["--engine", "ray", "--address", address, "--encoders", "2"]
        self.out, self._log = out, folder / f"{out.name}.log"
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=Path(__file__).parents[1]
            )

    def finish(self) -> None:
        """Waits for its end, which must be a good one."""
        assert self.process.wait(timeout=300) == 0, self._log.read_text()[-4000:]

    def progresses(self) -> bool:
        """Waits for two more parts; returns whether the job is still at work then."""
        before, deadline = self._parts(), time.monotonic() + 200
        while self.process.poll() is None and self._parts() < before + 2:
            assert time.monotonic() < deadline, self._log.read_text()[-4000:]
            time.sleep(0.005)
        return self.process.poll() is None

    def _parts(self) -> int:
        return sum(1 for _ in self.out.glob("part-*"))


def _kill(kind: str, cluster: Any, job: Job, rng: random.Random) -> bool:
    """Kills one of a kind; returns whether there was one."""
    if kind == "driver":
        job.process.kill()
        job.process.wait()
        return True
    if kind == "node":
        node = rng.choice(sorted(cluster.worker_nodes, key=lambda node: node.unique_id))
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(**ray_clusters.NODE)
        return True
    names = ["ray::ChunkEncoder"] if kind == "encoder" else ["ray::decode", "ray::IDLE"]
    found = sorted(pid for name in names for pid in ray_clusters.processes_of(name))
    if found:
        os.kill(rng.choice(found), 9)
    return bool(found)


def torture(folder: Path, *, pictures: int, kills: int, seed: int) -> collections.Counter[str]:
    """Kills at random until there were so many kills; whatever is finished must be right.

    Args:
        folder: an empty folder.
        pictures: how many there are to embed; with 4 in a part.
        kills: how many kills; those of a kind come equally often.
        seed: of the order and the moments.

    Returns:
        How many of each kind were killed, and how many jobs were finished.
    """
    write_pictures(folder / "in", pictures)
    (folder / "in" / "broken.png").write_bytes(b"broken")
    clip_jax.save(small(SMALL_VIT), folder / "model")
    Job(folder, folder / "undisturbed", "").finish()
    undisturbed, rng = contents(folder / "undisturbed"), random.Random(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(kills)]
    rng.shuffle(kinds)
    done: collections.Counter[str] = collections.Counter()
    with ray_clusters.cluster_of(3) as cluster:
        job = Job(folder, folder / "out-0", cluster.address)
        while kinds or job.process.poll() is None:
            if not kinds or not job.progresses():
                job.finish()
                assert contents(job.out) == undisturbed
                done["finished"] += 1
                if not kinds:
                    break
                job = Job(folder, folder / f"out-{done['finished']}", cluster.address)
                continue
            time.sleep(rng.uniform(0, 0.3))
            if _kill(kinds[-1], cluster, job, rng):
                done[kind := kinds.pop()] += 1
                if kind == "driver":
                    job = Job(folder, job.out, cluster.address)
        assert contents(job.out) == undisturbed
    return done


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
        print(dict(torture(Path(scratch), pictures=2000, kills=int(sys.argv[1]), seed=seed)))
