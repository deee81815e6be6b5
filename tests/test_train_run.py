"""A training run as its user starts it: data, TOML, checkpoints, kills, and what comes out."""

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

import clip_jax
from clip_jax.cli import main
from clip_jax.sources import Pair, open_pairs
from clip_jax.train import compiler_options, group_by_length, read_config, run, train
from clip_jax.train.augment import AugmentConfig, augment
from clip_jax.train.checkpoints import Checkpoints
from clip_jax.train.data import batches
from clip_jax.train.identity import Identity
from clip_jax.train.metrics import Metrics
from clip_jax.train.order import Spread, groups_of, spread
from clip_jax.weights import read_native
from tests import processes, quickly
from tests.models import SMALL_VIT, small
from tests.test_sources import picture, write_tar

pytest.importorskip("grain")
pytest.importorskip("orbax.checkpoint")

COUNT = 40
COLORS = [(i * 37 % 256, i * 91 % 256, i * 53 % 256) for i in range(COUNT)]


class ListPairs:
    """Pairs in memory."""

    def __init__(self, images: list[bytes]):
        self.images = images

    def __len__(self):
        return len(self.images)

    def captions(self, index):
        return f"number {index}", f"no {index}"

    def __getitem__(self, index):
        return Pair(f"{index:02d}", self.images[index], self.captions(index))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    members = {}
    for i, color in enumerate(COLORS):
        members[f"{i:02d}.png"] = picture(color, (40, 32))
        members[f"{i:02d}.txt"] = f"colour number {i}".encode()
    names = sorted(members)
    half = len(names) // 2
    for shard, part in enumerate((names[:half], names[half:])):
        write_tar(folder / f"pairs-{shard}.tar", {name: members[name] for name in part})
    return f"{folder}/pairs-{{0..1}}.tar"


TOML = """
# clip-jax train small.toml
out = "{out}"
[model]
embed_dim = 16
[model.vision]
type = "vit"
image_size = 32
patch_size = 8
width = 64
num_layers = 2
num_heads = 1
[model.text]
width = 64
num_layers = 2
num_heads = 1
[data]
train = "{shards}"
text_length = 12
templates = ["{{}}", "a photo of {{}}."]
[augment]
scale = [0.8, 1.2]
color = 0.2
[optimizer]
learning_rate = 1e-3
warmup_steps = 4
total_steps = 24
[run]
batch_size = 16
log_every = 4
checkpoint_every = 4
keep_checkpoints = 2
"""


@pytest.fixture
def toml(tmp_path, shards):
    path = tmp_path / "small.toml"
    path.write_text(TOML.format(out=tmp_path / "run", shards=shards))
    return path


@pytest.fixture(autouse=True)
def compiles_quickly(monkeypatch):
    """Of a run, here are tested its bits and its files."""
    monkeypatch.setattr(run, "compiler_options", lambda platform: quickly.OPTIONS)


# --- augmentation


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


# --- batches


def identities(batch) -> list[int]:
    """Which of `COLORS` each row is."""
    return [COLORS.index(tuple(int(v) for v in image[0, 0])) for image in batch["images"]]


def color_pairs() -> ListPairs:
    return ListPairs([picture(color, (8, 8)) for color in COLORS])


def test_every_pair_comes_once_an_epoch_in_another_order():
    iterator, skipped = batches(color_pairs(), batch_size=10, image_size=8, text_length=8)
    epochs = [[i for _ in range(4) for i in identities(next(iterator))] for _ in range(3)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert skipped.count == 0


def test_processes_share_every_epoch():
    shares = []
    for process in range(2):
        iterator, _ = batches(
            color_pairs(),
            batch_size=10,
            image_size=8,
            text_length=8,
            process=process,
            num_processes=2,
        )
        shares.append([[i for _ in range(2) for i in identities(next(iterator))] for _ in range(2)])
    for epoch in range(2):
        assert sorted(shares[0][epoch] + shares[1][epoch]) == list(range(COUNT))


class NamedPairs(ListPairs):
    """Pairs of which several have one caption."""

    def __init__(self, names):
        super().__init__([picture()] * len(names))
        self.names = names

    def captions(self, index):
        return (self.names[index], "a keyword")


@hypothesis.given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=30), seed=st.integers(0, 99)
)
def test_what_is_of_one_group_is_spread(counts, seed):
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    order = spread(groups, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(groups)))
    for group, count in enumerate(counts):
        (places,) = np.nonzero(groups[order] == group)
        # Each in its part of the whole, but for what the parts of others take or leave.
        parts = np.arange(count) / count * len(groups)
        assert (places >= parts - len(counts)).all()
        assert (places <= parts + len(groups) / count + len(counts)).all()


def test_of_one_caption_few_meet_in_a_batch():
    names = [f"number {i % 40}" for i in range(400)]
    groups = groups_of(NamedPairs(names))
    assert groups[41] == groups[1] != groups[2]

    def repeats(order):
        return sum(20 - len(np.unique(groups[order[i : i + 20]])) for i in range(0, 400, 20))

    source = Spread(range(400), groups, seed=5)
    first, second = ([source[i + start] for i in range(400)] for start in (0, 400))
    assert sorted(first) == sorted(second) == list(range(400)) and first != second
    assert repeats(first) < repeats(np.random.default_rng(5).permutation(400)) / 4


def test_spread_batches_can_be_taken_up_again():
    pairs = NamedPairs([f"number {i % 40}" for i in range(400)])
    options = {"batch_size": 20, "image_size": 8, "text_length": 8, "spread": True}
    first, again, other = (batches(pairs, **options, seed=seed)[0] for seed in (3, 3, 4))
    seen = [next(first) for _ in range(5)]
    np.testing.assert_array_equal(next(again)["tokens"], seen[0]["tokens"])
    assert not np.array_equal(next(other)["tokens"], seen[0]["tokens"])
    place = first.get_state()
    following = next(first)
    first.set_state(place)
    jax.tree.map(np.testing.assert_array_equal, next(first), following)


def test_the_seed_decides_everything_and_the_place_can_be_taken_up_again():
    config = AugmentConfig(scale=(0.5, 1.5), background="random")
    options = {"batch_size": 7, "image_size": 8, "text_length": 8, "augmentation": config}
    first, again, other = (
        batches(color_pairs(), **options, seed=seed, num_threads=threads)[0]
        for seed, threads in ((3, 4), (3, 1), (4, 4))
    )
    seen = [next(first) for _ in range(9)]
    for batch in seen[:4]:
        given = next(again)
        assert all(np.array_equal(given[name], batch[name]) for name in batch)
    assert not np.array_equal(next(other)["images"], seen[0]["images"])
    place = again.get_state()
    later, _ = batches(color_pairs(), **options, seed=3)
    later.set_state(place)
    for batch in seen[4:]:
        given = next(later)
        assert all(np.array_equal(given[name], batch[name]) for name in batch)


def of_lengths(lengths, columns) -> dict[str, np.ndarray]:
    """Rows of ids that end where they should, and their numbers in place of images."""
    tokens = np.zeros((len(lengths), columns), np.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = 7
        row[1:-1:3] = 0  # a "!" is token 0
        row[length - 1] = 9
    return {"images": np.arange(len(lengths)), "tokens": tokens}


@pytest.mark.parametrize(
    ("longest", "columns", "kept"),
    [
        (3, 77, 16),
        (16, 77, 16),
        (17, 77, 24),
        (48, 77, 48),
        (49, 77, 77),
        (5, 12, 12),
        (20, 30, 24),
    ],
)
def test_columns_that_no_text_reaches_are_trimmed(longest, columns, kept):
    batch = of_lengths([2, longest, 3], columns)
    arranged = group_by_length(batch)
    (tokens,) = arranged["tokens"]
    assert np.array_equal(tokens, batch["tokens"][:, :kept])
    assert np.array_equal(arranged["images"], batch["images"])


@hypothesis.given(data=st.data())
def test_groups_hold_every_row_with_all_of_its_text(data):
    multiple = data.draw(st.integers(1, 3))
    count = multiple * data.draw(st.integers(1, 12))
    columns = data.draw(st.sampled_from([12, 20, 32, 77]))
    lengths = data.draw(st.lists(st.integers(2, columns), min_size=count, max_size=count))
    batch = of_lengths(lengths, columns)
    arranged = group_by_length(batch, multiple=multiple)
    filled = [np.pad(x, ((0, 0), (0, columns - x.shape[1]))) for x in arranged["tokens"]]
    assert sorted(arranged["images"]) == list(range(count))
    assert np.array_equal(np.concatenate(filled), batch["tokens"][arranged["images"]])
    widths = [x.shape[1] for x in arranged["tokens"]]
    assert widths == sorted(set(widths)) and len(widths) <= 4
    assert all(len(x) % multiple == 0 for x in arranged["tokens"])


def test_a_long_text_makes_a_quarter_of_the_batch_long():
    lengths = [5, 40, 6, 20, 5, 5, 70, 5, 9, 9, 5, 5]
    arranged = group_by_length(of_lengths(lengths, 77))
    assert [x.shape for x in arranged["tokens"]] == [(9, 16), (3, 77)]
    assert [lengths[i] for i in arranged["images"]] == sorted(lengths)
    # Halves where quarters are no whole rows of each device, and nothing where halves aren't.
    halves = group_by_length(of_lengths(lengths, 77), multiple=2)
    assert [x.shape for x in halves["tokens"]] == [(6, 16), (6, 77)]
    whole = group_by_length(of_lengths(lengths, 77), multiple=4)
    assert [x.shape for x in whole["tokens"]] == [(12, 77)]


@pytest.mark.long
def test_how_long_texts_may_be_is_no_difference_where_none_is_longer(tmp_path, shards):
    """To the bit, because both run the program for the batch's own length."""
    trained = []
    for columns in (77, 16):
        path = tmp_path / f"{columns}.toml"
        path.write_text(TOML.format(out=tmp_path / f"run-{columns}", shards=shards))
        overrides = [f"data.text_length={columns}", "optimizer.total_steps=4"]
        trained.append(train(read_config(path, overrides), progress=False))
    first, second = (jax.tree.leaves(read_native(path)[1]) for path in trained)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_captions_and_templates_are_drawn_anew():
    iterator, _ = batches(
        color_pairs(),
        batch_size=COUNT,
        image_size=8,
        text_length=10,
        templates=("{}", "a {} b", "no braces: {} {}"),
    )
    tokens = np.concatenate([next(iterator)["tokens"] for _ in range(6)])
    expected = {
        tuple(clip_jax.tokenize(t.replace("{}", c), 10, truncate=True)[0])
        for t in ("{}", "a {} b", "no braces: {} {}")
        for i in range(COUNT)
        for c in (f"number {i}", f"no {i}")
    }
    found = {tuple(row) for row in tokens}
    assert found <= expected
    assert len(found) > 100


def test_pictures_that_can_not_be_read_are_skipped_and_counted():
    images = [picture(color, (8, 8)) for color in COLORS]
    images[3], images[17] = b"no picture", picture()[:30]
    iterator, skipped = batches(ListPairs(images), batch_size=19, image_size=8, text_length=8)
    epoch = identities(next(iterator)) + identities(next(iterator))
    assert sorted(epoch) == [i for i in range(COUNT) if i not in (3, 17)]
    assert skipped.count >= 2
    assert skipped.last.split(":")[0] in ("03", "17")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 41}, "a batch of 41 rows needs as many pairs. Got 40"),
        ({"batch_size": 4, "templates": ("a photo",)}, "must have {}"),
        ({"batch_size": 4, "templates": ()}, "must have {}"),
    ],
)
def test_batches_that_can_not_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        batches(color_pairs(), image_size=8, text_length=8, **options)


# --- the configuration


def test_a_toml_file_is_read_and_overridden(toml):
    config = read_config(
        toml,
        [
            "optimizer.learning_rate=2e-4",
            "run.seed=7",
            "out=elsewhere",
            'optimizer.learning_rates={"^visual/" = 0.1}',
            "step.dtype=bfloat16",
        ],
    )
    assert config.model == SMALL_VIT
    assert config.optimizer.learning_rate == 2e-4
    assert config.optimizer.learning_rates == {"^visual/": 0.1}
    assert (config.run.seed, config.out, config.step.dtype) == (7, "elsewhere", "bfloat16")
    assert config.augment.scale == (0.8, 1.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run.batchsize=3", r"\[run\] RunConfig does not fit: \+ batchsize: unknown"),
        ("run.batch_size=0", r"\[run\] batch_size must be at least 1"),
        ("run.whole_steps=-1", r"\[run\] whole_steps must be 0 or more"),
        ("optimizer.b1=2", r"\[optimizer\] b1 must be"),
        ("more.x=1", r"\+ more: unknown"),
        ("model.from=ViT-B/32", "nothing else"),
        ("model.embed_dim=0", "embed_dim must be positive"),
        ("run", "expected key=value"),
        ("out.x=1", "out is no table"),
        ("run.seed=-1", r"\[run\] seed must be from 0 to .* Got -1"),
        (f"run.seed={1 << 63}", r"\[run\] seed must be from 0 to "),
        ("run.seed=1\nrun.x=2", "run.seed: the value must be in one line"),
        ("model={vision={type='vit'}, text=1}", r"\[model\] "),
        ("model={embed_dim=2024-01-01, vision={type='vit'}, text={}}", r"\[model\] "),
    ],
)
def test_configurations_that_do_not_fit_are_refused(toml, change, message):
    with pytest.raises(ValueError, match=message):
        read_config(toml, [change])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model=5", "model must be a string or a table. Got 5."),
        ("out=5", "out must be a string. Got 5."),
        ("data.train=5", "[data] train must be a string. Got 5."),
        ("data.templates=5", "[data] templates must be a list (a string, ...). Got 5."),
        ("data.templates=[5]", "[data] templates must be a list (a string, ...). Got [5]."),
        ('data.spread="no"', "[data] spread must be true or false. Got 'no'."),
        ("data.max_skipped=x", "[data] max_skipped must be a number. Got 'x'."),
        ("data.max_skipped=true", "[data] max_skipped must be a number. Got True."),
        ("augment.flip=1", "[augment] flip must be true or false. Got 1."),
        ("augment.scale=[1]", "[augment] scale must be a list (a number, a number). Got [1]."),
        ("run.batch_size=true", "[run] batch_size must be a whole number. Got True."),
        ("run.batch_size=abc", "[run] batch_size must be a whole number. Got 'abc'."),
        ("run.seed=1.5", "[run] seed must be a whole number. Got 1.5."),
        ("step.loss=x", "[step] loss must be 'softmax' or 'sigmoid'. Got 'x'."),
        (
            "optimizer.learning_rates={a = 'b'}",
            "[optimizer] learning_rates must be a table (a string = a number). Got {'a': 'b'}.",
        ),
        (
            "optimizer.freeze_text=true",
            "[optimizer] freeze_text must be a string or a whole number. Got True.",
        ),
        # TOML has no None to give instead.
        ("optimizer.max_gradient_norm=x", "[optimizer] max_gradient_norm must be a number. Got"),
    ],
)
def test_values_of_another_type_are_refused_by_table_and_field(toml, change, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        read_config(toml, [change])


def test_a_model_named_by_something_else_than_a_string_is_refused(toml):
    with pytest.raises(ValueError, match=r"^\[model\] from must be a string. Got 5.$"):
        read_config(toml, ["model={from = 5}"])


def test_values_of_a_fitting_type_are_taken(toml):
    changes = ["data.max_skipped=1", "augment.scale=[1, 1.5]", "optimizer.freeze_image=2"]
    config = read_config(toml, [*changes, "optimizer.learning_rates={x = 0}", "data.spread=true"])
    assert (config.data.max_skipped, config.data.spread) == (1, True)
    assert (config.augment.scale, config.data.templates[0]) == ((1, 1.5), "{}")
    assert (config.optimizer.freeze_image, config.optimizer.learning_rates) == (2, {"x": 0})


@pytest.mark.parametrize("content", [b"= 3", b'out = "caf\xe9"'], ids=["syntax", "latin-1"])
def test_a_file_that_is_no_toml_is_refused(tmp_path, content):
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(ValueError, match="x.toml is not TOML"):
        read_config(tmp_path / "x.toml")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"], ids=["cut", "list", "bytes"])
def test_a_run_whose_identity_can_not_be_read_is_refused_by_the_name_of_its_file(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is damaged.* give another"):
        Checkpoints(tmp_path, Identity(), keep=1)


@pytest.mark.parametrize("setting", ["run.batch_size", "=3", "run.seed=1\nrun.x=2"])
def test_settings_that_are_none_are_bad_arguments(toml, capsys, setting):
    with pytest.raises(SystemExit) as stop:
        main(["train", str(toml), "--set", setting])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "--set: expected KEY=VALUE" in line and "--help" in line


def test_training_together_where_there_is_nobody_else_says_so(toml, capsys, monkeypatch):
    def alone(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", alone)
    assert main(["train", str(toml), "--distributed"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--distributed finds no pod or cluster here" in line


# --- runs


def read_metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_gives_a_model_metrics_and_a_plot(toml, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "compiler_options", compiler_options)  # as its user has it
    assert main(["train", str(toml)]) == 0
    folder = tmp_path / "run"
    assert capsys.readouterr().out.strip() == str(folder / "model")
    model, preprocess = clip_jax.load(folder / "model")
    assert model.config == SMALL_VIT
    assert preprocess.image_size == 32
    records = read_metrics(folder)
    assert [record["step"] for record in records] == list(range(4, 25, 4))
    assert records[0].keys() == {
        "step",
        "loss",
        "accuracy",
        "gradient_norm",
        "learning_rate",
        "logit_scale",
        "pairs_per_second",
        "skipped",
    }
    assert records[-1]["loss"] < records[0]["loss"]
    with Image.open(folder / "training.png") as image:
        assert image.size[0] > 500
    kept = sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == [20, 24]
    before = (folder / "model" / "model.safetensors").read_bytes()
    train(read_config(toml), progress=False)  # there is nothing left to do
    assert (folder / "model" / "model.safetensors").read_bytes() == before


def start(toml, log):
    return subprocess.Popen(
        [sys.executable, "-m", "clip_jax", "train", str(toml)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"} | quickly.ENVIRONMENT,
        cwd=toml.parent,
        stdout=log,
        stderr=log,
    )


@pytest.mark.long
def test_killed_runs_end_with_the_same_bits(toml, tmp_path, shards):
    other = tmp_path / "undisturbed.toml"
    other.write_text(TOML.format(out=tmp_path / "undisturbed", shards=shards))
    rng, kills = random.Random(0), 0
    with (tmp_path / "log").open("w") as log:
        assert start(other, log).wait(timeout=240) == 0, (tmp_path / "log").read_text()[-3000:]
        metrics = tmp_path / "run" / "metrics.jsonl"
        for lines in (1, 3):  # killed some time after that many lines
            process = start(toml, log)
            deadline = time.monotonic() + 200
            while not metrics.exists() or len(metrics.read_text().splitlines()) < lines:
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.08))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.wait()
        assert start(toml, log).wait(timeout=240) == 0, (tmp_path / "log").read_text()[-3000:]
    assert kills == 2
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("run", "undisturbed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    records = [read_metrics(tmp_path / name) for name in ("run", "undisturbed")]
    assert [r["step"] for r in records[0]] == [r["step"] for r in records[1]]
    assert [r["loss"] for r in records[0]] == [r["loss"] for r in records[1]]


def test_a_run_stopped_by_the_keyboard_reads_no_more(toml, monkeypatch):
    """A thread that reads on while Python ends makes it crash, now and then."""

    def readers() -> list[str]:
        names = (thread.name for thread in threading.enumerate())
        return [name for name in names if name.startswith("grain")]

    def stop(self, record):
        assert readers()
        raise KeyboardInterrupt

    monkeypatch.setattr(Metrics, "add", stop)
    # Kept, because the frames in its traceback keep what would else be closed by itself.
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(read_config(toml, ["data.num_threads=1"]), progress=False)
    assert not readers()
    del stopped


@pytest.mark.long
def test_two_processes_train_and_go_on_after_a_kill_with_the_same_bits(tmp_path, shards):
    models = []
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        run = folder / "run"
        (folder / "run.toml").write_text(TOML.format(out=run, shards=shards))
        if name == "killed":

            def is_half_way(run=run):
                return (run / "checkpoints" / "12").exists()

            processes.kill_two(folder, "run", is_half_way)
            assert not (run / "model").exists()
        assert [str(r["folder"]) for r in processes.run_two(folder, "run")] == [f"{run}/model"] * 2
        models.append((run / "model" / "model.safetensors").read_bytes())
        assert [record["step"] for record in read_metrics(run)] == [4, 8, 12, 16, 20, 24]
    assert models[0] == models[1]


@pytest.mark.long
def test_a_folder_of_another_run_is_refused(toml, tmp_path):
    options = ["optimizer.total_steps=4"]
    train(read_config(toml, options), progress=False)
    with pytest.raises(ValueError, match="another run(.|\n)*optimizer.learning_rate: there 0.001"):
        train(read_config(toml, [*options, "optimizer.learning_rate=5e-3"]), progress=False)
    with pytest.raises(ValueError, match="model.embed_dim: there 16, here 8"):
        train(read_config(toml, [*options, "model.embed_dim=8"]), progress=False)
    train(read_config(toml, [*options, "run.log_every=2"]), progress=False)  # changes no number


def test_training_starts_from_a_checkpoint(toml, tmp_path):
    clip_jax.save(small(SMALL_VIT), tmp_path / "start")
    text = toml.read_text()
    begin, end = text.index("[model]"), text.index("[data]")
    toml.write_text(f'{text[:begin]}[model]\nfrom = "{tmp_path / "start"}"\n{text[end:]}')
    options = ["optimizer.total_steps=4", "optimizer.freeze_text=all"]
    model, _ = clip_jax.load(train(read_config(toml, options), progress=False))
    before = small(SMALL_VIT)
    assert np.array_equal(model.ln_final.bias[...], before.ln_final.bias[...])
    assert not np.array_equal(model.visual.proj[...], before.visual.proj[...])


@pytest.mark.long
def test_the_last_steps_see_whole_pictures(toml, tmp_path):
    seen = {}
    for name, dropped, whole in (("none", 0, 0), ("all", 0.5, 0), ("some", 0.5, 2)):
        options = [f"out={tmp_path / name}", "optimizer.total_steps=4", "run.log_every=1"]
        options += [f"step.patch_dropout={dropped}", f"run.whole_steps={whole}"]
        train(read_config(toml, options), progress=False)
        seen[name] = [record["loss"] for record in read_metrics(tmp_path / name)]
    assert seen["some"][:2] == seen["all"][:2] and seen["some"][2:] != seen["all"][2:]
    train(
        read_config(toml, [*options, "run.whole_steps=4", f"out={tmp_path / 'late'}"]),
        progress=False,
    )
    assert [record["loss"] for record in read_metrics(tmp_path / "late")] == seen["none"]


@pytest.mark.long
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_last_good_checkpoint(toml, tmp_path):
    train(read_config(toml, ["optimizer.total_steps=24"]), progress=False)
    # As if it had been killed at step 20, and the rest goes wrong.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "24")
    make_step = run.make_step

    def broken(*args, **options):
        step = make_step(*args, **options)

        def step_(state, batch, key):
            state, metrics = step(state, batch, key)
            return state, metrics | {"loss": metrics["loss"] * np.nan}

        return step_

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_step", broken)
        with pytest.raises(ValueError, match="nan at step 21.*checkpoint is of step 20"):
            train(read_config(toml), progress=False)
    assert not (tmp_path / "run" / "checkpoints" / "24").exists()


def test_too_many_pictures_that_can_not_be_read_stop_the_run(tmp_path, toml):
    members = {}
    for i in range(40):
        members[f"{i:02d}.png"] = picture() if i % 2 else b"no picture"
        members[f"{i:02d}.txt"] = b"x"
    bad = write_tar(tmp_path / "bad.tar", members)
    options = [f"data.train={bad}", "run.batch_size=8"]
    with pytest.raises(ValueError, match="pictures can't be read, more than the share of 0.01"):
        train(read_config(toml, options), progress=False)
    options += ["data.max_skipped=0.9", "optimizer.total_steps=4", f"out={tmp_path / 'second'}"]
    train(read_config(toml, options), progress=False)
    (record,) = read_metrics(tmp_path / "second")
    assert record["skipped"] > 4


def test_a_run_of_which_no_picture_can_be_read_stops_too():
    images = [b"no picture"] * COUNT
    iterator, _ = batches(
        ListPairs(images), batch_size=8, image_size=8, text_length=8, max_skipped=0.1
    )
    with pytest.raises(ValueError, match="pictures can't be read, more than the share of 0.1"):
        next(iterator)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_a_disk_that_takes_no_more_is_said_with_the_last_good_checkpoint(toml, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    with (tmp_path / "log").open("w") as log:
        process = start(toml, log)
        deadline = time.monotonic() + 200
        while not (checkpoints / "4").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        # From here on the system refuses to write large files, as it does on a full disk.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        assert process.wait(timeout=200) == 1
    log = (tmp_path / "log").read_text()
    # Anywhere in a line, because TensorStore's threads print word by word into the same file.
    found = re.findall(r"clip-jax: (.*)", log)
    assert len(found) == 1, log[-3000:]
    (said,) = found
    last = int(re.search(r"can't be written to .*, the last good one is of step (\d+): ", said)[1])
    assert "Make room, and run the same command again." in said
    assert "ERROR:absl" not in log
    assert last == max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    with (tmp_path / "log").open("w") as log:
        assert start(toml, log).wait(timeout=240) == 0, (tmp_path / "log").read_text()[-3000:]
    assert [record["step"] for record in read_metrics(tmp_path / "run")][-1] == 24


def test_batches_and_devices_must_fit(toml):
    with pytest.raises(ValueError, match="multiple of the 8 devices. Got 12"):
        train(read_config(toml, ["run.batch_size=12"]), progress=False)
    with pytest.raises(ValueError, match="at most the context, 77. Got 78"):
        train(read_config(toml, ["data.text_length=78"]), progress=False)


def test_sources_are_found_by_their_path(shards):
    assert len(open_pairs(shards)) == COUNT
    with Image.open(io.BytesIO(open_pairs(shards)[5].image)) as image:
        assert image.getpixel((0, 0)) == COLORS[5]
    assert jax.device_count() == 8
