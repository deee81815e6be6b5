"""What may be opened as a picture, and how much of time and memory one may take."""

import os
import socket
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_jax import open_image
from clip_jax.preprocess import FORMATS, Preprocess, decode_image, known_formats
from clip_jax.resample import EIGHT_BITS, NEAREST, nearest_middle, resize_middle
from clip_jax.sources import open_input
from clip_jax.sources.addresses import read_address
from clip_jax.storage import MOST_OF_A_PICTURE
from tests.pictures import BANDS, TRANSPARENT, picture, png_of_size, random_image, saved

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n"


def whole(image: Image.Image, size: int) -> Image.Image:
    """The middle of all of the resized picture, as Pillow makes it."""
    n, (width, height) = size, image.size
    sides = (n, int(n * height / width)) if width <= height else (int(n * width / height), n)
    resized = image.resize(sides, Image.Resampling.BICUBIC)
    left, top = (round((side - n) / 2.0) for side in resized.size)
    return resized.crop((left, top, left + n, top + n))


@pytest.mark.parametrize("mode", [*EIGHT_BITS, *NEAREST, *TRANSPARENT])
@settings(max_examples=25, deadline=None)
@given(
    short=st.integers(1, 40),
    times=st.floats(1, 60),
    size=st.sampled_from([2, 7, 32, 48, 224]),
    is_wide=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_middle_alone_equals_the_middle_of_the_whole(mode, short, times, size, is_wide, seed):
    long = int(short * times)
    if short >= size or long <= short or long * size * size / short > 4e6:
        return
    kind = mode.partition(",")[0]
    assert kind in BANDS or kind == "1"
    sides = (long, short) if is_wide else (short, long)
    image = random_image(mode, sides, np.random.default_rng(seed))
    middle = nearest_middle if image.mode in NEAREST else resize_middle
    found, expected = middle(image, size, int(size * long / short)), whole(image, size)
    assert (found.mode, found.size) == (expected.mode, (size, size))
    assert found.tobytes() == expected.tobytes()
    for image in (found, expected):
        image.info.pop("transparency", None)
    if mode != "La":
        assert found.convert("RGB").tobytes() == expected.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16", "F"])
@pytest.mark.parametrize("sides", [(1, 777), (2009, 3), (37, 1231)])
def test_thin_pictures_have_the_pixels_that_they_had(mode, sides):
    image = random_image(mode, sides, np.random.default_rng(0))
    for size in (32, 48):
        expected = np.asarray(whole(image, size).convert("RGB"))
        np.testing.assert_array_equal(Preprocess(size).pixels(image), expected)


@pytest.mark.parametrize("sides", [(65_535, 1), (1, 65_535), (10_000_000, 1)])
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_thin_picture_takes_no_more_than_it_is_worth(mode, sides):
    image = Image.new(mode, sides)
    tracemalloc.start()
    begin = time.process_time()
    try:
        assert Preprocess(224).pixels(image).shape == (224, 224, 3)
    except ValueError as error:
        assert mode == "P" and "too long and thin" in str(error)  # two passes of Pillow's own
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.process_time() - begin < 5 and peak < 100 << 20


def test_a_thin_picture_of_a_rare_mode_is_refused():
    with pytest.raises(ValueError, match="too long and thin"):
        Preprocess(224).pixels(Image.new("F", (65_535, 1)))


def test_a_thin_picture_for_training_is_skipped():
    pytest.importorskip("grain")
    from clip_jax.train import data

    data._check_shape((640, 480), 224)
    with pytest.raises(ValueError, match="too long and thin"):
        data._check_shape((65_535, 1), 224)


# --- formats


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_the_list_is_opened_whatever_the_name_says(tmp_path, kind):
    if kind not in known_formats():
        pytest.skip(f"this Pillow has no {kind}")
    (tmp_path / "a.png").write_bytes(picture(kind=kind, size=(16, 16)))
    assert open_image(tmp_path / "a.png").size == (16, 16)
    assert decode_image(picture(kind=kind, size=(16, 16))).size == (16, 16)


@pytest.mark.parametrize("kind", ["EPS", "TGA", "PCX", "SGI", "DDS", "MSP", "QOI"])
def test_other_formats_are_opened_only_if_it_is_said(tmp_path, kind):
    data = (
        picture(kind=kind, size=(16, 16))
        if kind != "MSP"
        else saved(Image.new("1", (16, 16)), kind)
    )
    (tmp_path / "a.png").write_bytes(data)
    for open_it in (lambda: decode_image(data), lambda: open_image(tmp_path / "a.png")):
        with pytest.raises(ValueError, match=_unwelcome(kind)):
            open_it()
    if kind != "EPS":
        assert decode_image(data, [kind.lower()]).size == (16, 16)


def _unwelcome(kind: str) -> str:
    if kind == "TGA":  # which has no signature
        return "is not an image in a format that Pillow knows|is a picture in the format"
    return f"is a picture in the format {kind}, which is opened only if it is said"


def test_no_format_of_the_list_starts_another_program(tmp_path, monkeypatch):
    called = tmp_path / "called"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {called}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ValueError):
        decode_image(POSTSCRIPT)
    assert not called.exists()
    starting = {"EPS", "WMF", "PSD", "FITS", "GRIB", "BUFR", "HDF5", "MPEG", "ICNS"}
    assert not starting & set(FORMATS)


def test_a_format_that_pillow_lacks_is_refused():
    with pytest.raises(ValueError, match="no format 'NONE' here; it knows AVIF|BLP"):
        decode_image(picture(), ["PNG", "none"])


# --- files


def test_a_decompression_bomb_is_an_error_before_its_pixels_are_there():
    with pytest.raises(ValueError, match="refused, because it is too large"):
        decode_image(png_of_size(1 << 15, 1 << 15))


def test_what_is_no_file_is_not_opened(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    os.mkfifo(tmp_path / "pipe")
    (folder / "pipe.png").symlink_to(tmp_path / "pipe")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "nowhere.png").symlink_to("none")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (folder / "socket.png").symlink_to(tmp_path / "socket")
    reasons = {}

    def read():
        for record in open_input(folder).shards[0].open().records(0, 5):
            assert record.read is not None
            try:
                record.read()
            except OSError as error:
                reasons[record.key] = error.strerror
        for name in ("pipe", "device", "socket"):
            with pytest.raises(ValueError, match=f"{name}.png: is a {name}, not a file"):
                open_image(folder / f"{name}.png")

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()  # nobody writes into the pipe
    assert reasons == {
        "pipe.png": "is a pipe, not a file",
        "device.png": "is a device, not a file",
        "socket.png": "is a socket, not a file",
        "nowhere.png": "No such file or directory",
    }


def test_a_sparse_file_of_any_size_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="more than the 1,073,741,824 that a picture may have"):
        read_address(str(tmp_path / "a.png"))
    with pytest.raises(ValueError, match="a.png: has 1,099,511,627,776 bytes"):
        open_image(tmp_path / "a.png")
    assert MOST_OF_A_PICTURE == 1 << 30


def test_a_machine_without_memory_is_not_a_damaged_picture(monkeypatch):
    def load(*_):
        raise MemoryError

    data = picture()
    monkeypatch.setattr(Image.Image, "resize", load)
    with pytest.raises(OSError, match="not enough memory"):
        Preprocess(32).pixels(decode_image(data))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(OSError, match="not enough memory"):
        decode_image(data)
