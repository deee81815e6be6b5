"""Pictures that are shown whole, on a background or with all of their 16 bits, in every job."""

import json

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.embed import embed
from clip_jax.picture_options import PictureOptions
from clip_jax.pixel_config import PixelConfig
from clip_jax.preprocess import Preprocess
from clip_jax.preprocess_huggingface import HuggingFacePreprocess
from clip_jax.search import search
from clip_jax.train.augment import AugmentConfig, augment
from tests.models import SMALL_VIT, small
from tests.pictures import MODES, random_image

N = 16


def wide(color=(200, 100, 50), ends=(0, 255, 0)) -> Image.Image:
    """A picture of one colour whose two ends have another."""
    image = Image.new("RGB", (64, 32), color)
    for left in (0, 56):
        image.paste(ends, (left, 0, left + 8, 32))
    return image


def test_a_picture_is_cropped_padded_or_squashed():
    crop, pad, squash = (Preprocess(N, fit=fit).pixels(wide()) for fit in ("crop", "pad", "squash"))
    assert np.array_equal(crop, Preprocess(N).pixels(wide()))
    assert not (crop == (0, 255, 0)).all(-1).any()  # the ends are cut off
    assert (pad[:4] == 0).all() and (pad[-4:] == 0).all()  # margins
    assert (pad[8, 0] == (0, 255, 0)).all() and (pad[8, 8] == (200, 100, 50)).all()
    assert (squash[0, 0] == (0, 255, 0)).all() and (squash[0, 8] == (200, 100, 50)).all()


def test_the_fit_wins_over_the_models_own_way():
    for own in ("shortest", "squash", "longest"):
        found = Preprocess(N, PixelConfig(resize=own), fit="crop").pixels(wide())
        assert np.array_equal(found, Preprocess(N).pixels(wide()))


def test_margins_have_the_backgrounds_colour():
    pixels = Preprocess(N, fit="pad", background="#102030").pixels(wide())
    assert (pixels[0] == (16, 32, 48)).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_every_mode_can_be_shown_in_every_way(mode, fit):
    if mode == "LAB":
        pytest.skip("Pillow has no LAB to RGB")
    image = random_image(mode, (20, 11), np.random.default_rng(0))
    options = PictureOptions(fit, "white", scale_16_bit=True)
    for preprocess in (
        options.applied_to(Preprocess(32)),
        HuggingFacePreprocess(32, fit=fit, background="white", scale_16_bit=True),
    ):
        pixels = preprocess.pixels(image)
        assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
        assert not preprocess.losses(image) or mode == "F"


def test_what_is_transparent_is_put_on_the_background():
    image = Image.new("RGBA", (N, N), (200, 0, 0, 0))
    image.paste((0, 0, 200, 255), (0, 0, N, N // 2))
    assert (Preprocess(N).pixels(image)[-1] == (200, 0, 0)).all()  # the colour beneath
    pixels = Preprocess(N, background="white").pixels(image)
    assert (pixels[-1] == 255).all() and (pixels[0] == (0, 0, 200)).all()
    assert Preprocess(N).losses(image) == ("uncovered",)
    opaque = Image.new("RGBA", (N, N), (200, 0, 0, 255))
    assert Preprocess(N).losses(opaque) == () == Preprocess(N, background="white").losses(image)
    assert HuggingFacePreprocess(N).losses(image) == ()  # on white


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bits_are_scaled_to_8(mode):
    ramp = np.linspace(0, 65535, N * N).reshape(N, N)
    image = Image.fromarray(ramp.astype(np.uint16))
    image = image if mode == "I;16" else image.convert("I")
    if mode == "I;16B":
        image = Image.frombytes(mode, (N, N), ramp.astype(">u2").tobytes())
    white = Preprocess(N)
    assert (white.pixels(image) == 255).mean() > 0.9 and white.losses(image) == ("clipped",)
    scaled = Preprocess(N, scale_16_bit=True)
    assert scaled.losses(image) == ()
    assert np.abs(scaled.pixels(image)[..., 0] - ramp / 257).max() <= 1


@pytest.mark.parametrize(
    "options", [{"fit": "whole"}, {"background": "whiteish"}, {"background": "#ffffff80"}]
)
def test_wrong_options_are_refused(options):
    (name, value) = next(iter(options.items()))
    for make in (lambda: Preprocess(N, **options), lambda: PictureOptions(**options)):
        with pytest.raises(ValueError, match=f"{name} must be .* Got '{value}'"):
            make()


# --- in the jobs


@pytest.fixture
def pictures(tmp_path):
    """A folder with a wide picture, one of 16 bits and a transparent one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    wide().save(folder / "wide.png")
    ramp = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(folder / "ramp.png")
    Image.new("RGBA", (32, 32), (1, 2, 3, 0)).save(folder / "clear.png")
    return folder


def job_of(out) -> dict:
    return json.loads((out / "job.json").read_text())


def test_a_job_says_how_many_pictures_lose_something(pictures, tmp_path):
    model = small(SMALL_VIT)
    (pictures / "notes.md").write_text("")
    (pictures / ".hidden").write_text("")
    said = embed(pictures, model, tmp_path / "a", progress=False).remarks
    assert len(said) == 3
    assert said[0].endswith("1 file not named as pictures are: 1 .md")
    assert said[1].startswith("1 picture has more than 8 bits") and "(ramp.png)" in said[1]
    assert said[2].startswith("1 picture has transparent parts") and "(clear.png)" in said[2]
    assert "--scale-16-bit" in said[1] and "--background white" in said[2]
    options = PictureOptions(None, "white", scale_16_bit=True)
    (pictures / "notes.md").unlink()
    said = embed(pictures, model, tmp_path / "b", pictures=options, progress=False).remarks
    assert said == ()


def test_options_are_part_of_what_a_job_is_only_where_they_are_chosen(pictures, tmp_path):
    model = small(SMALL_VIT)
    embed(pictures, model, tmp_path / "a", progress=False)
    before = job_of(tmp_path / "a")["identity"]
    assert not before.keys() & {"fit", "background", "scale_16_bit"}
    padded = PictureOptions("pad")
    with pytest.raises(ValueError, match="- fit: there not given, here 'pad'"):
        embed(pictures, model, tmp_path / "a", pictures=padded, progress=False)
    embed(pictures, model, tmp_path / "b", pictures=padded, progress=False)
    assert job_of(tmp_path / "b")["identity"] == before | {"fit": "pad"}
    with pytest.raises(ValueError, match="- fit: there 'pad', here not given"):
        embed(pictures, model, tmp_path / "b", progress=False)


def test_a_picture_is_searched_for_as_the_job_has_shown_it(pictures, tmp_path):
    model = small(SMALL_VIT)
    embed(pictures, model, tmp_path / "a", pictures=PictureOptions("pad"), progress=False)
    best = search(tmp_path / "a", model, pictures / "wide.png", 1)[0]
    assert best["key"] == "wide.png" and best["score"] == pytest.approx(1, abs=1e-5)
    other = search(tmp_path / "a", model, pictures / "wide.png", 3, fit="crop")
    assert {hit["key"]: hit["score"] for hit in other}["wide.png"] < 0.99999


def test_training_pads_and_squashes_as_preprocessing_does():
    rng = np.random.default_rng(0)
    for fit in ("crop", "pad", "squash"):
        found = augment(wide(), N, AugmentConfig(fit=fit, crop="center"), rng)
        assert np.array_equal(found, Preprocess(N, fit=fit, background="white").pixels(wide()))
    ramp = np.linspace(0, 65535, N * N).astype(np.uint16).reshape(N, N)
    image = Image.fromarray(ramp)
    assert (augment(image, N, AugmentConfig(), rng) == 255).mean() > 0.9
    found = augment(image, N, AugmentConfig(scale_16_bit=True), rng)
    assert np.array_equal(found, Preprocess(N, scale_16_bit=True).pixels(image))


def test_a_native_folder_says_how_a_model_is_shown_its_pictures(tmp_path):
    from clip_jax.train.config import parse_config
    from clip_jax.train.run import _finished

    document = {"out": "x", "model": {"from": "y"}, "data": {"train": "z"}}
    document |= {"run": {"batch_size": 1}, "augment": {"fit": "pad"}}
    config = _finished(SMALL_VIT, parse_config(document))
    clip_jax.weights.save_parameters(config, clip_jax.parameters(small(SMALL_VIT)), tmp_path / "m")
    _, preprocess = clip_jax.load(tmp_path / "m")
    assert preprocess.resize == "longest"
    assert _finished(SMALL_VIT, parse_config(document | {"augment": {}})) == SMALL_VIT
