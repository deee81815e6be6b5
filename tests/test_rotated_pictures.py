"""Pictures that their EXIF data rotate are taken as they lie, as in the reference, and counted."""

import io

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.channels import ROTATED, is_rotated
from clip_jax.preprocess import decode_image
from tests.calls import runner
from tests.models import SMALL_VIT, small


def picture(format: str, orientation: int | None) -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x010F] = "maker"
    if orientation is not None:
        exif[0x0112] = orientation
    data = exif.tobytes()
    image.save(file, format, exif=data)
    return file.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8, 9])
def test_an_orientation_is_read_as_pillow_reads_it(format, orientation):
    image = decode_image(picture(format, orientation))
    assert image.getexif().get(0x0112) == orientation
    assert is_rotated(image) == (orientation in (3, 6, 8))


@pytest.mark.parametrize(
    "data",
    [b"", b"Exif\0\0", b"Exif\0\0II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", "x"],
)
def test_damaged_exif_data_are_no_orientation(data):
    image = Image.new("RGB", (4, 4))
    image.info["exif"] = data
    assert not is_rotated(image)


def test_big_endian_exif_data_are_read():
    image = Image.new("RGB", (4, 4))
    entry = b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    image.info["exif"] = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry
    assert is_rotated(image)


def test_a_job_says_how_many_pictures_lie_on_their_side(tmp_path, capsys):
    clip_jax.save(small(SMALL_VIT), tmp_path / "model")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "phone.jpg").write_bytes(picture("JPEG", 6))
    (tmp_path / "in" / "scan.jpg").write_bytes(picture("JPEG", 1))
    told = "1 picture has EXIF data of another orientation, which isn't followed"
    source, model, run = tmp_path / "in", str(tmp_path / "model"), runner(capsys)
    _, _, said = run("embed", source, "--out", tmp_path / "out", "--model", model)
    assert any(told in line and "(phone.jpg)" in line for line in said)
    turned = (tmp_path / "turned", "--exif-transpose")
    _, _, said = run("embed", source, "--model", model, "--out", *turned)
    assert not any("orientation" in line for line in said)
    _, _, said = run("classify", source, "--labels", "a", "b", "--model", model)
    assert any(told in line and "phone.jpg)" in line for line in said)


def test_the_pixels_stay_those_of_the_reference():
    image = decode_image(picture("PNG", 6))
    preprocess = clip_jax.Preprocess(32)
    assert preprocess.losses(image) == (ROTATED,)
    plain = decode_image(picture("PNG", 1))
    np.testing.assert_array_equal(preprocess.pixels(image), preprocess.pixels(plain))
