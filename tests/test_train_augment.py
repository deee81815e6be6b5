"""Augmentation of pictures for training."""

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.train.augment import AugmentConfig, augment

pytest.importorskip("grain")
pytest.importorskip("orbax.checkpoint")


def gradient_image(width=50, height=40, mode="RGB") -> Image.Image:
    x = np.linspace(0, 255, width, dtype=np.uint8)[None].repeat(height, 0)
    y = np.linspace(0, 255, height, dtype=np.uint8)[:, None].repeat(width, 1)
    image = Image.fromarray(np.stack([x, y, 255 - x], -1))
    if mode == "RGBA":
        alpha = Image.new("L", image.size, 0)
        alpha.paste(255, (10, 10, 30, 30))
        image.putalpha(alpha)
    return image.convert(mode)


def test_the_middle_of_a_picture_is_what_preprocessing_gives():
    image = gradient_image()
    given = augment(image, 32, AugmentConfig(crop="center"), np.random.default_rng(0))
    assert np.array_equal(given, clip_jax.Preprocess(32).pixels(image))


def test_random_crops_are_squares_of_the_resized_picture():
    image = gradient_image(80, 40)
    resized = np.array(image.resize((64, 32), Image.Resampling.BICUBIC))
    rng, starts = np.random.default_rng(0), set()
    for _ in range(60):
        given = augment(image, 32, AugmentConfig(), rng)
        (start,) = [x for x in range(33) if np.array_equal(given, resized[:, x : x + 32])]
        starts.add(start)
    assert {0, 32} <= starts and len(starts) > 20  # the ends, too


def test_transparency_shows_the_background():
    image = gradient_image(mode="RGBA")
    white = augment(image, 40, AugmentConfig(crop="center"), np.random.default_rng(0))
    assert (white[:5, :5] == 255).all()
    random_ = AugmentConfig(crop="center", background="random")
    given = [augment(image, 40, random_, np.random.default_rng(i))[0, 0] for i in range(40)]
    corners = [tuple(map(int, corner)) for corner in given]
    assert 10 <= corners.count((255, 255, 255)) <= 30  # one of two stays white
    assert len(set(corners)) == 41 - corners.count((255, 255, 255))


def test_hues_turn_and_colours_go():
    image = Image.new("RGB", (8, 8), (180, 90, 90))
    turned = {
        tuple(augment(image, 8, AugmentConfig(hue=60), np.random.default_rng(i))[0, 0])
        for i in range(20)
    }
    assert len(turned) > 10
    # Turned by 60 degrees at most, red keeps more of itself than of either other colour, and as far
    # from the grays as it was.
    for red, green, blue in (np.array(color, float) for color in turned):
        assert red > max(green, blue) and abs(red + green + blue - 360) <= 3
        assert abs(np.std([red, green, blue]) - np.std([180, 90, 90])) < 1
    gray = [augment(image, 8, AugmentConfig(gray=0.5), np.random.default_rng(i)) for i in range(40)]
    count = sum(len(set(map(int, one[0, 0]))) == 1 for one in gray)
    assert 10 <= count <= 30


def test_brightness_contrast_and_saturation_change_by_their_share():
    shades = np.tile(np.linspace(80, 150, 32, dtype=np.uint8)[:, None, None], (1, 32, 3))
    image = Image.fromarray(shades + np.array([20, 0, 0], np.uint8))
    config = AugmentConfig(color=0.3)
    given = [augment(image, 32, config, np.random.default_rng(i)).astype(float) for i in range(200)]
    before = np.asarray(image).astype(float)
    light = np.array([one.mean() for one in given]) / before.mean()
    assert 0.68 < light.min() < 0.76 and 1.24 < light.max() < 1.32
    # A shade's distance from the middle, by brightness and contrast; red's from the others, by all.
    spread = np.array([np.ptp(one[..., 1]) for one in given]) / light / np.ptp(before[..., 1])
    assert 0.65 < spread.min() < 0.8 and 1.2 < spread.max() < 1.35
    red = np.array([(one[..., 0] - one[..., 1]).mean() / 20 for one in given]) / light / spread
    assert 0.65 < red.min() < 0.8 and 1.2 < red.max() < 1.35


def test_outlines_are_black_where_colours_change_and_only_there():
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((250, 200, 60, 255), (10, 10, 30, 30))
    config = AugmentConfig(crop="center", outline=1.0)
    given = augment(image, 40, config, np.random.default_rng(0)).astype(int)
    assert (given[9:11, 10:30] == 0).all() and (given[10:30, 29:31] == 0).all()
    assert (given[11:29, 11:29] == (250, 200, 60)).all()
    assert (given[:9] == 255).all() and (given[:, :9] == 255).all()
    # Shades are no edges.
    shades = gradient_image(200, 200)
    assert np.array_equal(
        augment(shades, 200, config, np.random.default_rng(0)),
        augment(shades, 200, AugmentConfig(crop="center"), np.random.default_rng(0)),
    )
    half = AugmentConfig(crop="center", outline=0.5)
    seen = [augment(image, 40, half, np.random.default_rng(i))[10, 20].max() for i in range(40)]
    assert 10 <= seen.count(0) <= 30


def test_pictures_are_stretched_either_way_up_to_the_limit():
    image = Image.new("RGBA", (200, 200), (0, 0, 0, 0))
    image.paste((250, 200, 60, 255), (50, 50, 150, 150))
    config = AugmentConfig(crop="center", stretch=0.25, scale=(0.8, 0.8))
    ratios = []
    for i in range(60):
        given = augment(image, 200, config, np.random.default_rng(i))
        drawn = (given != 255).any(-1)
        ratios.append(drawn.any(0).sum() / drawn.any(1).sum())
    # Pixels at the edges of a square of about 80 come or go.
    assert 0.78 < min(ratios) < 0.85 and 1.18 < max(ratios) < 1.28


def test_warped_pictures_are_pulled_everywhere_up_to_the_limit_and_torn_nowhere():
    side, share = 200, 0.1
    down, across = np.mgrid[:side, :side]
    image = Image.fromarray(np.dstack([across, down, np.zeros_like(down)]).astype(np.uint8))
    config = AugmentConfig(crop="center", warp=share)
    furthest = []
    for i in range(10):
        given = augment(image, side, config, np.random.default_rng(i)).astype(int)
        beside = given[..., 2] > 0  # the picture has no blue: this is the background
        pulled = np.abs(given[..., :2] - np.dstack([across, down])).max(-1)[~beside]
        furthest.append(pulled.max())
        steps = [np.abs(np.diff(given[..., :2], axis=axis)).max(-1) for axis in (0, 1)]
        # Corners a third of a side apart come no nearer or further apart than by twice the share.
        near = ~beside[1:] & ~beside[:-1], ~beside[:, 1:] & ~beside[:, :-1]
        for step, inside in zip(steps, near, strict=True):
            assert step[inside].max() <= 3 * 2 * share + 1 + 2
        assert beside.mean() < 4 * share
    assert max(furthest) <= share * side + 2
    assert np.mean(furthest) > 0.8 * share * side


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
def test_all_that_can_be_done_is_done_to_every_mode(mode):
    image = gradient_image().convert("L").convert("I").convert("I;16") if mode == "I;16" else None
    image = image or gradient_image().convert(mode)
    config = AugmentConfig(
        scale=(0.6, 1.4),
        stretch=0.2,
        warp=0.1,
        rotation=30,
        flip=True,
        color=0.3,
        hue=30,
        gray=0.2,
        outline=0.5,
        background="random",
    )
    seen = {augment(image, 32, config, np.random.default_rng(i)).tobytes() for i in range(6)}
    assert len(seen) == 6
    given = augment(image, 32, config, np.random.default_rng(0))
    assert given.shape == (32, 32, 3) and given.dtype == np.uint8
    again = augment(image, 32, config, np.random.default_rng(0))
    assert np.array_equal(given, again)


@pytest.mark.parametrize(
    "options",
    [
        {"crop": "left"},
        {"background": "blue"},
        {"scale": (1.0,)},
        {"scale": (1.2, 0.8)},
        {"scale": (0.0, 1.0)},
        {"rotation": 200},
        {"hue": -1},
        {"gray": 1.5},
        {"stretch": -0.1},
        {"warp": -0.1},
        {"warp": 0.3},
        {"outline": 2},
        {"color": 1.0},
    ],
)
def test_augmentations_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AugmentConfig(**options)
