"""Classes and templates in the forms that people have them: scored by their names, or refused."""

import shutil

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.evaluate.classes import check_classes, name_classes, read_lines
from clip_jax.evaluate.data import class_folders, embed_images
from tests.calls import runner
from tests.models import SMALL_VIT, small


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    clip_jax.save(small(SMALL_VIT), root / "model")
    rng = np.random.default_rng(0)
    for number in range(4):
        folder = root / "pictures" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def test_a_class_folder_without_pictures_is_left_out_and_named(data, tmp_path):
    shutil.copytree(data / "pictures", tmp_path / "some")
    (tmp_path / "some" / "yak").mkdir()
    source = str(tmp_path / "some")
    assert class_folders(source) == (["cat", "dog"], ["yak"])
    with pytest.warns(UserWarning, match="classes without pictures are left out: yak"):
        found = embed_images(source, small(SMALL_VIT), progress=False)
    assert sorted(found.labels) == [("cat",)] * 2 + [("dog",)] * 2
    for name in ("cat", "dog"):
        shutil.rmtree(tmp_path / "some" / name)
        (tmp_path / "some" / name).mkdir()
    with pytest.raises(ValueError, match="none of its class folders holds pictures: cat, dog, yak"):
        class_folders(source)


@pytest.mark.filterwarnings("default")
def test_zeroshot_goes_on_without_the_empty_class(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data / "pictures", "some")
    (tmp_path / "some" / "yak").mkdir()
    model = str(data / "model")
    status, out, said = runner(capsys)("eval", "zeroshot", "some", "--model", model, "--json")
    assert status == 0 and '"count": 4' in out
    assert any(line.endswith("classes without pictures are left out: yak") for line in said)


@pytest.mark.parametrize("lines", [["0,cat", "1,dog"], ["0: cat", "1: dog"], ["1 cat", "2 dog"]])
def test_numbers_before_the_names_of_numbered_classes_are_refused(lines):
    with pytest.raises(ValueError, match="Expected the number, a tab and the name"):
        name_classes(["0", "1"], lines)
    assert name_classes(["0", "1"], ["3d printer", "2 dogs"])[0] == ["3d printer", "2 dogs"]
    assert name_classes(["0", "1"], ["0\tcat", "1\tdog"])[0] == ["cat", "dog"]


@pytest.mark.parametrize(
    "text",
    ["['cat', 'dog']", '[\n"cat",\n"dog"\n]', "'cat',\n'dog',\n", "a {}.\n'a photo of a {}.',\n"],
)
def test_a_list_of_python_or_json_is_no_file_of_lines(tmp_path, text):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ValueError, match="without the quotes and brackets of a list"):
        read_lines(tmp_path / "names.txt")


def test_quotes_and_braces_inside_of_a_line_are_part_of_it(tmp_path):
    lines = ["{} in the wild.", 'a "{}".', "cat's eye", "{}", "(a) cat"]
    (tmp_path / "names.txt").write_text("\n".join(lines))
    assert read_lines(tmp_path / "names.txt") == lines


@pytest.mark.parametrize(
    "labels", [["True", "False"], ["class_0", "class_1"], ["Label 3", "label-4"], ["0", "1"]]
)
def test_stand_ins_for_names_are_not_scored_as_names(labels):
    with pytest.raises(ValueError, match="not names, and would be scored as 'a photo of a"):
        check_classes("in", labels, None)
    check_classes("in", labels, None, are_prompts=False)  # a probe needs no names


@pytest.mark.parametrize(
    "labels", [["golden_retriever", "cat"], ["001.Albatross", "002.Tern"], ["cat", "cat|dog"]]
)
def test_names_with_joined_words_are_scored_with_a_warning(labels):
    with pytest.warns(UserWarning, match="labels are scored as they stand"):
        check_classes("in", labels, None)
    check_classes("in", labels, ["a", "b"])  # they have names


def test_a_missing_column_of_labels_names_the_option_that_gives_it(
    data, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("image,class\na.png,cat\n")
    (tmp_path / "u.csv").write_text("url,label\na.png,cat\n")
    model, run = str(data / "model"), runner(capsys)
    _, _, (said,) = run("eval", "zeroshot", "t.csv", "--model", model)
    assert said.endswith("its columns are 'image', 'class'. Say which by --label-column.")
    _, _, (said,) = run("eval", "zeroshot", "u.csv", "--model", model)
    assert said.endswith("Say which hold what by --image-column.")
    _, _, (said,) = run("embed", "t.csv", "--out", "o", "--model", model, "--columns", "size")
    assert said.endswith("Say which by --columns.")
    _, _, (said,) = run("eval", "retrieval", "u.csv", "--model", model)
    assert "--image-column, --caption-column, --key-column" in said
