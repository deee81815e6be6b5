"""A small file costs neither much more memory than its picture, nor minutes."""

import io
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from clip_jax import bands, channels
from clip_jax.jpeg2000 import _codings
from clip_jax.jpeg_scans import MOST_SCANS
from clip_jax.pixel_config import PixelConfig
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


# --- blocks


def tiny_blocks(side: int, **options) -> bytes:
    """A JPEG2000 codestream of 64 x 64 pixels in blocks of 4 x 4, which says that it is larger."""
    options = {"codeblock_size": (4, 4), "num_resolutions": 1, **options}
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG2000", no_jp2=True, **options)
    data = bytearray(file.getvalue())
    begin = data.index(b"\xff\x51")
    for place in (6, 10, 22, 26):
        data[begin + place : begin + place + 4] = side.to_bytes(4)
    return bytes(data)


def test_jpeg2000_of_millions_of_blocks_is_refused_before_it_is_decoded(tmp_path):
    for side in (4096, 9_000):
        (tmp_path / "a.jp2").write_bytes(tiny_blocks(side))
        begin = time.process_time()
        with pytest.raises(
            ValueError, match=r"refused, because it is too large: has [\d,]+ blocks"
        ):
            open_image(tmp_path / "a.jp2")
        assert time.process_time() - begin < 1
    data = tiny_blocks(4096, codeblock_size=(64, 64))
    with pytest.raises(ValueError, match="damaged"):  # its blocks are few, and missing
        decode_image(data)


def test_blocks_are_counted_wherever_the_file_says_them():
    tiny = tiny_blocks(4096)
    place = tiny.index(b"\xff\x52")
    coding = tiny[place : place + 14]
    usual = bytearray(tiny)
    usual[place + 10 : place + 12] = b"\4\4"  # 64 x 64 in the file's header
    tile = usual.index(b"\xff\x93")  # where the header of its tile ends
    one = b"\xff\x53\0\x09\0\0" + coding[9:14]  # of a single component
    for more in (coding, one):
        with pytest.raises(ValueError, match="blocks"):
            decode_image(bytes(usual[:tile] + more + usual[tile:]))


def test_a_codestream_larger_than_its_container_says_is_refused():
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG2000")
    data = bytearray(file.getvalue())
    begin = data.index(b"\xff\x4f\xff\x51") + 2
    data[begin + 6 : begin + 10] = (1 << 20).to_bytes(4)
    with pytest.raises(ValueError, match=r"says that its size is \(64, 64\), and \(1048576, 64\)"):
        decode_image(bytes(data))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"codeblock_size": (4, 4)},
        {"precinct_size": (32, 64), "codeblock_size": (16, 16)},
        {"tile_size": (128, 128), "irreversible": True},
        {"quality_mode": "rates", "quality_layers": [80, 40, 20, 10, 5]},
        {"num_resolutions": 1, "no_jp2": True},
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_ordinary_jpeg2000_pictures_are_read(mode, options):
    image = random_image(mode, (600, 431), np.random.default_rng(0))
    file = io.BytesIO()
    image.save(file, "JPEG2000", **options)
    assert decode_image(file.getvalue()).size == (600, 431)
    ((layers, levels),) = list(_codings(file.getvalue()))
    assert layers == len(options.get("quality_layers", [1]))
    assert len(levels) == options.get("num_resolutions", 6)
    exponents = [size.bit_length() - 1 for size in options.get("codeblock_size", (64, 64))]
    assert levels[-1][0] == tuple(exponents)
    if "precinct_size" in options:
        assert levels[-1][1] in ((5, 6), (6, 5))
