"""Pictures of sizes that repeat, resized on the device: the same parts to the bit."""

import io

import numpy as np
import pytest
from PIL import Image

from clip_jax.embed import PictureOptions, device_resize, embed
from clip_jax.embed.device_resize import DeviceResizer
from clip_jax.preprocess import Preprocess
from tests.embedding_jobs import rows
from tests.pictures import noise

pytest.importorskip("pyarrow")

SIZES = [(60, 40), (40, 60), (33, 32), (32, 32), (20, 25), (200, 30)]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """A size repeats from the third picture on."""
    monkeypatch.setattr(device_resize, "REPEATS", 2)
    monkeypatch.setattr(device_resize, "ROWS", 4)


@pytest.fixture
def pictures(tmp_path):
    """Pictures of several sizes and modes, some of which are no pictures."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(70):
        size = SIZES[i % len(SIZES)]
        kind, options = ("JPEG", {"quality": 90}) if i % 4 else ("PNG", {})
        (folder / f"{i:03d}.{kind.lower()}").write_bytes(noise(i, size, kind, **options))
    grey = Image.open(io.BytesIO(noise(1, (60, 40)))).convert("L")
    for i, image in enumerate((grey, grey.convert("P"), grey.convert("RGBA"))):
        image.save(folder / f"mode{i}.png")
    (folder / "broken.jpg").write_bytes(noise(5, (60, 40), "JPEG")[:400])
    return folder


def resized_on_device(monkeypatch) -> list[tuple[int, int]]:
    """The heights and widths of the pictures that the device resizes, as they come."""
    sizes, add = [], DeviceResizer.add

    def noted(self, frame):
        sizes.append(frame.shape[:2])
        return add(self, frame)

    monkeypatch.setattr(DeviceResizer, "add", noted)
    return sizes


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pictures": PictureOptions(fit="pad", background="white")},
        {"pictures": PictureOptions(decode="fast")},
        {"rows_per_part": 7, "exif_transpose": True},
    ],
)
def test_parts_are_the_same_to_the_bit(options, model, pictures, tmp_path, monkeypatch):
    options = {"batch_size": 8, "progress": False} | options
    embed(pictures, model, tmp_path / "host", **options)
    sizes = resized_on_device(monkeypatch)
    embed(pictures, model, tmp_path / "device", resize="device", **options)
    assert (tmp_path / "device/job.json").read_bytes() == (tmp_path / "host/job.json").read_bytes()
    names = sorted(path.name for path in (tmp_path / "host").glob("part-*"))
    assert names
    for name in names:
        host, device = (tmp_path / each / name for each in ("host", "device"))
        assert host.read_bytes() == device.read_bytes()
    # Not of the model's size, nor very long, nor the first two.
    assert set(sizes) == {(60, 40), (40, 60), (33, 32), (20, 25)}
    assert len(sizes) >= 30


def test_what_was_begun_one_way_goes_on_the_other(model, pictures, tmp_path):
    options = {"batch_size": 8, "progress": False, "rows_per_part": 10}
    whole, out = tmp_path / "whole", tmp_path / "out"
    embed(pictures, model, whole, **options)
    embed(pictures, model, out, resize="device", **options)
    parts = sorted(path.name for path in out.glob("part-*"))
    (out / parts[2]).unlink()
    summary = embed(pictures, model, out, **options)
    assert summary.rows and summary.rows < 12
    assert [(out / name).read_bytes() for name in parts] == [
        (whole / name).read_bytes() for name in parts
    ]


def test_only_pictures_that_the_device_makes_the_same_of_are_taken():
    resizer = DeviceResizer(Preprocess(32))
    rgb = Image.new("RGB", (60, 40))
    assert [resizer.takes(rgb) for _ in range(4)] == [False, False, True, True]
    others = [rgb.convert(mode) for mode in ("L", "P", "RGBA", "CMYK", "I;16", "LA", "1")]
    others += [Image.new("RGB", (32, 32)), Image.new("RGB", (400, 60)), Image.new("RGB", (0, 9))]
    others += [Image.new("RGB", (1200, 1100))]
    transparent = rgb.copy()
    transparent.info["transparency"] = (0, 0, 0)
    for image in (*others, transparent):
        assert not any(resizer.takes(image) for _ in range(9))


def test_sizes_beyond_the_first_few_are_left_to_pillow(monkeypatch):
    monkeypatch.setattr(device_resize, "MOST_SIZES", 2)
    resizer = DeviceResizer(Preprocess(32))
    taken = [
        [resizer.takes(Image.new("RGB", (40 + i, 40))) for _ in range(4)][-1] for i in range(4)
    ]
    assert taken == [True, True, False, False]


def test_rows_come_back_in_their_order_however_groups_are_filled():
    rng, preprocess = np.random.default_rng(0), Preprocess(32)
    resizer = DeviceResizer(preprocess)
    frames = [
        rng.integers(0, 256, (*size, 3), np.uint8) for size in [(40, 50), (50, 40)] * 7 + [(40, 50)]
    ]
    placed = [resizer.add(frame) for frame in frames]
    resizer.flush()
    for frame, resized in zip(frames, placed, strict=True):
        expected = preprocess.pixels(Image.fromarray(frame))
        np.testing.assert_array_equal(resized.pixels(), expected)


def test_wrong_arguments_are_refused(model, pictures, tmp_path):
    with pytest.raises(ValueError, match="resize must be 'host' or 'device'"):
        embed(pictures, model, tmp_path / "out", resize="gpu")  # pyright: ignore
    with pytest.raises(ValueError, match="resize='device' is for engine='local'"):
        embed(pictures, model, tmp_path / "out", resize="device", engine="ray")
    assert not (tmp_path / "out").exists()


def test_texts_alone_have_nothing_to_resize(model, tmp_path):
    (tmp_path / "a.txt").write_text("a pear\na plum\n")
    for resize in ("host", "device"):
        embed(tmp_path / "a.txt", model, tmp_path / resize, resize=resize, progress=False)
    assert rows(tmp_path / "host") == rows(tmp_path / "device")
