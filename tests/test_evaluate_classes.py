"""Classes that can't be evaluated are refused; progress counts what is computed."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from clip_jax import evaluate
from clip_jax.evaluate import captions, inputs
from clip_jax.evaluate import data as data_module
from clip_jax.evaluate.classes import check_classes
from clip_jax.evaluate.data import encode_in_batches
from clip_jax.evaluate.recall import ranks_of_positives
from clip_jax.evaluate.retrieval_mistakes import worst_mistakes
from tests.calls import runner
from tests.models import SMALL_VIT, small


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def load(*_, **__):
        raise AssertionError("a model is loaded in vain")

    monkeypatch.setattr(inputs, "load", load)
    return runner(capsys, "eval")


def write_folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(root / name / "0.png")


@pytest.mark.parametrize("kind", ["zeroshot", "probe"])
def test_a_folder_of_one_class_is_refused_before_a_model_is_loaded(run, tmp_path, kind):
    write_folders(tmp_path / "pets", "cat")
    status, out, err = run(kind, "pets", "-C", 1) if kind == "probe" else run(kind, "pets")
    assert (status, out, len(err)) == (1, "", 1)
    assert "any model is right where there is only one class" in err[0]
    assert "Expected at least two classes. Got one class: 'cat'" in err[0]


def test_so_is_a_table_whose_labels_are_all_the_same(tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "0.png")
    (tmp_path / "in.csv").write_text("image,label\n0.png,cat\n")
    with pytest.raises(ValueError, match="Got one class: 'cat'"):
        evaluate.zeroshot(tmp_path / "in.csv", small(SMALL_VIT), progress=False)
    # Not where it competes with others.
    options = {"class_names": ["cat", "dog"], "progress": False}
    result = evaluate.zeroshot(tmp_path / "in.csv", small(SMALL_VIT), **options)
    assert result.scores.count == 1


@pytest.mark.parametrize(
    "names", [("0", "1", "10"), ("1.0", "2.0"), ("-1", "1"), ("n01440764", "n01443537")]
)
def test_numbers_are_no_names(run, tmp_path, names):
    write_folders(tmp_path / "in", *names)
    status, out, err = run("zeroshot", "in")
    assert (status, out, len(err)) == (1, "", 1)
    assert f"would be scored as 'a photo of a {names[0]}.'" in err[0] and "--classes" in err[0]


def test_numbers_are_names_where_they_are_given_as_names():
    check_classes("in", ["0", "1"], ["0", "1"])
    check_classes("in", ["0", "1"], ["cat", "dog"])
    check_classes("in", ["0", "1"], None, are_prompts=False)  # a probe needs no names
    check_classes("in", ["7", "cat"], None)
    check_classes("in", ["7-eleven", "3 wheels"], None)


def test_a_class_without_others_is_told_apart_from_classes_that_are_not_known_yet():
    check_classes("in", [], None)
    with pytest.raises(ValueError, match="at least two classes"):
        check_classes("in", ["cat"], ["cat"])


def test_progress_counts_rows_when_they_are_encoded():
    events = []

    def rows():
        for i in range(5):
            events.append(f"read {i}")
            yield np.array([i])

    def encode(stack):
        events.append(f"encode {len(stack)}")
        return stack

    encode_in_batches(rows(), encode, 2, lambda done: events.append(f"done {done}"))
    assert events == [
        *("read 0", "read 1", "encode 2", "done 2"),
        *("read 2", "read 3", "encode 2", "done 4"),
        *("read 4", "encode 1", "done 5"),
    ]


class Bar:
    """Keeps what a display of progress is told."""

    shown: list[tuple[int, int | None]]

    def __init__(self, show):
        self.shown = []
        Bar.all.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, rows, *, errors=0, total=None, waiting=0.0):
        self.shown.append((rows, total))


def test_bars_of_retrieval_count_encoded_pictures_and_encoded_captions(tmp_path, monkeypatch):
    Bar.all = []
    for module in (captions, data_module):
        monkeypatch.setattr(module, "Progress", Bar)
    monkeypatch.setattr(captions, "TEXT_BATCHES", 1)
    lines = ["image,caption"]
    for i in range(5):
        Image.new("RGB", (40, 40), (i * 50, 0, 0)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,number {i}")
    (tmp_path / "in.csv").write_text("\n".join(lines))
    result = evaluate.retrieval(tmp_path / "in.csv", small(SMALL_VIT), batch_size=2)
    pictures, texts = Bar.all
    assert pictures.shown == [(2, 5), (4, 5), (5, 5), (5, 5)] == [*texts.shown, (5, 5)]
    assert result.keys == [f"{i}.png" for i in range(5)]
    assert result.paths == [None] * 5
    assert result.read(3) == (tmp_path / "3.png").read_bytes()
    assert result.captions == [f"number {i}" for i in range(5)]


def test_the_worst_mistakes_are_those_of_the_whole_matrix(monkeypatch):
    monkeypatch.setattr("clip_jax.evaluate.retrieval_mistakes.BLOCK", 7)
    rng = np.random.default_rng(0)
    image_of = np.concatenate([np.arange(11), rng.integers(0, 11, 20)])
    image, text = rng.normal(size=(11, 4)), rng.normal(size=(31, 4))
    ranks = ranks_of_positives(image, text, image_of, [1])
    cosines = (image / np.linalg.norm(image, axis=1, keepdims=True)) @ (
        text / np.linalg.norm(text, axis=1, keepdims=True)
    ).T
    found = worst_mistakes(ranks["image_to_text"], image, text, np.arange(11), image_of)
    assert [each.rank for each in found] == sorted(
        (rank for rank in ranks["image_to_text"] if rank > 1), reverse=True
    )
    for each in found:
        row, mine = cosines[each.query], image_of == each.query
        order = [n for n in np.argsort(-row) if not mine[n]][:3]
        assert [n for n, _ in each.found] == order
        assert each.score == pytest.approx(row[mine].max()) and mine[each.positive]
        assert each.rank == 1 + (row[~mine] >= each.score).sum()
    assert dataclasses.is_dataclass(found[0])
