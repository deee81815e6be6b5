"""Tables with bars between their cells and spaces in their headers, and those without pictures."""

import pytest
from PIL import Image

from clip_jax.embed import embed
from clip_jax.evaluate import retrieval
from clip_jax.sources import Columns
from clip_jax.sources.pairs import open_pairs
from tests.models import SMALL_VIT, random_images, small

# As Flickr30k has it.
BARS = "image_name| comment_number| comment\n0.png| 0| Two dogs .\n1.png| 0| A cat , asleep .\n"
TABLES = {
    "bars": BARS.replace("image_name", "image").replace("comment\n", "caption\n"),
    "spaces": "image, caption\n0.png,Two dogs .\n1.png,A cat - asleep .\n",
}


@pytest.fixture
def folder(tmp_path):
    """A folder with two pictures."""
    for number, pixels in enumerate(random_images(2, 40)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("name", TABLES)
def test_bars_and_spaces_of_a_header_are_no_part_of_its_names(folder, name):
    table, model = folder / "table.csv", small(SMALL_VIT)
    table.write_text(TABLES[name])
    pairs = open_pairs(table)
    assert [pairs.key(i) for i in range(len(pairs))] == ["0.png", "1.png"]
    assert pairs.captions(0) == ("Two dogs .",)
    summary = embed(table, model, folder / "out", what="both", progress=False)
    assert summary.rows == 2 and summary.errors == 0
    assert retrieval(table, model, progress=False).num_texts == 2


def test_a_comma_in_the_header_comes_before_a_bar(folder):
    (folder / "table.csv").write_text("image,caption\n0.png,this | that\n")
    assert open_pairs(folder / "table.csv").captions(0) == ("this | that",)


def test_a_table_whose_pictures_are_not_found_tells_that_its_texts_are_embedded(folder):
    table, model = folder / "table.csv", small(SMALL_VIT)
    table.write_text("path,text\n0.png,two dogs\n1.png,a cat\n")
    told = embed(table, model, folder / "out", progress=False).remarks
    assert len(told) == 1
    assert "no column 'image'" in told[0] and "other columns are 'path'" in told[0]
    assert "the texts in 'text' are embedded" in told[0] and "--image-column" in told[0]
    assert embed(table, model, folder / "b", what="texts", progress=False).remarks == ()
    table.write_text("key,note,text\n7,x,two dogs\n8,y,a cat\n")
    taken = Columns(others=("note",))
    assert embed(table, model, folder / "c", columns=taken, progress=False).remarks == ()
