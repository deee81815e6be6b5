"""Runs whose step computes next to nothing: their files and ends are what is tested.

Run as `python -m tests.training TOML [KEY=VALUE ...]` it is `clip-jax train` with such steps. In
the environment, JAX_PROCESS_ID and its like make it one of several processes; after step PAUSE it
waits for a file named "go" beside its configuration.
"""

import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from clip_jax.cli import main
from clip_jax.train import TrainState, run
from tests.archives import write_tar
from tests.pictures import picture

COUNT = 24
TOML = """
out = "{out}"
[model]
embed_dim = 4
[model.vision]
type = "vit"
image_size = 8
patch_size = 8
width = 64
num_layers = 1
num_heads = 1
[model.text]
width = 8
num_layers = 1
num_heads = 1
[data]
train = "{data}"
text_length = 12
num_threads = 2
[optimizer]
warmup_steps = 1
total_steps = 12
[run]
batch_size = 8
log_every = 1
checkpoint_every = 4
keep_checkpoints = 2
"""


def make_step(model, config, step=None, *, mesh, augment=None):
    """A step that moves every parameter by what is in the batch."""

    def take_step(state, batch, key):
        images = batch["images"].astype(jnp.float32) / 255
        seen = images.mean((1, 2, 3)).sum() + sum(x.sum() for x in jax.tree.leaves(batch["tokens"]))
        moved = jnp.sin(seen + jax.random.uniform(key))
        state = TrainState(
            state.step + 1,
            {path: array + moved for path, array in state.parameters.items()},
            state.statistics,
            state.optimizer,
        )
        metrics = {"loss": jnp.abs(moved), "accuracy": jnp.float32(0), "learning_rate": seen}
        whole = NamedSharding(mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint((state, metrics), whole)

    return take_step


def paused(records: type, step: int, go: Path) -> None:
    """Has a run wait, once that step's line is written, for a file."""
    add = records.add

    def add_and_wait(self, record):
        add(self, record)
        while record["step"] == step and not go.exists():
            time.sleep(0.01)

    records.add = add_and_wait


def write(folder: Path, *, swapped: tuple[int, ...] = (), unreadable: tuple[int, ...] = ()) -> Path:
    """A shard of pairs; of some, captions are each other's, or the picture is none."""
    members = {}
    for i in range(COUNT):
        named = swapped[::-1][swapped.index(i)] if i in swapped else i
        colors = i * 37 % 256, i * 91 % 256, i * 53 % 256
        members[f"{i:02d}.png"] = b"no picture" if i in unreadable else picture(colors, (8, 8))
        members[f"{i:02d}.txt"] = f"number {named:02d}".encode()
    folder.mkdir(parents=True, exist_ok=True)
    return write_tar(folder / "pairs.tar", members)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A shard of `COUNT` pairs."""
    return write(tmp_path_factory.mktemp("data"))


def write_toml(folder: Path, data: Path, out: str = "run") -> Path:
    """The configuration of a run over that data, in a folder of this folder."""
    path = folder / "run.toml"
    path.write_text(TOML.format(out=folder / out, data=data))
    return path


def files_of(folder: Path) -> list[str]:
    """The files in a folder and those in it, by their paths from there."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in paths)


def flip_one_bit(path: Path) -> None:
    """Damages a file as disks and memory do."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def model_of(folder: Path) -> bytes:
    """The arrays of a run's finished model."""
    return (folder / "model" / "model.safetensors").read_bytes()


if __name__ == "__main__":
    run.make_step = make_step
    run.compiler_options = lambda platform: {}
    paused(run.Metrics, int(os.environ.get("PAUSE", 0)), Path(sys.argv[1]).with_name("go"))
    words = [word for setting in sys.argv[2:] for word in ("--set", setting)]
    if "JAX_PROCESS_ID" in os.environ:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        words.append("--distributed")
    sys.exit(main(["train", sys.argv[1], *words]))
