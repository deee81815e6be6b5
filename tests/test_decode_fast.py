"""JPEG files decoded at a reduced scale where they are much larger than a model needs."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from clip_jax import open_image
from clip_jax.cli import main
from clip_jax.embed import embed, embeddings_of, read_embeddings
from clip_jax.evaluate.captions import embed_captioned
from clip_jax.jpeg_scans import MOST_SCANS
from clip_jax.loading import Loader
from clip_jax.picture_options import PictureOptions
from clip_jax.preprocess import Preprocess, decode_image
from clip_jax.preprocess_huggingface import HuggingFacePreprocess
from clip_jax.search import search
from clip_jax.sources import Record
from clip_jax.weights.opened import Opened
from tests.models import SMALL_VIT, small
from tests.pictures import saved

N = 32
FAST = PictureOptions(decode="fast")


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coarse and fine detail, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    coarse = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    fine = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(coarse + fine, 0, 255).astype(np.uint8))


def loaded(data: bytes, preprocess: Preprocess, *, turn: bool = False) -> np.ndarray:
    """The pixels that a job makes of a file."""
    loader = Loader(preprocess=preprocess, context_length=None, exif_transpose=turn)
    row = loader(None, 0, Record("a", lambda: data))
    assert row.problem is None and row.pixels is not None
    return row.pixels


def decoded(data: bytes, preprocess: Preprocess) -> Image.Image:
    return decode_image(data, preprocess=preprocess)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 512), (80, 64)),  # an eighth
        ((639, 511), (160, 128)),  # an eighth would leave less than twice the side
        ((128, 300), (64, 150)),
        ((127, 300), (127, 300)),
        ((31, 1000), (31, 1000)),
        ((3000, 2000), (375, 250)),  # no scale is less than an eighth
    ],
)
def test_the_least_scale_is_taken_that_leaves_twice_the_side(size, expected):
    data = saved(photograph(*size), "JPEG")
    assert decoded(data, Preprocess(N, decode="fast")).size == expected
    assert decoded(data, Preprocess(N)).size == size == decode_image(data).size


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        (Preprocess(N, fit="pad"), (100, 50)),  # 32 x 16
        (Preprocess(N, fit="crop"), (200, 100)),  # 64 x 32
        (Preprocess(N, fit="squash"), (200, 100)),  # 32 x 32
        (Preprocess((32, 16)), (200, 100)),  # 32 x 64 at least, and 32 x 32 if it is turned
        (HuggingFacePreprocess(N, resized=60), (400, 200)),
    ],
)
def test_the_scale_depends_on_how_pictures_are_fitted(preprocess, expected):
    data = saved(photograph(800, 400), "JPEG")
    options = PictureOptions(preprocess.fit, decode="fast")
    assert decoded(data, options.applied_to(preprocess)).size == expected


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_of_every_kind_come_out_smaller_and_alike(mode, progressive):
    data = saved(photograph(400, 300).convert(mode), "JPEG", progressive=progressive, quality=95)
    fast, exact = Preprocess(N, decode="fast"), Preprocess(N)
    image = decoded(data, fast)
    assert image.size == (100, 75) and image.mode == mode
    found, expected = fast.pixels(image), exact.pixels(decoded(data, exact))
    assert 0 < np.abs(found.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("size", [(1347, 1011), (1011, 1347), (1025, 769)])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("kind", [Preprocess, HuggingFacePreprocess])
def test_sizes_that_the_scale_does_not_divide_are_neither_stretched_nor_shifted(kind, size, fit):
    data = saved(photograph(*size), "JPEG", quality=95)
    fast, exact = kind(N, fit=fit, decode="fast"), kind(N, fit=fit)
    image = decoded(data, fast)
    assert image.size == tuple(-(-side // 8) for side in size)
    found = fast.pixels(image).astype(int)
    assert np.abs(found - exact.pixels(decoded(data, exact))).mean() < 0.5


def test_a_reduced_picture_that_somebody_has_cropped_is_taken_as_it_is():
    fast = Preprocess(N, decode="fast")
    image = decoded(saved(photograph(1347, 1011), "JPEG"), fast)
    part = image.crop((0, 0, 100, 80))
    alone = Image.fromarray(np.asarray(part))
    assert part.info and np.array_equal(fast.pixels(part), fast.pixels(alone))


def test_pictures_of_other_formats_stay_as_they_are():
    for kind in ("PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000"):
        data = saved(photograph(400, 300), kind)
        assert decoded(data, Preprocess(N, decode="fast")).size == (400, 300)
    deep = Image.fromarray(np.full((300, 400), 40_000, np.uint16))
    image = decoded(saved(deep, "PNG"), Preprocess(N, decode="fast"))
    assert (image.mode, image.size) == ("I;16", (400, 300))


def test_the_first_picture_of_several_in_a_file_is_reduced():
    file, image = io.BytesIO(), photograph(400, 300)
    image.save(file, "MPO", save_all=True, append_images=[photograph(400, 300, 1)])
    assert Image.open(io.BytesIO(file.getvalue())).format == "MPO"
    assert decoded(file.getvalue(), Preprocess(N, decode="fast")).size == (100, 75)


def test_a_turned_picture_is_turned_after_it_is_reduced():
    image = photograph(800, 400)
    image.getexif()[0x0112] = 6  # turned by 90 degrees
    data = saved(image, "JPEG", exif=image.getexif())
    fast, exact = Preprocess((32, 16), decode="fast"), Preprocess((32, 16))
    pixels = [loaded(data, fast, turn=turn) for turn in (False, True)]
    expected = [exact.pixels(image), exact.pixels(image.transpose(Image.Transpose.ROTATE_270))]
    for found, wanted in zip(pixels, expected, strict=True):
        assert np.abs(found.astype(int) - wanted).mean() < 4
    assert np.abs(pixels[0].astype(int) - pixels[1]).mean() > 20


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_a_cut_file_is_refused_as_without(share, progressive):
    data = saved(photograph(640, 480), "JPEG", progressive=progressive)
    cut = data[: int(share * len(data))]
    messages = []
    for preprocess in (Preprocess(N), Preprocess(N, decode="fast")):
        with pytest.raises(ValueError, match="the image is damaged") as refusal:
            decoded(cut, preprocess)
        messages.append(str(refusal.value))
    assert "truncated" in messages[1]


def test_files_that_cost_far_more_than_their_pixels_are_refused_as_without():
    data = saved(photograph(64, 64), "JPEG", progressive=True)
    begin = data.rindex(b"\xff\xda")
    scan = data[begin : data.rindex(b"\xff\xd9")]
    many = data[:begin] + scan * (MOST_SCANS + 1) + data[begin:]
    with pytest.raises(ValueError, match=f"more than {MOST_SCANS} scans"):
        decoded(many, Preprocess(4, decode="fast"))
    huge = bytearray(saved(photograph(64, 64), "JPEG"))
    size = huge.index(b"\xff\xc0") + 5
    huge[size : size + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(ValueError, match="refused, because it is too large"):
        decoded(bytes(huge), Preprocess(4, decode="fast"))


def test_a_wrong_way_of_decoding_is_refused():
    for make in (lambda: Preprocess(N, decode="slow"), lambda: PictureOptions(decode="slow")):  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="decode must be 'exact' or 'fast'. Got 'slow'"):
            make()


# --- in the jobs


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(3):
        photograph(400, 300, i).save(folder / f"{i}.jpg")
        (folder / f"{i}.txt").write_text(f"number {i}")
    return folder


def vectors(out) -> np.ndarray:
    return embeddings_of(read_embeddings(str(out)).to_table(), "embedding")


def test_a_job_that_decodes_fast_is_another_job_and_its_search_does_alike(photographs, tmp_path):
    model = small(SMALL_VIT)
    embed(photographs, model, tmp_path / "exact", progress=False)
    exact = json.loads((tmp_path / "exact" / "job.json").read_text())["identity"]
    assert "decode" not in exact  # jobs begun before there was a choice go on
    with pytest.raises(ValueError, match="- decode: there not given, here 'fast'"):
        embed(photographs, model, tmp_path / "exact", pictures=FAST, progress=False)
    embed(photographs, model, tmp_path / "fast", pictures=FAST, progress=False)
    fast = json.loads((tmp_path / "fast" / "job.json").read_text())["identity"]
    assert fast == exact | {"decode": "fast"}
    with pytest.raises(ValueError, match="- decode: there 'fast', here not given"):
        embed(photographs, model, tmp_path / "fast", progress=False)
    ours, theirs = vectors(tmp_path / "fast"), vectors(tmp_path / "exact")
    assert not np.array_equal(ours, theirs) and (ours * theirs).sum(-1).min() > 0.99
    best = search(tmp_path / "fast", model, photographs / "1.jpg", 1)[0]
    assert best["key"] == "1.jpg" and best["score"] == pytest.approx(1, abs=1e-6)


def test_jobs_decode_what_open_image_does(photographs):
    preprocess = Preprocess(N, decode="fast")
    image = open_image(photographs / "0.jpg", preprocess=preprocess)
    assert image.size == (100, 75)
    data = (photographs / "0.jpg").read_bytes()
    assert np.array_equal(loaded(data, preprocess), preprocess.pixels(image))


def test_captioned_pictures_are_decoded_fast(photographs, tmp_path):
    model = small(SMALL_VIT)
    embed(photographs, model, tmp_path / "fast", pictures=FAST, progress=False)
    found = embed_captioned(
        photographs, Opened(model, Preprocess(N)), pictures=FAST, progress=False
    )
    rows = found.images / np.linalg.norm(found.images, axis=-1, keepdims=True)
    np.testing.assert_allclose(rows, vectors(tmp_path / "fast"), atol=1e-5)


def test_the_command_line_decodes_fast(photographs, tmp_path, capsys):
    options = ["--model", "emoji", "--decode", "fast"]
    assert main(["embed", str(photographs), "--out", str(tmp_path / "out"), *options]) == 0
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    assert job["identity"]["decode"] == "fast"
    capsys.readouterr()

    def scores(*more: str) -> dict[str, float]:
        picture = str(photographs / "0.jpg")
        labels = ["--labels", "a cloud", "a carpet", "a flag", "--json", "--model", "emoji"]
        assert main(["classify", picture, *labels, *more]) == 0
        found = json.loads(capsys.readouterr().out)[0]["scores"]
        return {score["label"]: score["probability"] for score in found}

    exact, fast = scores(), scores("--decode", "fast")
    assert exact != fast == pytest.approx(exact, abs=0.1)
