"""What may be searched for: words or one picture, prepared as those of the job were."""

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.embed import embed
from clip_jax.search import search
from tests.calls import runner
from tests.models import SMALL_VIT, small


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Two pictures of which one is rotated by its EXIF data, embedded as they are to be seen."""
    root = tmp_path_factory.mktemp("queries")
    clip_jax.save(small(SMALL_VIT), root / "model")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    (root / "in").mkdir()
    image.save(root / "in" / "turned.png", exif=turned)
    image.save(root / "in" / "plain.png")
    model = root / "model"
    embed(root / "in", str(model), root / "out", exif_transpose=True, progress=False)
    return root


def test_a_picture_that_is_searched_for_is_rotated_as_those_of_the_job(job):
    hits = search(job / "out", None, job / "in" / "turned.png")
    assert hits[0]["key"] == "turned.png"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    assert hits[1]["score"] < 0.999


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_blank_text_is_not_searched_for(job, blank):
    with pytest.raises(ValueError, match="the text to search for is blank"):
        search(job / "out", None, blank)


def test_the_path_of_a_folder_is_not_searched_for_as_text(job):
    with pytest.raises(ValueError, match="is a folder, expected a text"):
        search(job / "out", None, f"{job}/in")


def test_several_queries_are_an_error_of_their_type(job):
    with pytest.raises(TypeError, match="query must be a text, an image or a path. Got list"):
        search(job / "out", None, ["a cat", "a dog"])  # pyright: ignore[reportArgumentType]


def test_an_address_of_a_picture_is_named_as_what_it_is(job, capsys):
    address = "https://example.com/cat.jpg"
    status, _, (said,) = runner(capsys)("search", job / "out", address, "--image")
    assert status == 2 and f"--image takes a file; download {address} first" in said
