"""Texts that aren't UTF-8, as Notepad and Excel save them: told once, never taken apart."""

import json

import pytest

from clip_jax.embed import embed
from clip_jax.evaluate.classes import read_lines
from clip_jax.sources import Columns
from clip_jax.sources.lines import LinesShard
from clip_jax.sources.pairs import open_pairs
from clip_jax.train.config import read_config
from tests.calls import runner
from tests.models import SMALL_VIT, random_images, small

# Python writes a byte order mark in front of utf-16 and utf-32 alone.
WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le")
TABLES = {
    "csv": "image,caption\n0.png,a cat\n",
    "tsv": "image\tcaption\n0.png\ta cat\n",
    "jsonl": json.dumps({"image": "0.png", "caption": "a cat"}) + "\n",
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a picture."""
    from PIL import Image

    Image.fromarray(random_images(1, 40)[0]).save(tmp_path / "0.png")
    return tmp_path


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("ending", [*TABLES, "txt"])
def test_a_wide_table_is_refused_before_anything_is_embedded(folder, encoding, ending):
    table = folder / f"table.{ending}"
    table.write_bytes(TABLES.get(ending, "a cat\na dog\n").encode(encoding))
    with pytest.raises(ValueError, match=rf"table.{ending}: it is UTF-16 or .* save it as UTF-8"):
        embed(table, small(SMALL_VIT), folder / "out", progress=False)
    assert not (folder / "out").exists()
    with pytest.raises(ValueError, match="it is UTF-16 or UTF-32, expected UTF-8"):
        LinesShard(str(table), Columns()).open()
    if ending != "txt":
        with pytest.raises(ValueError, match=rf"table.{ending}: it is UTF-16 or UTF-32"):
            open_pairs(table)


@pytest.mark.parametrize("encoding", WIDE)
def test_a_wide_list_of_classes_is_refused(folder, encoding):
    (folder / "classes.txt").write_bytes("cat\ndog\n".encode(encoding))
    with pytest.raises(ValueError, match="classes.txt is not UTF-8: save it as that"):
        read_lines(folder / "classes.txt")


def test_lines_of_any_system_are_the_same_classes(folder):
    for end in ("\n", "\r\n", "\r"):
        (folder / "classes.txt").write_bytes(f"cat{end}{end}hot dog{end}".encode("utf-8-sig"))
        assert read_lines(folder / "classes.txt") == ["cat", "hot dog"]


@pytest.mark.parametrize("encoding", WIDE)
def test_a_wide_caption_beside_a_picture_is_a_problem_of_that_picture(folder, encoding):
    (folder / "0.txt").write_bytes("a cat".encode(encoding))
    with pytest.raises(ValueError, match="0.png: the caption is not UTF-8"):
        open_pairs(folder)


def test_a_byte_order_mark_is_no_part_of_a_caption(folder):
    (folder / "0.txt").write_bytes("a cat".encode("utf-8-sig"))
    assert open_pairs(folder).captions(0) == ("a cat",)


def test_a_configuration_may_begin_with_a_byte_order_mark(folder, capsys):
    config = folder / "run.toml"
    text = 'out = "run"\n[model]\nfrom = "emoji"\n[data]\ntrain = "captions.csv"\n'
    text += "[run]\nbatch_size = 8\n"
    text += "[optimizer]\ntotal_steps = 2\nlearning_rate = 1e-3\nwarmup_steps = 1\n"
    config.write_bytes(text.encode("utf-8-sig"))
    assert read_config(config) == read_config(_plain(config, text))
    config.write_bytes(text.encode("utf-16"))
    status, _, err = runner(capsys, "train")(config)
    assert status == 1 and "is not UTF-8, as TOML must be: save it as that" in err[-1]


def _plain(config, text):
    other = config.with_name("plain.toml")
    other.write_text(text)
    return other
