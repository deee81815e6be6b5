"""A small file costs neither much more memory than its picture, nor minutes."""

import io
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from clip_jax import bands, channels
from clip_jax.config import PixelConfig
from clip_jax.jpeg_scans import MOST_SCANS
from clip_jax.preprocess import Preprocess, decode_image, open_image
from clip_jax.preprocess_huggingface import HuggingFacePreprocess
from clip_jax.train.augment import AugmentConfig, augment
from clip_jax.train.data import _check_shape
from tests.pictures import BANDS, TRANSPARENT, random_image

SIDES = [(37, 23), (23, 37), (90, 1), (1, 90)]


@pytest.fixture
def few_at_once(monkeypatch):
    monkeypatch.setattr(bands, "MOST_AT_ONCE", 64)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("margin", [0, 1])
def test_bands_cover_a_picture_once_and_stay_inside(few_at_once, sides, margin):
    seen = np.zeros(sides, int)
    boxes = list(bands.bands(sides, margin))
    for (left, top, right, bottom), (low, high, end, below) in boxes:
        seen[left:right, top:bottom] += 1
        assert 0 <= left - low <= margin and 0 <= top - high <= margin
        assert end <= sides[0] and below <= sides[1]
    assert (seen == 1).all() and len(boxes) > 1


@pytest.mark.parametrize("mode", [*BANDS, *TRANSPARENT, "I;16", "I;16B", "I", "F"])
@pytest.mark.parametrize("sides", SIDES)
def test_pictures_in_bands_have_the_pixels_of_whole_ones(mode, sides, monkeypatch):
    image = random_image(mode, sides, np.random.default_rng(1))
    kinds = [
        Preprocess(16, background="#336699", scale_16_bit=True),
        Preprocess(16, fit="squash", background="white"),
        HuggingFacePreprocess(16, PixelConfig(), resized=16),
    ]

    def results():
        found: list[object] = [channels.is_uncovered(image.copy())]
        for kind in kinds:
            try:
                found.append(kind.pixels(image.copy()).tolist())
            except ValueError as error:
                found.append(str(error))
        return found

    expected = results()
    monkeypatch.setattr(bands, "MOST_AT_ONCE", 64)
    assert results() == expected


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
@pytest.mark.parametrize("sides", SIDES)
def test_outlines_in_bands_are_those_of_the_whole(mode, sides, monkeypatch):
    image = random_image(mode, sides, np.random.default_rng(2))

    def result():
        config = AugmentConfig(outline=1.0, background="random")
        return augment(image, 16, config, np.random.default_rng(3))

    expected = result()
    monkeypatch.setattr(bands, "MOST_AT_ONCE", 64)
    np.testing.assert_array_equal(result(), expected)


# Each line of the output: what was done, and the peak of memory in excess of the picture's own.
MEASURE = """
import sys
import numpy as np
from PIL import Image
from clip_jax import channels
from clip_jax.preprocess import Preprocess
from clip_jax.preprocess_huggingface import HuggingFacePreprocess
from clip_jax.train.augment import AugmentConfig, augment

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))

rgba, grey = Image.new("RGBA", (4000, 4000)), Image.new("I;16", (4000, 4000))
outline = AugmentConfig(outline=1.0)
for name, image, do in [
    ("background", rgba, Preprocess(32, background="white").pixels),
    ("pad", rgba, Preprocess(32, fit="pad", background="white").pixels),
    ("huggingface", rgba, HuggingFacePreprocess(32).pixels),
    ("losses", rgba.convert("LA"), channels.is_uncovered),
    ("16 bit", grey, Preprocess(32, scale_16_bit=True).pixels),
    ("outline", rgba, lambda image: augment(image, 32, outline, np.random.default_rng(0))),
]:
    do(image.resize((64, 64)))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is what it is now
    before = memory("VmRSS")
    do(image)
    print(f"{name}:{(memory('VmHWM') - before) / (4 * 4000 * 4000 / 1024):.2f}", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures with /proc")
def test_no_way_to_pixels_takes_much_more_memory_than_the_picture_itself():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE], capture_output=True, text=True, timeout=120
    )
    if "clear_refs" in done.stderr:
        pytest.skip("this kernel doesn't reset the peak")
    times = dict(line.split(":") for line in done.stdout.splitlines())
    assert len(times) == 6, done.stderr
    # One copy of the picture, or two that are augmented; and a band.
    most = {name: 2.4 if name == "outline" else 1.3 for name in times}
    assert {name: peak for name, peak in times.items() if float(peak) > most[name]} == {}


# --- long and thin


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_a_long_picture_for_training_as_a_whole_is_skipped(fit):
    for size in ((150_000_000, 1), (1, 150_000_000)):
        with pytest.raises(ValueError, match="too long and thin"):
            _check_shape(size, 224, fit)
    for size in ((640, 480), (20_000, 1), (1, 20_000)):
        _check_shape(size, 224, fit)


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_a_long_picture_is_not_said_to_have_the_wrong_mode(fit):
    with pytest.raises(ValueError, match=r"^its size, \(10000000, 1\), is too long and thin"):
        Preprocess(224, fit=fit).pixels(Image.new("L", (10_000_000, 1)))
    kind = HuggingFacePreprocess(224, resized=224)
    with pytest.raises(ValueError, match=r"^its size, \(10000000, 1\), is too long and thin"):
        kind.pixels(Image.new("L", (10_000_000, 1)))


# --- scans


def progressive(scans: int = 0, size: int = 64) -> bytes:
    """A progressive JPEG file, whose smallest scan comes that many times more."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (9, 99, 200)).save(file, "JPEG", progressive=True)
    first, *parts = file.getvalue().split(b"\xff\xda")
    again = min(parts[1:-1], key=len)
    last = parts.pop().removesuffix(b"\xff\xd9")
    return b"\xff\xda".join([first, *parts, last, *[again] * scans]) + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(tmp_path):
    data = progressive(20_000, 4000)
    (tmp_path / "a.jpg").write_bytes(data)
    begin = time.process_time()
    with pytest.raises(ValueError, match=f"more than {MOST_SCANS} scans, expected about ten"):
        decode_image(data)
    with pytest.raises(ValueError, match=r"a\.jpg: .*more than 500 scans"):
        open_image(tmp_path / "a.jpg")
    assert time.process_time() - begin < 2


def test_a_scan_hidden_behind_a_comment_is_counted():
    comment = b"\xff\xfe\x00\x04\xff\xd9"  # holds an end of a picture
    data = progressive(MOST_SCANS)
    begin = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    with pytest.raises(ValueError, match="scans"):
        decode_image(data[:begin] + comment + data[begin:])


def test_ordinary_progressive_pictures_are_read_whatever_follows_them():
    for data in (progressive(), progressive(100), progressive() + b"\xff\xda\x00\x02" * 1000):
        assert decode_image(data).getpixel((5, 5)) == decode_image(progressive()).getpixel((5, 5))
