"""Embedding jobs on a Ray cluster: the parts are those of a job in one process, to the bit."""

import pytest

from clip_jax.embed import Columns, embed
from tests.archives import parquet, write_tar
from tests.embedding_jobs import QUIET, contents
from tests.pictures import noise
from tests.ray_clusters import cluster_of, joined

pytest.importorskip("ray")
pytestmark = pytest.mark.usefixtures("cluster", "compiled_once")
OPTIONS = {"rows_per_part": 7, **QUIET}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes besides the head, which has no CPU."""
    with cluster_of(2) as found, joined(found.address):
        yield found


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple]:
    """The same pictures in every kind of input, some broken, with what to embed of them."""
    root = tmp_path_factory.mktemp("sources")
    images = {f"{i:02d}": noise(i) for i in range(20)} | {"05": b"no picture", "13": b""}
    captions = [f"the picture {i}, of {'many ' * (i % 9)}words" for i in range(20)]
    (root / "folder" / "sub").mkdir(parents=True)
    for i, (name, data) in enumerate(images.items()):
        place = root / "folder" / ("sub" if i % 3 else "")
        (place / f"{name}.png").write_bytes(data)
        (place / f"{name}.txt").write_text(captions[i])
    for shard in range(2):
        members: dict = {f"{name}.png": data for name, data in images.items()}
        members |= {f"{n}.txt": c.encode() for n, c in zip(images, captions, strict=True)}
        write_tar(root / f"{shard}.tar", members)
    with (root / "1.tar").open("r+b") as file:  # cut off
        file.truncate(20_000)
    columns = {
        "image": list(images.values()),
        "caption": captions,
        "weight": [i / 7 for i in range(20)],
    }
    parquet(root / "in.parquet", columns, row_group_size=3)
    (root / "texts.txt").write_text("\n".join(captions))
    (root / "paths.csv").write_text(
        "image,caption\n" + "\n".join(f"folder/{n}.png,{n}" for n in images)
    )
    return {
        "folder": (root / "folder", {}),
        "captioned folder": (root / "folder", {"what": "both"}),
        "tars": (root / "*.tar", {"what": "both"}),
        "parquet": (root / "in.parquet", {"columns": Columns(others=("weight",))}),
        "npy": (root / "in.parquet", {"what": "both", "format": "npy", "dtype": "float16"}),
        "texts": (root / "texts.txt", {}),
        "table of paths": (root / "paths.csv", {}),
    }


@pytest.mark.parametrize(
    "kind",
    ["folder", "captioned folder", "tars", "parquet", "npy", "texts", "table of paths"],
)
def test_parts_are_those_of_one_process_to_the_bit(sources, model, tmp_path, kind):
    source, options = sources[kind]
    here = embed(source, model, tmp_path / "local", **OPTIONS, **options)
    there = embed(source, model, tmp_path / "ray", engine="ray", **OPTIONS, **options)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert (there.rows, there.errors, there.parts) == (here.rows, here.errors, here.parts)
    assert here.rows
    assert here.errors or kind == "texts"
