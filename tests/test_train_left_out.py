"""Training goes on without a few faulty pairs, says which, and reads tables as people have them."""

import json

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.evaluate import retrieval
from clip_jax.sources import Columns
from clip_jax.train.config import read_config
from clip_jax.train.identity import Identity, identity_of
from clip_jax.train.run import train
from tests import training
from tests.archives import parquet, write_tar
from tests.models import SMALL_VIT, small
from tests.pictures import picture

pytest.importorskip("grain")
pytest.importorskip("orbax.checkpoint")

COUNT = 9


@pytest.fixture(autouse=True)
def quick_steps(monkeypatch):
    """Steps that compute next to nothing."""
    monkeypatch.setattr("clip_jax.train.run.make_step", training.make_step)
    monkeypatch.setattr("clip_jax.train.run.compiler_options", lambda platform: {})


def members(count: int = COUNT) -> dict[str, bytes]:
    """The members of a shard of good pairs."""
    pairs = {}
    for i in range(count):
        pairs |= {f"{i}.png": picture((i, 0, 0), (8, 8)), f"{i}.txt": f"number {i}".encode()}
    return pairs


def run(folder, data, *settings: str, progress: bool = False):
    toml = training.write_toml(folder, data)
    settings = ("optimizer.total_steps=2", *settings)
    return train(read_config(toml, settings), progress=progress)


def test_faulty_pairs_are_left_out_and_named(tmp_path, capsys):
    bad = {"x.png": picture(), "y.txt": b"a dog", "z.png": b"no picture", "z.txt": b"z"}
    data = write_tar(tmp_path / "p.tar", members() | bad)
    run(tmp_path, data, progress=True)
    said = capsys.readouterr().err
    assert "2 samples" in said and "x: no caption" in said and "y: no image" in said
    assert "skipped: z: is not an image" in said
    (tmp_path / "run.toml").unlink()
    with pytest.raises(ValueError, match="2 problems"):
        run(tmp_path, data, "data.max_skipped=0", f"out={tmp_path / 'strict'}")


def test_a_table_with_other_columns_and_pictures_inside_is_trained_on(tmp_path):
    table = {
        "jpg": [{"bytes": picture((i, 0, 0), (8, 8)), "path": None} for i in range(COUNT)],
        "alt": [f"number {i}" for i in range(COUNT)],
    }
    data = parquet(tmp_path / "t.parquet", table)
    columns = ("data.image_column=jpg", "data.caption_column=alt")
    assert (run(tmp_path, data, *columns) / "model.safetensors").exists()
    with pytest.raises(ValueError, match="no column 'caption'; its columns are 'jpg', 'alt'"):
        run(tmp_path, data, f"out={tmp_path / 'other'}")


def test_a_run_of_before_there_were_these_settings_goes_on(tmp_path):
    toml = training.write_toml(tmp_path, write_tar(tmp_path / "p.tar", members()))
    config = read_config(toml)
    pairs = clip_jax.sources.open_pairs(config.data.train)
    here = identity_of(config, pairs, small(SMALL_VIT))
    new = ("image_column", "caption_column", "key_column", "fit", "scale_16_bit")
    noted = {k: v for k, v in here.document().items() if k.rpartition(".")[2] not in new}
    assert len(here.document()) - len(noted) == len(new)
    assert here.differences(noted) == []
    padded = read_config(toml, ["augment.fit=pad"])
    other = identity_of(padded, pairs, small(SMALL_VIT))
    assert isinstance(other, Identity)
    assert other.differences(noted) == ["- augment.fit: there None, here 'pad'"]


def test_a_model_trained_on_whole_pictures_is_shown_them_whole(tmp_path, capsys):
    data = write_tar(tmp_path / "p.tar", members())
    folder = run(tmp_path, data, "augment.fit=squash")
    assert json.loads((folder / "config.json").read_text())["pixels"]["resize"] == "squash"
    wide = Image.new("RGB", (64, 8))
    wide.paste((255, 255, 255), (0, 0, 8, 8))
    _, preprocess = clip_jax.load(folder)
    assert preprocess.pixels(wide)[0, 0, 0] > 200  # the end isn't cut off


def test_training_says_how_many_pictures_are_clipped(tmp_path, capsys):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(COUNT):
        Image.fromarray(ramp).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {i}")
    run(tmp_path, folder, progress=True)
    said = capsys.readouterr().err
    assert "pictures have more than 8 bits a channel" in said
    assert "scale_16_bit = true in [augment]" in said and "--scale-16-bit" not in said
    run(tmp_path, folder, "augment.scale_16_bit=true", f"out={tmp_path / 'b'}", progress=True)
    assert "bits" not in capsys.readouterr().err


def test_retrieval_takes_a_row_for_each_caption_and_leaves_out_faulty_rows(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture((80 * i, 0, 0), (32, 32)))
    lines = [f"{i}.png\tnumber {i}\tk{i}{j}" for j in range(2) for i in range(3)]
    table = tmp_path / "t.tsv"
    table.write_text("\n".join(["file\talt\tkey", *lines, "none.png\tx\ty", ""]))
    model = small(SMALL_VIT)
    found = retrieval(table, model, columns=Columns("file", "alt"), progress=False)
    assert (found.num_images, found.num_texts) == (3, 6)  # though each row has a key of its own
    assert found.left_out.problems == ["row 7: no such picture: none.png"]
