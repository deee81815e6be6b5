"""A small training as its user has it: pairs of coloured pictures, and its configuration."""

import json

import pytest

from clip_jax.sources import Pair
from clip_jax.train import run
from tests import quickly
from tests.archives import write_tar
from tests.pictures import picture

COUNT = 40
COLORS = [(i * 37 % 256, i * 91 % 256, i * 53 % 256) for i in range(COUNT)]


class ListPairs:
    """Pairs in memory."""

    def __init__(self, images: list[bytes]):
        self.images = images

    def __len__(self):
        return len(self.images)

    def captions(self, index):
        return f"number {index}", f"no {index}"

    def __getitem__(self, index):
        return Pair(f"{index:02d}", self.images[index], self.captions(index))


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A pattern that two shards of pairs fit."""
    folder = tmp_path_factory.mktemp("shards")
    members = {}
    for i, color in enumerate(COLORS):
        members[f"{i:02d}.png"] = picture(color, (40, 32))
        members[f"{i:02d}.txt"] = f"colour number {i}".encode()
    names = sorted(members)
    half = len(names) // 2
    for shard, part in enumerate((names[:half], names[half:])):
        write_tar(folder / f"pairs-{shard}.tar", {name: members[name] for name in part})
    return f"{folder}/pairs-{{0..1}}.tar"


TOML = """
# clip-jax train small.toml
out = "{out}"
[model]
embed_dim = 16
[model.vision]
type = "vit"
image_size = 32
patch_size = 8
width = 64
num_layers = 2
num_heads = 1
[model.text]
width = 64
num_layers = 2
num_heads = 1
[data]
train = "{shards}"
text_length = 12
templates = ["{{}}", "a photo of {{}}."]
[augment]
scale = [0.8, 1.2]
color = 0.2
[optimizer]
learning_rate = 1e-3
warmup_steps = 4
total_steps = 24
[run]
batch_size = 16
log_every = 4
checkpoint_every = 4
keep_checkpoints = 2
"""


@pytest.fixture
def toml(tmp_path, shards):
    """The configuration of a small run."""
    path = tmp_path / "small.toml"
    path.write_text(TOML.format(out=tmp_path / "run", shards=shards))
    return path


@pytest.fixture
def compiles_quickly(monkeypatch):
    """For tests of a run's bits and files, whose step may be slow."""
    monkeypatch.setattr(run, "compiler_options", lambda platform: quickly.OPTIONS)


def read_metrics(folder) -> list[dict]:
    """The lines that a run has noted."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def checkpoints_of(folder) -> list[int]:
    """The steps of which a run has kept the state."""
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
