"""Preprocessed images are the reference's to the last bit; unreadable files are named."""

import hashlib
import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_jax.nn.pixels import MEAN, STD
from clip_jax.preprocess import Preprocess, open_image
from tests import reference
from tests.pictures import MODES, TRANSPARENT, png_of_size, random_image, saved
from tests.reference import requires_reference

GOLDEN = Path(__file__).parent / "golden" / "preprocess.json"


def theirs(n: int, image: Image.Image) -> np.ndarray:
    with warnings.catch_warnings():
        # Pillow advises against converting transparent palettes to RGB; the reference does it.
        warnings.simplefilter("ignore", UserWarning)
        return reference.clip().clip._transform(n)(image).numpy().transpose(1, 2, 0)


@requires_reference
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "La"])
@settings(max_examples=12, deadline=None)
@given(
    n=st.sampled_from([1, 7, 32, 224]),
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    seed=st.integers(0, 99),
)
@example(n=224, width=224, height=224, seed=0)
@example(n=224, width=1, height=1, seed=0)
@example(n=32, width=1, height=500, seed=0)
@example(n=32, width=500, height=1, seed=0)
@example(n=32, width=32, height=51, seed=0)
@example(n=32, width=35, height=32, seed=0)
def test_every_mode_equals_reference_to_the_bit(mode, n, width, height, seed):
    image = random_image(mode, (width, height), np.random.default_rng(seed))
    ours, expected = Preprocess(n)(image), theirs(n, image)
    assert ours.dtype == np.float32 and ours.shape == (n, n, 3)
    assert ours.tobytes() == expected.tobytes()


@requires_reference
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (997, 13), (1601, 1200), (224, 5000)])
def test_extreme_sizes_equal_reference_to_the_bit(size):
    image = random_image("RGB", size, np.random.default_rng(0))
    assert Preprocess(224)(image).tobytes() == theirs(224, image).tobytes()


@requires_reference
def test_refused_mode_is_refused_by_the_reference_too():
    image = random_image("La", (50, 60), np.random.default_rng(0))
    with pytest.raises(ValueError, match="mode 'La'.*convert it first"):
        Preprocess(32)(image)
    with pytest.raises(ValueError):
        theirs(32, image)


def golden_hashes(pipeline) -> dict[str, str]:
    """SHA-256 of what pipeline(n, image) gives for images that any machine makes alike."""
    hashes = {}
    for mode in MODES:
        for size in ((17, 31), (64, 64), (301, 200)):
            count = size[0] * size[1] * 4
            pixels = (np.arange(count, dtype=np.uint64) ** 2 * 2654435761 >> 12).astype(np.uint8)
            base = Image.frombytes("RGBA", size, pixels.tobytes())
            kind = mode.partition(",")[0]
            if kind in ("LAB", "La", "I;16B", "I;16L", "PA"):
                continue  # not every Pillow converts to these
            image = base.convert("RGB").convert(kind) if kind in ("HSV", "YCbCr") else base
            image = image.convert("L").convert(kind) if kind == "I;16" else image.convert(kind)
            if mode in TRANSPARENT:
                image.info["transparency"] = TRANSPARENT[mode]
            result = np.ascontiguousarray(pipeline(64, image)).astype("<f4")
            hashes[f"{mode} {size}"] = hashlib.sha256(result.tobytes()).hexdigest()[:16]
    return hashes


def test_golden_hashes_of_the_reference():
    golden = json.loads(GOLDEN.read_text())
    assert golden_hashes(lambda n, image: Preprocess(n)(image)) == golden["hashes"]


def write_golden():
    """Write the golden file from the reference: python -m tests.test_preprocess."""
    golden = {
        "made_by": "python -m tests.test_preprocess, with torchvision 0.28.0 and pillow 13.0.0",
        "hashes": golden_hashes(theirs),
    }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


def test_pixels_normalise_to_the_call():
    image = random_image("RGB", (50, 70), np.random.default_rng(0))
    preprocess = Preprocess(32)
    pixels = preprocess.pixels(image)
    assert pixels.dtype == np.uint8 and pixels.shape == (32, 32, 3)
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    expected = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    np.testing.assert_array_equal(preprocess(image), expected)


def test_shorter_side_fits_and_the_middle_is_kept():
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 255
    assert (Preprocess(32).pixels(Image.fromarray(pixels)) == 255).all()
    assert (Preprocess(32).pixels(Image.fromarray(pixels.transpose(1, 0, 2))) == 255).all()


@pytest.mark.parametrize(("width", "left"), [(33, 0), (35, 2), (37, 2), (39, 4)])
def test_half_a_pixel_rounds_to_even(width, left):
    columns = np.broadcast_to(np.arange(width, dtype=np.uint8), (32, width))
    assert Preprocess(32).pixels(Image.fromarray(columns))[0, 0, 0] == left


def test_exif_orientation_is_not_applied():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(Preprocess(32).pixels(Image.open(file)), pixels)


@pytest.mark.parametrize("mode", MODES[:-1])
def test_the_given_image_is_left_as_it_was(mode):
    image = random_image(mode, (40, 40), np.random.default_rng(0))
    before, info = image.tobytes(), dict(image.info)
    if mode != "La":
        Preprocess(40)(image)
    assert (image.tobytes(), image.info) == (before, info)


def test_results_are_independent_and_writable():
    image = Image.new("RGB", (40, 40))
    for function in (Preprocess(32), Preprocess(32).pixels):
        first = function(image)
        expected = first.copy()
        first += 1
        np.testing.assert_array_equal(function(image), expected)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), "got ndarray; use Image.fromarray"),
        ("cat.jpg", "got str; use clip_jax.open_image"),
        (Path("cat.jpg"), "got PosixPath; use clip_jax.open_image"),
        (None, "got NoneType"),
    ],
)
def test_what_is_not_an_image_is_named(thing, message):
    with pytest.raises(TypeError, match=f"expected a PIL image, {message}"):
        Preprocess(32)(thing)


def test_image_without_pixels_is_an_error():
    with pytest.raises(ValueError, match=r"no pixels: its size is \(0, 7\)"):
        Preprocess(32)(Image.new("RGB", (0, 7)))


@pytest.mark.parametrize("size", [0, -1, 2.5, None])
def test_image_size_must_be_a_positive_integer(size):
    with pytest.raises(ValueError, match="image_size must be a positive integer"):
        Preprocess(size)


def test_preprocess_is_a_value():
    assert Preprocess(224) == Preprocess(224) != Preprocess(288)
    assert len({Preprocess(224), Preprocess(224)}) == 1


def test_open_image_reads_all_of_it(tmp_path):
    path = tmp_path / "a.png"
    image = random_image("RGB", (30, 20), np.random.default_rng(0))
    image.save(path)
    opened = open_image(path)
    path.unlink()
    assert opened.tobytes() == image.tobytes()


def _truncated(format: str) -> bytes:
    whole = saved(random_image("RGB", (99, 99), np.random.default_rng(0)), format)
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, I am text\n" * 9, "is not an image in a format that Pillow knows"),
        (_truncated("JPEG"), "the image is damaged"),
        (_truncated("PNG"), "the image is damaged"),
        (_truncated("GIF"), "the image is damaged"),
        (_truncated("TIFF"), "(the image is damaged|is not an image)"),
        (_truncated("WEBP"), "(the image is damaged|is not an image)"),
        (png_of_size(40, 40), "the image is damaged"),
        (png_of_size(30_000, 30_000), "refused, because it is too large"),
        (
            png_of_size(11_000, 11_000),
            "refused, because it is too large",
        ),  # a warning, here an error
    ],
    ids="empty text jpeg png gif tiff webp short-data bomb half-bomb".split(),
)
def test_unreadable_files_are_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.jpg: {reason}"):
        open_image(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.jpg"):
        open_image(tmp_path / "gone.jpg")


def test_directory_is_named(tmp_path):
    with pytest.raises(ValueError, match="is a directory, not an image file"):
        open_image(tmp_path)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_file_without_permission_is_named(tmp_path):
    path = tmp_path / "secret.png"
    path.touch(mode=0o000)
    with pytest.raises(ValueError, match="secret.png: no permission to read it"):
        open_image(path)


if __name__ == "__main__":
    write_golden()
