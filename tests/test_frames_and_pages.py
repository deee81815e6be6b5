"""Files of several frames or pages, of which the first is taken."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from clip_jax.channels import FRAMES
from clip_jax.embed import embed
from clip_jax.evaluate import zeroshot
from clip_jax.preprocess import Preprocess, decode_image, open_image
from clip_jax.train.data import Skipped
from tests.calls import runner
from tests.models import SMALL_VIT, random_images, small

FORMATS = ("gif", "png", "tiff", "webp")
PREPROCESS = Preprocess(32)


def encoded(ending: str, frames: int) -> bytes:
    """A picture's file with so many frames, of which no two are alike."""
    first, *others = [Image.fromarray(pixels) for pixels in random_images(frames, 40)]
    file = io.BytesIO()
    options = {"save_all": True, "append_images": others} if others else {}
    first.save(file, ending, **options)
    return file.getvalue()


@pytest.mark.parametrize("ending", FORMATS)
def test_further_frames_are_known_and_change_no_pixel(ending):
    image = decode_image(encoded(ending, 3))
    assert PREPROCESS.losses(image) == (FRAMES,)
    with Image.open(io.BytesIO(encoded(ending, 3))) as plain:
        np.testing.assert_array_equal(PREPROCESS.pixels(image), PREPROCESS.pixels(plain))
    assert PREPROCESS.losses(decode_image(encoded(ending, 1))) == ()


def test_a_gif_that_is_cut_behind_its_first_frame_is_read():
    whole = encoded("gif", 3)
    begin = len(encoded("gif", 1))  # somewhere in the second
    for end in (*range(begin, len(whole), 97), len(whole) - 1):
        assert PREPROCESS.pixels(decode_image(whole[:end])).shape == (32, 32, 3)
    assert PREPROCESS.losses(decode_image(whole[:-1])) == (FRAMES,)


def test_a_phones_picture_in_two_sizes_is_one_picture(tmp_path):
    first, second = (Image.fromarray(pixels) for pixels in random_images(2, 40))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    first.save(tmp_path / "b.ico", sizes=[(16, 16), (32, 32)])
    for name in ("a.jpg", "b.ico"):
        assert FRAMES not in PREPROCESS.losses(open_image(tmp_path / name))


@pytest.fixture
def folder(tmp_path):
    """Two classes, each with a plain picture and an animation that is to be rotated."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encoded("png", 1))
        frames = [Image.fromarray(pixels) for pixels in random_images(2, 40)]
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"save_all": True, "append_images": frames[1:], "exif": exif}
        frames[0].save(tmp_path / name / "b.webp", **options)
    return tmp_path


def test_a_job_an_evaluation_and_classify_tell_how_many(folder, tmp_path_factory, capsys):
    model, out = small(SMALL_VIT), tmp_path_factory.mktemp("out") / "out"
    told = "2 pictures have several frames or pages"
    rotated = embed(folder, model, out, exif_transpose=True, progress=False)
    assert told in " ".join(rotated.remarks) and "cat/b.webp" in " ".join(rotated.remarks)
    zeroshot(folder, model, progress=True)
    assert told in capsys.readouterr().err
    run = runner(capsys, "classify")
    status, out, err = run(folder, "--labels", "cat", "dog", "--model", "emoji", "--json")
    assert status == 0 and len(json.loads(out)) == 4
    assert told in " ".join(err)


def test_a_training_counts_a_picture_once_however_many_epochs_it_takes():
    skipped = Skipped(1.0, num_pairs=2)
    for key in ("a", "b") * 3:
        skipped.lost([FRAMES], key)
        skipped.add(None)
    (sentence,) = skipped.losses.sentences()
    assert sentence.startswith("2 pictures have several frames") and sentence.endswith("(a, b)")
