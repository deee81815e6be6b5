"""`clip-jax eval`: what it prints, and what it says of data that it can't use."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import clip_jax
from clip_jax.embed import Columns, embed
from clip_jax.evaluate import ZeroShotClassifier, inputs
from clip_jax.evaluate import data as data_module
from clip_jax.evaluate.data import without_projection
from tests.archives import write_tar
from tests.calls import Run, runner
from tests.evaluation import shared_encoders, write_data
from tests.models import SMALL_RESNET, SMALL_VIT, random_images, small
from tests.pictures import COLOURS

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def model():
    return small(SMALL_VIT)


@pytest.fixture(scope="module")
def data(model, tmp_path_factory) -> Path:
    """The folder in which the commands run."""
    root = tmp_path_factory.mktemp("evaluate")
    with shared_encoders():
        write_data(root, model)
        yield root


@pytest.fixture
def run(data, monkeypatch, capsys) -> Run:
    monkeypatch.chdir(data)
    return runner(capsys, "eval")


@pytest.mark.long
def test_zero_shot_of_folders_shards_and_embeddings_is_one(run, data, model):
    options = ("--model", "model", "--templates", "templates.txt", "--batch-size", 8, "--json")
    status, out, err = run("zeroshot", "pictures", *options)
    assert (status, err) == (0, [])
    folders = json.loads(out)
    shards = json.loads(run("zeroshot", "in.tar", *options, "--classes", "classes.txt")[1])
    rows = json.loads(run("zeroshot", "embedded", *options, "--classes", "classes.txt")[1])
    assert folders["per_class"] == shards["per_class"] == rows["per_class"]
    assert folders["count"] == 30 and folders["classes"] == 3 and folders["top5"] == 1
    # By the classifier itself.
    preprocess = clip_jax.Preprocess(32)
    classifier = ZeroShotClassifier(model, sorted(COLOURS), ["a photo of a {}.", "a {} thing"])
    right = 0
    for path in sorted((data / "pictures").glob("*/*.png")):
        number = classifier.predict(preprocess.pixels(clip_jax.open_image(path))[None])[0]
        right += sorted(COLOURS)[number] == path.parent.name
    assert folders["top1"] == pytest.approx(right / 30)
    low, high = folders["top1_interval"]
    assert low <= folders["top1"] < high


@pytest.mark.long
def test_the_report_has_a_table_a_picture_and_an_escaped_page(run, data, tmp_path):
    (data / "odd.txt").write_text("red\t<b>red</b>\ngreen\t$x$ green\nblue\tblue\n")
    options = ("--classes", "odd.txt", "--report", tmp_path / "r")
    status, out, _ = run("zeroshot", "embedded", *options)
    assert status == 0 and "top-1" in out and "95% interval" in out and "mean per class" in out
    rows = list(csv.DictReader((tmp_path / "r" / "per_class.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["<b>red</b>", "$x$ green", "blue"]
    assert sum(int(row["rows"]) for row in rows) == 30
    assert clip_jax.open_image(tmp_path / "r" / "confusion.png").size[0] > 300
    page = (tmp_path / "r" / "report.html").read_text()
    wrong = 30 - sum(int(row["right"]) for row in rows)
    assert page.count("<li data-pair=") == wrong > 0
    assert "<b>red" not in page and "&lt;b&gt;red" in page
    assert page.count("data:image/jpeg;base64,") == wrong


@pytest.mark.long
def test_retrieval_of_pairs_and_of_embeddings_is_one(run):
    options = ("--model", "model", "--json")
    table = json.loads(run("retrieval", "captions.jsonl", *options, "--batch-size", 8)[1])
    shards = json.loads(run("retrieval", "in.tar", *options, "--batch-size", 8)[1])
    assert (table.pop("data"), shards.pop("data")) == ("captions.jsonl", "in.tar")
    assert table.pop("date") <= shards.pop("date")
    assert table == shards and table["model"] == "model" and len(table["model_fingerprint"]) == 16
    assert (table["images"], table["texts"]) == (30, 60)
    assert set(table["image_to_text"]) == {"1", "5", "10"}
    rows = json.loads(run("retrieval", "embedded", "--json")[1])
    assert (rows["images"], rows["texts"]) == (30, 30)
    assert "at 10" in run("retrieval", "embedded")[1]


@pytest.mark.long
def test_the_probe_separates_colours(run, tmp_path):
    options = ("--model", "model", "--batch-size", 8, "--report", tmp_path / "r")
    status, out, err = run("probe", "pictures", *options, "--json")
    given = json.loads(out)
    assert (status, err) == (0, [])
    assert (given["fitted"], given["count"], given["top1"]) == (24, 6, 1)
    assert len(given["sweep"]) >= 7 and any(t["C"] == given["C"] for t in given["sweep"])
    assert clip_jax.open_image(tmp_path / "r" / "sweep.png").size[0] > 300


@pytest.mark.long
@pytest.mark.filterwarnings("default:pictures is fitted and tested")
def test_the_probe_takes_features_before_the_projection_and_other_test_rows(run):
    options = ("--model", "model", "-C", 1, "--batch-size", 8)
    status, out, err = run(
        "probe", "pictures", "--test", "pictures", "--features", "before", *options
    )
    assert any("knows these pictures by heart" in line for line in err)
    assert status == 0 and "fitted 30 rows with C = 1\n30 images of 3 classes" in out
    assert run("probe", "embedded", "-C", 1)[0] == 0


@pytest.mark.long
def test_features_before_the_projection_are_the_towers(model):
    images = random_images(2, 32)
    given = without_projection(model).encode_image(images)
    assert given.shape == (2, SMALL_VIT.vision.width)
    proj = np.asarray(model.visual.proj[...])
    assert np.allclose(given @ proj, model.encode_image(images), atol=1e-4)
    with pytest.raises(ValueError, match="a ResNet has no projection"):
        without_projection(small(SMALL_RESNET))


@pytest.mark.long
@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (("zeroshot", "nowhere"), 1, "nowhere"),
        (("zeroshot", "pictures/red"), 1, "pictures/red holds no class folders"),
        (("zeroshot", "bad"), 1, "none of its class folders holds pictures: empty"),
        (("zeroshot", "embedded", "--model", "other"), 1, "another model: its fingerprint is"),
        (
            ("zeroshot", "embedded", "--label-column", "x"),
            1,
            "no column 'x'; its columns are 'key'",
        ),
        (("zeroshot", "in.tar", "--label-column", "x"), 1, "red0 has no 'x'"),
        (
            ("zeroshot", "embedded", "--classes", "templates.txt"),
            1,
            "not among the 2 classes: blue",
        ),
        (("zeroshot", "embedded", "--classes", "twice.txt"), 1, "given more than once: red"),
        (("zeroshot", "embedded", "--templates", "classes.txt"), 1, "must have {} where the name"),
        (("zeroshot", "embedded", "--templates", "empty.txt"), 1, "empty.txt is empty"),
        (("retrieval", "model"), 1, "no table of captions"),
        (("retrieval", "texts"), 1, "no embeddings of images: embed them with --what both"),
        (("zeroshot", "texts"), 1, "no embeddings of images: embed them with --what images"),
        (("retrieval", "images"), 1, "no embeddings of captions: embed them with --what both"),
        (("zeroshot", "hidden"), 1, "none of its class folders holds pictures: a"),
        (("zeroshot", "header.csv"), 1, "header.csv: no picture"),
        (("probe", "embedded", "-C", "1e-300"), 1, "the fit has failed: the gradient or"),
        (("probe", "embedded", "-C", "0"), 2, "expected a number above 0. Got '0'"),
        (("probe", "embedded", "--features", "before"), 1, "give the pictures instead"),
        (
            ("probe", "two", "-C", "1", "--test", "pictures"),
            1,
            "no training row has these labels: blue",
        ),
        (("probe", "one", "-C", "1"), 1, "at least two classes. Got one class: 'red'"),
    ],
)
def test_mistakes_are_said_in_a_line(run, data, argv, status, message):
    for name, content in (("twice", "red\nblue\nred"), ("empty", "\n")):
        (data / f"{name}.txt").write_text(content)
    (data / "header.csv").write_text("image,label\n")
    if not (data / "one").exists():
        (data / "bad" / "empty").mkdir(parents=True)
        (data / "one").mkdir()
        (data / "two").mkdir()
        for name in ("one/red", "two/red", "two/green"):
            (data / name).symlink_to(data / "pictures" / Path(name).name)
        other = small(SMALL_VIT)
        other.ln_final.bias[...] = other.ln_final.bias[...] + 1
        clip_jax.save(other, data / "other")
        embed(data / "templates.txt", data / "model", data / "texts", progress=False)
        embed(data / "one", data / "model", data / "images", batch_size=8, progress=False)
        (data / "hidden" / "a").mkdir(parents=True)
        (data / "hidden" / "a" / "._0.png").touch()
    if not {"embedded", "texts", "images", "--model"} & set(argv):
        argv = (*argv, "--model", "model", "--batch-size", "8")
    code, out, err = run(*argv)
    assert (code, out) == (status, "")
    assert message in err[0]


@pytest.mark.long
@pytest.mark.parametrize("what", ["zeroshot", "retrieval", "probe"])
def test_no_model_is_loaded_for_data_that_does_not_exist(run, monkeypatch, what):
    def load(*_, **__):
        raise AssertionError

    monkeypatch.setattr(inputs, "load", load)
    status, out, err = run(what, "nowhere-{0..3}.tar")
    assert (status, out, len(err)) == (1, "", 1)
    assert "nowhere-0.tar" in err[0]


@pytest.mark.long
def test_what_stops_the_evaluation_is_said_before_a_model_is_loaded(run, data, monkeypatch):
    def load(*_, **__):
        raise AssertionError

    monkeypatch.setattr(inputs, "load", load)
    (data / "double.txt").write_text("red\tthing\nred\tother\nblue\tblue\n")
    for argv, message in (
        (("zeroshot", "pictures", "--classes", "double.txt"), "given more than once: red"),
        (("zeroshot", "pictures", "--classes", "templates.txt"), "not among the 2 classes: blue"),
        (("zeroshot", "pictures/red"), "pictures/red holds no class folders"),
        (("probe", "pictures/red"), "pictures/red holds no class folders"),
        (("probe", "pictures", "--test", "pictures/red"), "pictures/red holds no class folders"),
        (("zeroshot", "pictures", "--report", "classes.txt/r"), "classes.txt/r: Not a directory"),
        (("probe", "pictures", "--report", "classes.txt"), "classes.txt: File exists"),
    ):
        status, out, err = run(*argv)
        assert (status, out, len(err)) == (1, "", 1)
        assert message in err[0]


@pytest.mark.long
def test_embeddings_whose_model_has_moved_ask_for_it(run, data):
    (data / "model").rename(data / "moved")
    try:
        status, _, err = run("zeroshot", "embedded")
        assert run("zeroshot", "embedded", "--model", "moved")[0] == 0
        assert run("probe", "embedded", "-C", 1)[0] == 0  # which needs none
    finally:
        (data / "moved").rename(data / "model")
    assert status == 1 and "model, is not there any more: give --model" in err[0]


@pytest.mark.long
def test_pictures_that_can_not_be_read_are_left_out_and_told(run, data, tmp_path):
    for name in COLOURS:
        (tmp_path / "p" / name).mkdir(parents=True)
        (tmp_path / "p" / name / "0.png").symlink_to(data / "pictures" / name / "0.png")
    (tmp_path / "p" / "red" / "1.png").write_bytes(b"no picture")
    status, out, err = run("zeroshot", tmp_path / "p", "--model", "model", "--json")
    assert (status, json.loads(out)["count"], json.loads(out)["unreadable"]) == (1, 3, 1)
    assert "red/1.png: is not an image" in err[0]


@pytest.mark.long
def test_hidden_files_and_folders_are_neither_classes_nor_pictures(run, data, tmp_path):
    for name in (".ipynb_checkpoints", "red/.thumbnails", *COLOURS):
        (tmp_path / "p" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name / "0.png").symlink_to(data / "pictures" / "red" / "0.png")
    (tmp_path / "p" / "red" / "._0.png").write_bytes(b"what macOS leaves")
    status, out, err = run("zeroshot", tmp_path / "p", "--model", "model", "--json")
    given = json.loads(out)
    assert (status, err, given["count"]) == (0, [], 3)
    assert set(given["per_class"]) == set(COLOURS)


@pytest.fixture(scope="module")
def flawed(data) -> Path:
    """Pairs of which two pictures can't be read, and what an embedding job leaves of them."""
    members = {}
    for name in COLOURS:
        for i in range(6):
            about = {"caption": f"something {name} {i}", "label": name}
            members[f"{name}{i}.png"] = (data / "pictures" / name / f"{i}.png").read_bytes()
            members[f"{name}{i}.json"] = json.dumps(about).encode()
    members["red1.png"] = members["blue4.png"] = b"no picture"
    write_tar(data / "flawed.tar", members)
    options = {"what": "both", "columns": Columns(others=("label",)), "progress": False}
    out = data / "flawed"
    embed(data / "flawed.tar", data / "model", out, batch_size=8, rows_per_part=5, **options)
    assert len(list(out.glob("part-*.parquet"))) == 4
    return out


EVALUATIONS = [
    ("zeroshot", ("--label-column", "label")),
    ("retrieval", ()),
    ("probe", ("--label-column", "label", "--test", "embedded", "-C", 1)),
]


@pytest.mark.long
@pytest.mark.parametrize(("what", "options"), EVALUATIONS)
def test_errors_of_an_embedding_job_are_told_as_those_of_pictures(run, flawed, what, options):
    options = (*options, "--model", "model", "--json")
    status, out, err = run(what, "flawed", *options)
    assert (status, json.loads(out)["unreadable"]) == (1, 2)
    lines = [f"clip-jax: {key}: is not an image" for key in ("red1", "blue4")]
    assert len(err) == 2 and all(map(str.startswith, err, lines))
    pictures = run(what, "flawed.tar", *options)
    assert (pictures[0], json.loads(pictures[1])["unreadable"]) == (1, 2)
    assert what == "retrieval" or pictures[2] == err  # pairs have numbers, not keys


@pytest.mark.long
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("is_damaged", [False, True])
@pytest.mark.parametrize(("what", "options"), EVALUATIONS)
def test_an_embedding_job_that_is_not_finished_is_told(
    run, flawed, tmp_path, what, options, is_damaged
):
    out = shutil.copytree(flawed, tmp_path / "out")
    first, part = out / "part-000000-000000.parquet", out / "part-000000-000001.parquet"
    if is_damaged:
        part.write_bytes(part.read_bytes()[:200] + b"?" + part.read_bytes()[201:])
    else:
        part.unlink()
    status, printed, err = run(what, out, *options, "--json")
    document = json.loads(printed)
    assert (status, document["unreadable"]) == (1, 2 + 5)
    if what != "probe":
        assert document["count" if what == "zeroshot" else "images"] == 18 - 2 - 5
    assert err[0] == (
        f"clip-jax: warning: {out} is not finished: 5 rows are left out, whose parts are missing "
        "or damaged (part-000000-000001.parquet): run the same clip-jax embed command again"
    )
    assert [line.split(": ")[1] for line in err[1:]] == ["red1", "blue4"]
    for path in out.glob("part-*"):
        path.write_bytes(b"PAR1")
    assert run(what, out, *options)[2] == [
        f"clip-jax: {first} is damaged: run the same clip-jax embed command again"
    ]


@pytest.mark.long
def test_files_of_the_input_without_a_part_are_told(data, flawed, tmp_path):
    for name in "abc":
        shutil.copy(data / "flawed.tar", tmp_path / f"{name}.tar")
    out = tmp_path / "out"
    options = {"columns": Columns(others=("label",)), "progress": False}
    embed(tmp_path / "{a,b,c}.tar", data / "model", out, batch_size=8, **options)
    (out / "part-000001-000000.parquet").unlink()
    with pytest.warns(UserWarning, match=r"no part of some files of its input \(part-000001-\*"):
        images = data_module.read_images(str(out))
    assert (len(images.labels), len(images.left_out.problems), images.left_out.missing) == (
        32,
        4,
        0,
    )


@pytest.mark.long
def test_a_job_without_a_single_embedding_is_refused(run, data, tmp_path):
    write_tar(tmp_path / "in.tar", {"a.png": b"no picture", "a.json": b'{"label": "red"}'})
    options = {"columns": Columns(others=("label",)), "progress": False}
    embed(tmp_path / "in.tar", data / "model", tmp_path / "out", batch_size=8, **options)
    status, out, err = run("zeroshot", tmp_path / "out", "--model", "model")
    assert (status, out) == (1, "")
    assert "no picture could be read; the first: a: is not an image" in err[0]
