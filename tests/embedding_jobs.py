"""Embedding jobs: their inputs, what they leave, and the commands that start them."""

import contextlib
import functools
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.embed import compare, embed, read_embeddings
from clip_jax.embed.engines import embedding, local
from clip_jax.embed.part_builder import PartBuilder
from clip_jax.nn import normalize
from tests.archives import parquet, write_tar
from tests.models import SMALL_VIT, small
from tests.pictures import bmp, noise

COUNT = 40
QUIET = {"progress": False, "batch_size": 8}


_make_encoder = embedding.encoder_of


@functools.cache
def _encoder(dtype: str, batch_size: int | None) -> clip_jax.Encoder:
    return _make_encoder(small(SMALL_VIT, dtype=dtype), batch_size)


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """All jobs of small(SMALL_VIT) share their programs, which take longer than the jobs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "encoder_of", lambda model, size: _encoder(str(model.dtype), size))
        yield


@pytest.fixture(scope="module")
def compiled_once():
    """Has a module's jobs, all of small(SMALL_VIT), share their programs."""
    with shared_programs():
        yield


def write_pictures(folder: Path, count: int = COUNT) -> Path:
    """A folder of pictures, and one in it."""
    (folder / "sub").mkdir(parents=True)
    for i in range(count):
        (folder / ("sub" if i % 3 else "") / f"{i:03d}.png").write_bytes(noise(i))
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of `COUNT` pictures, to be read only."""
    return write_pictures(tmp_path_factory.mktemp("in") / "pictures")


@pytest.fixture(scope="session")
def undisturbed(pictures, model, tmp_path_factory) -> Path:
    """What an embedding job of `pictures` leaves, to be read only."""
    out = tmp_path_factory.mktemp("out") / "undisturbed"
    with shared_programs():
        embed(pictures, model, out, rows_per_part=7, **QUIET)
    return out


def contents(out: Path) -> dict[str, bytes]:
    """The files of an output by their names; no others may be left."""
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def lasting(out: Path) -> dict[str, bytes]:
    """The files of an output without the times of the input's files."""
    return {k: v for k, v in contents(out).items() if not k.startswith("stamps/")}


def rows(out: Path) -> dict:
    """The parts as columns."""
    return read_embeddings(out).to_table().to_pydict()


def errors(out: Path) -> dict[str, str]:
    """Reasons by key."""
    import pyarrow.parquet as pq

    files = sorted((out / "errors").glob("*.parquet")) if (out / "errors").exists() else []
    return {row["key"]: row["reason"] for file in files for row in pq.read_table(file).to_pylist()}


def expected(model, images: list[bytes]) -> np.ndarray:
    """The normalised embeddings of pictures, by the model itself."""
    preprocess = clip_jax.Preprocess(model.config.vision.image_size)
    pixels = [preprocess.pixels(Image.open(io.BytesIO(image))) for image in images]
    return np.asarray(normalize(model.encode_image(np.stack(pixels))))


@pytest.fixture
def copy(undisturbed, tmp_path) -> Path:
    """A copy of `undisturbed`."""
    import shutil

    return Path(shutil.copytree(undisturbed, tmp_path / "copy"))


def start(model: Path, pictures: Path, out: Path, log) -> subprocess.Popen:
    """The command as a user starts it, on two devices."""
    command = [sys.executable, "-m", "clip_jax", "embed", str(pictures), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--model", str(model), "--rows-per-part", "2", "--batch-size", "2"],
        stdout=log,
        stderr=log,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"},
        cwd=Path(__file__).parents[1],
    )


def wait_for_parts(out: Path, count: int, running: list[subprocess.Popen]) -> None:
    """Waits until there are so many, or nobody who would write them."""
    deadline = time.monotonic() + 100
    while len(list(out.glob("part-*"))) < count:
        assert time.monotonic() < deadline
        if all(process.poll() is not None for process in running):
            return
        time.sleep(0.002)


# For inputs that are written anew, of another content and the same size.
KINDS = ["tar", "parquet", "folder"]
TWO_A_PART = {"rows_per_part": 2, **QUIET}


def write_input(source: Path, pictures: list[tuple[str, bytes]]) -> Path:
    """Pictures in an input of the kind that the path says; of the same size whatever they are."""
    if source.suffix == ".tar":
        return write_tar(source, {f"{key}.bmp": data for key, data in pictures})
    if source.suffix == ".parquet":
        columns = {"key": [key for key, _ in pictures], "image": [data for _, data in pictures]}
        return parquet(source, columns, compression="none", use_dictionary=False)
    source.mkdir(exist_ok=True)
    for key, data in pictures:
        (source / f"{key}.bmp").write_bytes(data)
    return source


def some(count: int) -> list[tuple[str, bytes]]:
    """That many pictures with their keys."""
    return [(f"{i:02d}", bmp(i)) for i in range(count)]


def lose(out: Path, *numbers: int) -> None:
    """As if the job had been killed before it wrote these parts."""
    for number in numbers:
        (out / f"part-000000-{number:06d}.parquet").unlink()


@pytest.fixture
def counted(monkeypatch):
    """How often rows were compared, and rows decoded."""
    found = {"compared": 0, "added": 0}
    take, add = compare._Rows.take, PartBuilder.add

    def take_counted(self, *args):
        found["compared"] += 1
        take(self, *args)

    def add_counted(self, *args):
        found["added"] += 1
        add(self, *args)

    monkeypatch.setattr(compare._Rows, "take", take_counted)
    monkeypatch.setattr(PartBuilder, "add", add_counted)
    return found
