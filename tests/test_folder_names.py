"""Which files of a folder are pictures, and what is said of the rest."""

import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_jax.preprocess import decode_image, known_formats, suffixes_of
from clip_jax.sources import open_input
from tests.archives import write_tar
from tests.calls import runner
from tests.pictures import picture

NAMES = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp", "dib"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "TIFF": ("tif", "tiff"),
    "AVIF": ("avif",),
    "JPEG2000": ("jp2", "j2k", "jpx"),
    "ICO": ("ico",),
}


def test_pictures_of_all_names_are_read(tmp_path):
    expected = set()
    for kind, suffixes in NAMES.items():
        if kind in known_formats():
            for suffix in suffixes:
                (tmp_path / f"a.{suffix.upper()}").write_bytes(picture(kind=kind, size=(16, 16)))
                expected.add(f"a.{suffix.upper()}")
    (shard,) = open_input(tmp_path).shards
    records = list(shard.open().records(0, len(shard.open())))
    assert {record.key for record in records} == expected
    assert all(decode_image(r.read()).size == (16, 16) for r in records if r.read)


def test_shards_have_them_too(tmp_path):
    members = {f"{i}.{suffix}": picture() for i, suffix in enumerate(("jfif", "avif", "heic"))}
    (shard,) = open_input(write_tar(tmp_path / "a.tar", members)).shards
    assert shard.open().keys(0, 9) == ["0", "1", "2"]


def test_files_of_other_names_are_counted_and_named_by_suffix(tmp_path):
    for name in ("a.png", "b.psd", "c.PSD", "d", ".hidden", "e.txt"):
        (tmp_path / name).write_bytes(picture())
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "f.pack").touch()
    remark = open_input(tmp_path).remark
    assert remark.endswith("4 files not named as pictures are: 2 .psd, 1 .txt, 1 without an ending")
    assert str(tmp_path) in remark
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(picture())
    assert open_input(tmp_path / "sub").remark == ""


def test_formats_that_are_asked_for_are_looked_for_by_their_names(tmp_path):
    for name in ("a.png", "b.tga"):
        (tmp_path / name).write_bytes(picture())
    assert suffixes_of(None) == () and "tga" in suffixes_of(["TGA"])
    (shard,) = open_input(tmp_path, suffixes=suffixes_of(["TGA"])).shards
    assert shard.open().keys(0, 2) == ["a.png", "b.tga"]


@pytest.mark.parametrize(("brand", "advice"), [("heic", "clip-jax-flax"), ("avif", "AVIF")])
def test_a_picture_that_needs_a_plug_in_says_which(brand, advice, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = b"\0\0\0\x18ftyp" + brand.encode() + bytes(16)
    with pytest.raises(ValueError, match=advice):
        decode_image(data, ["PNG"])


def test_heic_pictures_are_read_with_the_plug_in():
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (32, 16), (200, 30, 40))).save(file)
    image = decode_image(file.getvalue())
    assert image.size == (32, 16)
    assert np.abs(np.asarray(image.convert("RGB")).mean((0, 1)) - (200, 30, 40)).max() < 4


def test_warnings_of_pillows_name_the_picture(tmp_path, capsys, monkeypatch):
    paths = [str(tmp_path / f"{i}.png") for i in range(7)]
    for path in paths:
        Path(path).write_bytes(picture())
    opens = Image.open

    def warns(*args, **options):
        # As Pillow does from within its own modules.
        warnings.warn_explicit("odd EXIF", UserWarning, "x.py", 1, "PIL.TiffImagePlugin")
        return opens(*args, **options)

    monkeypatch.setattr(Image, "open", warns)
    with warnings.catch_warnings():
        warnings.resetwarnings()  # tests turn warnings into errors; users don't
        _, _, lines = runner(capsys)("classify", *paths, "--labels", "x", "--model", "emoji")
    named = [line for line in lines if "odd EXIF" in line]
    assert named[:5] == [f"clip-jax: warning: {path}: odd EXIF" for path in paths[:5]]
    assert named[5:] == [
        "clip-jax: warning: odd EXIF; further pictures with this warning aren't named"
    ]
