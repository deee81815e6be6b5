"""Batches for training: order, shares of processes, lengths of texts, captions."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

import clip_jax
from clip_jax.train import group_by_length, read_config, train
from clip_jax.train.augment import AugmentConfig
from clip_jax.train.data import batches
from clip_jax.train.order import Spread, groups_of, spread
from clip_jax.weights import read_native
from tests.pictures import picture
from tests.training_runs import COLORS, COUNT, TOML, ListPairs

pytest.importorskip("grain")
pytest.importorskip("orbax.checkpoint")

pytestmark = pytest.mark.usefixtures("compiles_quickly")


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
