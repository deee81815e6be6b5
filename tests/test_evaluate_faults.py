"""What evaluations survive: many classes, bad rows and files, parts that are missing or damaged."""

import csv
import errno
import json
import os
import resource
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import clip_jax
from clip_jax.cli import main
from clip_jax.embed import Columns, embed, read_results
from clip_jax.evaluate import captions as captions_module
from clip_jax.evaluate import data as data_module
from clip_jax.evaluate import report, scores, sweep
from clip_jax.evaluate.classes import hold_out, name_classes
from clip_jax.evaluate.confusion import DRAWN, confusion_shares
from clip_jax.evaluate.scores import blocks, score, score_blocks
from tests.archives import write_tar
from tests.calls import Run, runner
from tests.evaluation import write_pictures
from tests.models import SMALL_VIT, small
from tests.pictures import COLOURS

pa = pytest.importorskip("pyarrow")


# ---- many classes -------------------------------------------------------------------------------


def test_sparse_counts_are_those_of_the_matrix():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(200, 7)), rng.integers(0, 6, 200)
    given, expected = score(logits, targets), np.zeros((7, 7), int)
    for target, row in zip(targets, logits, strict=True):
        expected[target, row.argmax()] += 1
    assert np.array_equal(given.confusion.toarray(), expected)
    assert np.array_equal(given.predicted, logits.argmax(axis=1))
    weights = np.exp(logits)
    assert np.allclose(given.confidence, (weights / weights.sum(1, keepdims=True)).max(axis=1))
    parts = score_blocks((logits[rows] for rows in (slice(90), slice(90, 200))), targets)
    assert (parts.top1, parts.top5, parts.interval) == (given.top1, given.top5, given.interval)
    assert (parts.confusion != given.confusion).nnz == 0
    table = report._per_class(given, "abcdefg")
    for i, (name, rows, right, share, other) in enumerate(table):
        wrong = np.where(np.arange(7) == i, 0, expected[i])
        assert (name, rows, right) == ("abcdefg"[i], expected[i].sum(), expected[i, i])
        assert other == (wrong.argmax() if wrong.any() else None)
        assert share == (f"{right / rows:.4f}" if rows else "")


def test_twenty_thousand_classes_take_no_matrix():
    classes, rows = 20_000, 27
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(rows, classes)), rng.integers(0, classes, rows)
    names = [f"thing {i}" for i in range(classes)]
    tracemalloc.start()
    found = score(logits, targets)
    table, picture = report._per_class(found, names), confusion_shares(found.confusion)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < classes**2 / 5  # a byte for each pair would be five times as much
    assert len(table) == classes and sum(row[1] for row in table) == rows
    assert picture.shape == (DRAWN, DRAWN)
    assert np.allclose(picture.sum(), np.count_nonzero(picture.any(axis=1)))


def test_logits_are_taken_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr(scores, "LOGITS", 1_000)
    assert list(blocks(25, 100)) == [slice(0, 10), slice(10, 20), slice(20, 30)]
    assert list(blocks(2, 5_000)) == [slice(0, 1), slice(1, 2)]


def test_a_hundred_thousand_classes_are_named_and_held_out_at_once():
    lines = [f"thing {i}" for i in range(100_000)]
    assert name_classes(lines[:2], lines)[1].tolist() == [0, 1]
    rest, held = hold_out(lines * 5, "testing")
    assert held.tolist() == list(range(400_000, 500_000)) and len(rest) == 400_000


def test_rows_held_out_are_every_fifth_of_each_class_in_any_order():
    labels = np.random.default_rng(0).permutation(np.repeat(["a", "bb", "ccc"], [17, 5, 9]))
    expected = [rows[i] for name in set(labels) for rows in [np.flatnonzero(labels == name)]
                for i in range(4, len(rows), 5)]  # fmt: skip
    rest, held = hold_out(labels, "testing")
    assert held.tolist() == sorted(expected)
    assert sorted([*rest, *held]) == list(range(31))


def test_the_sweeps_mean_per_class_is_that_of_classes():
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", "c"])[rng.permutation(np.repeat(range(3), [40, 20, 10]))]
    features = rng.normal(size=(70, 3))
    found = sweep(features, labels, features, labels)
    right = found.best.predict(features) == labels
    (trial,) = [trial for trial in found.trials if found.best.C == trial.C]
    expected = np.mean([right[labels == name].mean() for name in "abc"])
    assert trial.mean_per_class == pytest.approx(expected) != trial.accuracy


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_no_hits(bad):
    logits = np.zeros((5, 3))
    logits[3, 1] = bad
    with pytest.raises(ValueError, match="row 3 has scores that are not finite"):
        score_blocks([logits[:2], logits[2:]], np.zeros(5, int))


# ---- the command line ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A model, three pictures of each of three colours in class folders and in shards."""
    root = tmp_path_factory.mktemp("faults")
    clip_jax.save(small(SMALL_VIT), root / "model")
    write_pictures(root / "pictures", 3)
    for number, name in enumerate(COLOURS):
        members = {}
        for i in range(3):
            members[f"{name}{i}.png"] = (root / "pictures" / name / f"{i}.png").read_bytes()
            members[f"{name}{i}.json"] = json.dumps({"label": name, "caption": name}).encode()
        write_tar(root / f"{number}.tar", members)
    job(root, "out")
    return root


def job(root: Path, out: str) -> None:
    options = {"what": "both", "columns": Columns(others=("label",)), "progress": False}
    embed(root / "?.tar", root / "model", root / out, batch_size=8, rows_per_part=2, **options)


@pytest.fixture
def run(data, monkeypatch, capsys) -> Run:
    """Runs `clip-jax eval`, with the model where the data are pictures."""
    monkeypatch.chdir(data)
    evaluate = runner(capsys, "eval")

    def run(*argv: object) -> tuple[int, str, list[str]]:
        needs_model = "out" not in str(argv[1])
        return evaluate(*argv, *(("--model", "model", "--batch-size", 8) if needs_model else ()))

    return run


@pytest.mark.filterwarnings("ignore:out is fitted and tested")
def test_figures_are_printed_before_the_report_is_written(run, tmp_path, monkeypatch):
    for error in (MemoryError(), OSError(errno.ENOSPC, "No space left on device", "report")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(report, "write_report", fail)
        for command in (("zeroshot", "out"), ("probe", "out", "--test", "out", "-C", 1)):
            status, out, err = run(*command, "--report", tmp_path / "r", "--json")
            assert (status, json.loads(out)["count"], len(err)) == (1, 9, 1)
            assert "memory has run out" in err[0] or "No space left" in err[0]


def test_a_report_that_fails_leaves_the_one_before(run, data, tmp_path, monkeypatch):
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    assert run("zeroshot", "out", "--report", tmp_path)[0] == 0
    before = files()
    assert set(before) == {"report.html", "report.json", "per_class.csv", "confusion.png"}
    (data / "more.txt").write_text("\n".join([*COLOURS, "another"]))

    def page(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    command = ("zeroshot", "out", "--classes", "more.txt", "--report", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(report, "classification_page", page)
        assert run(*command)[0] == 1
    assert files() == before
    assert run(*command)[0] == 0
    assert files().keys() == before.keys() and files()["per_class.csv"] != before["per_class.csv"]


def test_cells_that_a_spreadsheet_would_run_are_text(run, data, tmp_path):
    names = ("=cmd|' /C calc'!A0", "-1+1", "@SUM(1)")
    lines = [f"{colour}\t{name}\n" for colour, name in zip(sorted(COLOURS), names, strict=True)]
    (data / "odd.txt").write_text("".join(lines))
    assert run("zeroshot", "out", "--classes", "odd.txt", "--report", tmp_path)[0] == 0
    rows = list(csv.reader((tmp_path / "per_class.csv").read_text().splitlines()))
    assert [row[0] for row in rows[1:]] == [f"'{name}" for name in names]
    assert all(row[4] in ("", *(f"'{name}" for name in names)) for row in rows[1:])


def test_the_key_can_be_the_label(run):
    status, out, err = run("zeroshot", "out", "--label-column", "key", "--json")
    assert (status, err, json.loads(out)["classes"]) == (0, [], 9)
    status, out, err = run("zeroshot", "out", "--label-column", "embedding")
    assert (status, out, len(err)) == (1, "", 1)
    assert "the labels of out are numbers, not names" in err[0]


def test_a_row_without_a_label_is_left_out_and_told(run, data, tmp_path):
    rows = [{"image": f"pictures/{name}/0.png", "label": name} for name in COLOURS]
    rows += [{"image": "pictures/red/1.png", "label": value} for value in (None, "", {})]
    (data / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, err = run("zeroshot", "some.jsonl", "--json")
    document = json.loads(out)
    assert (status, document["count"], document["unreadable"]) == (1, 3, 3)
    assert [line.split(": ", 2)[2] for line in err] == [
        "no 'label'",
        "no 'label'",
        "a label must be text or a number. Got a dict",
    ]
    members = {"a.png": (data / "pictures/red/0.png").read_bytes(), "a.json": b"{damaged"}
    members |= {"b.png": members["a.png"], "b.json": b'{"label": "red", "caption": "c"}'}
    write_tar(data / "half.tar", members)
    embed(data / "half.tar", data / "model", data / "half-out", batch_size=8,
          columns=Columns(others=("label",)), progress=False)  # fmt: skip
    (data / "two.txt").write_text("red\nblue\n")
    for source in ("half.tar", "half-out"):
        options = ("--classes", "two.txt", "--label-column", "label", "--json")
        status, out, err = run("zeroshot", source, *options)
        assert (status, json.loads(out)["count"], err) == (1, 1, ["clip-jax: a: no 'label'"])


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("maximum recursion depth exceeded"),
        OverflowError("too large to convert"),
        pa.ArrowNotImplementedError("no such encoding"),
        pa.ArrowIndexError("index out of bounds"),
        UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"),
        OSError(errno.EIO, "Input/output error"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_file_that_can_not_be_read_is_one_among_others(run, monkeypatch, error):
    opened = data_module._all

    class Broken:
        name = "broken.tar"

        def open(self):
            raise error

    def records(found):
        yield from opened(Broken())
        yield from whole(found)

    whole = data_module._all_of
    monkeypatch.setattr(data_module, "_all_of", records)
    status, out, err = run("zeroshot", "?.tar", "--label-column", "label", "--json")
    assert (status, json.loads(out)["count"], json.loads(out)["unreadable"]) == (1, 9, 1)
    assert len(err) == 1 and err[0].startswith("clip-jax: broken.tar: ")


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_what_the_machine_lacks_ends_it_in_a_line_and_marks_nothing(run, monkeypatch, error):
    def lacking(*_, **__):
        raise error

    class Broken:
        name = "fine.tar"
        open = staticmethod(lacking)

    with monkeypatch.context() as patch:
        all_of = data_module._all
        patch.setattr(data_module, "_all_of", lambda _: all_of(Broken()))
        results = [run("zeroshot", "?.tar", "--label-column", "label")]
    with monkeypatch.context() as patch:
        patch.setattr(captions_module, "decode_image", lacking)
        results.append(run("retrieval", "?.tar"))
    for status, out, err in results:
        assert (status, out, len(err)) == (1, "", 1)
        assert "too many open files" in err[0].lower() or "memory" in err[0]


def test_no_picture_is_bad_because_descriptors_have_run_out(data, monkeypatch, capsys):
    from clip_jax.cli import classify

    def batches(paths, preprocess):
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
        try:
            yield from read(paths, preprocess)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    read = classify._batches
    clip_jax.open_image(data / "pictures/red/0.png")  # Pillow loads its formats on first use
    monkeypatch.setattr(classify, "_batches", batches)
    pictures = [str(path) for path in sorted((data / "pictures/red").iterdir())]
    options = ["--labels", "a", "b", "--model", str(data / "model")]
    assert main(["classify", *pictures, *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"clip-jax: {pictures[0]}: Too many open files"


def test_what_errors_advise_about_data_works(run, data):
    rows = [{"image": f"pictures/{name}/0.png", "kind": f"{name}é"} for name in COLOURS]
    (data / "kinds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command: tuple[object, ...] = ("zeroshot", "kinds.jsonl")

    def refused(*argv: object) -> str:
        status, out, err = run(*argv)
        assert (status, out) == (1, "")
        return err[0]

    assert "no column 'label'; its columns are 'image', 'kind'" in refused(*command)
    command += ("--label-column", "kind")
    assert run(*command)[0] == 0
    command += ("--classes", "kinds.txt")
    (data / "kinds.txt").write_bytes("\n".join(f"{name}é" for name in COLOURS).encode("latin-1"))
    assert refused(*command).endswith("kinds.txt is not UTF-8: save it as that")
    (data / "kinds.txt").write_text("redé\n")
    assert "Expected a line for each: the label, or the label, a tab" in refused(*command)
    (data / "kinds.txt").write_text("".join(f"{name}é\t{name}\n" for name in COLOURS))
    assert run(*command)[0] == 0
    command = ("probe", "out")
    assert "held out for testing; give --test instead" in refused(*command)
    command += ("--test", "pictures", "--model", "model")
    assert "held out for choosing C; give -C instead" in refused(*command)
    assert run(*command, "-C", 1)[0] == 0


# ---- embeddings on disk -------------------------------------------------------------------------


@pytest.fixture
def out(data, tmp_path) -> Path:
    shutil.copytree(data / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("what", ["zeroshot", "retrieval", "probe"])
def test_a_file_of_the_input_without_any_part_is_not_shown_as_fine(run, out, what):
    for path in out.glob("part-000001-*"):
        path.unlink()
    fitted = ("out", "-C", 1, "--test") if what == "probe" else ()
    status, printed, err = run(what, *fitted, out, "--json")
    document = json.loads(printed)
    assert document["images" if what == "retrieval" else "count"] == 6
    assert (status, document["unreadable"], document["files_without_parts"]) == (1, 0, 1)
    assert len(err) == 1 and "no part of some files of its input (part-000001-*" in err[0]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("how", ["missing", "cut", "flipped", "empty", "a file gone"])
def test_the_same_command_again_makes_whole_what_is_missing_or_damaged(data, run, how):
    out = data / f"out-{how}"
    shutil.copytree(data / "out", out)
    part = out / "part-000001-000000.parquet"
    match how:
        case "missing":
            part.unlink()
        case "a file gone":
            for path in out.glob("part-000001-*"):
                path.unlink()
        case "cut" | "empty":
            os.truncate(part, part.stat().st_size // 2 if how == "cut" else 0)
        case "flipped":
            content = bytearray(part.read_bytes())
            content[200] ^= 1
            part.write_bytes(content)
    status, printed, err = run("zeroshot", out, "--json")
    assert status == 1 and json.loads(printed)["count"] == (6 if how == "a file gone" else 7)
    assert err[0].endswith("run the same clip-jax embed command again")
    job(data, out.name)
    status, printed, err = run("zeroshot", out, "--json")
    assert (status, err, json.loads(printed)["count"]) == (0, [], 9)


def test_a_column_that_was_not_taken_along_is_taken_into_another_folder(data, run):
    options = {"progress": False, "batch_size": 8}
    embed(data / "?.tar", data / "model", data / "out-bare", **options)
    status, _, err = run("zeroshot", "out-bare")
    assert status == 1
    assert err[0].endswith("Embed into another folder, with --columns label to take it along")
    columns = Columns(others=("label",))
    with pytest.raises(ValueError, match="holds the output of another job"):
        embed(data / "?.tar", data / "model", data / "out-bare", columns=columns, **options)
    embed(data / "?.tar", data / "model", data / "out-labels", columns=columns, **options)
    assert run("zeroshot", "out-labels")[0] == 0


def test_what_can_not_be_evaluated_of_a_job_is_embedded_as_the_error_says(data, run):
    options = {"progress": False, "batch_size": 8, "columns": Columns(others=("label",))}
    embed(data / "?.tar", data / "model", data / "out-npy", format="npy", **options)
    embed(data / "?.tar", data / "model", data / "out-images", what="images", **options)
    status, _, err = run("zeroshot", "out-npy")
    assert status == 1 and "embed with --format parquet to evaluate" in err[0]
    status, _, err = run("retrieval", "out-images")
    assert status == 1 and "has no embeddings of captions: embed them with --what both" in err[0]
    assert run("retrieval", "out")[0] == run("zeroshot", "out-images")[0] == 0


@pytest.mark.parametrize(
    "error",
    [pa.ArrowNotImplementedError, pa.ArrowIndexError, pa.ArrowTypeError, pa.ArrowInvalid,
     pa.ArrowKeyError, pa.ArrowCapacityError],
)  # fmt: skip
def test_arrows_own_exceptions_are_a_line(run, monkeypatch, error):
    def dataset(*_, **__):
        raise error("what Arrow says")

    monkeypatch.setattr("pyarrow.dataset.dataset", dataset)
    status, out, err = run("zeroshot", "out")
    assert (status, out, len(err)) == (1, "", 1)
    assert "out has parts that can't be read" in err[0] and "what Arrow says" in err[0]


def test_damage_that_no_checksum_has_seen_is_a_line(data, out):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for path in filter(Path.is_file, out.iterdir()):
        content = bytearray(path.read_bytes())
        if path.name == "part-000001-000000.parquet":
            content[4:200] = bytes(196)
        store.pipe_file(f"/faults/{path.name}", bytes(content))
    with pytest.raises((ValueError, OSError)) as caught:
        read_results("memory://faults", ("key", "path", "label"))
    assert not isinstance(caught.value, NotImplementedError)
    store.rm("/faults", recursive=True)
