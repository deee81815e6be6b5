"""The report of a classification: its page, its tables and its pictures."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_jax.evaluate import (
    ClassificationResult,
    LeftOut,
    LinearProbe,
    ProbeResult,
    Sweep,
    Trial,
    confusion,
    report,
    write_report,
)
from clip_jax.evaluate.scores import score

pytest.importorskip("matplotlib")

FILES = {"report.html", "report.json", "per_class.csv", "confusion.png"}
NAMES = ("<b>red</b>", "$x$ green", "blue")

MISTAKES = ("blue", "&lt;b&gt;red&lt;/b&gt;"), ("&lt;b&gt;red&lt;/b&gt;", "$x$ green")


@pytest.fixture
def result(tmp_path) -> ClassificationResult:
    """Five pictures of three classes, of which two are mistaken for others."""
    targets = np.array([0, 0, 1, 2, 2])
    logits = np.eye(3)[[0, 1, 1, 2, 0]] * np.array([1, 2, 3, 4, 5])[:, None]
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for path in paths:
        Image.new("RGB", (9, 7), "red").save(path)
    keys = [f"key {i}" for i in range(5)]
    return ClassificationResult(score(logits, targets), NAMES, targets, keys, paths, LeftOut())


def test_the_page_escapes_names_and_shows_the_most_confident_mistakes_first(result, tmp_path):
    write_report(tmp_path / "a" / "b", "A <title>", result)
    folder = tmp_path / "a" / "b"
    assert {p.name for p in folder.iterdir()} == FILES
    page = (folder / "report.html").read_text()
    assert "A &lt;title&gt;" in page and "<b>red" not in page and "&lt;b&gt;red" in page
    assert "<b>60.00%</b>top-1, 95% interval" in page
    assert page.count("<li data-pair=") == page.count("data:image/jpeg;base64,") == 2
    mistakes = [f"<bdi>{a}</bdi>, taken for <bdi>{b}</bdi>" for a, b in MISTAKES]
    assert page.index(mistakes[0]) < page.index(mistakes[1])
    with Image.open(folder / "confusion.png") as picture:
        assert picture.size[0] > 300


def test_the_table_has_each_class_and_what_it_is_most_often_taken_for(result, tmp_path):
    write_report(tmp_path, "title", result)
    rows = list(csv.DictReader((tmp_path / "per_class.csv").read_text().splitlines()))
    assert [tuple(row.values()) for row in rows] == [
        ("<b>red</b>", "2", "1", "0.5000", "$x$ green"),
        ("$x$ green", "1", "1", "1.0000", ""),
        ("blue", "2", "1", "0.5000", "<b>red</b>"),
    ]
    assert result.per_class == {"<b>red</b>": 0.5, "$x$ green": 1.0, "blue": 0.5}


def test_the_report_of_a_probe_shows_the_search_for_c(result, tmp_path):
    trials = tuple(Trial(10.0**i, i / 10, i / 10, 5, 1e-5) for i in range(3))
    fields = {name: getattr(result, name) for name in result.__dataclass_fields__}
    for sweep in (None, Sweep(trials, LinearProbe(10.0))):
        probe = ProbeResult(**fields, probe=LinearProbe(10.0), num_fitted=9, sweep=sweep)
        write_report(tmp_path, "title", probe)
        page = (tmp_path / "report.html").read_text()
        is_shown = sweep is not None
        assert ("Strength of the regularisation" in page) == is_shown
        assert (tmp_path / "sweep.png").exists() == is_shown


def test_neighbouring_classes_share_a_cell_of_the_picture(monkeypatch):
    monkeypatch.setattr(confusion, "DRAWN", 2)
    logits = np.eye(4)[[0, 1, 3, 3]]
    picture = confusion.confusion_shares(score(logits, np.array([1, 1, 1, 3])).confusion)
    assert np.allclose(picture, [[2 / 3, 1 / 3], [0, 1]])


def test_numbers_in_cells_stay_numbers_and_formulas_become_text():
    cells = ("-1", "+2.5", "a=b", 3, "", "=1+1", "@SUM(1)", "-1+1")
    assert [report._harmless(cell) for cell in cells] == [
        *("-1", "+2.5", "a=b", 3, ""),
        *("'=1+1", "'@SUM(1)", "'-1+1"),
    ]


def test_evaluating_needs_no_matplotlib_until_a_report_is_written(tmp_path):
    program = f"""if True:
        import sys
        sys.modules["matplotlib"] = None
        from clip_jax.evaluate import write_report
        try:
            write_report({str(tmp_path / "r")!r}, "title", None)
        except ModuleNotFoundError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == (
        "the report draws with matplotlib: pip install 'clip-jax-flax[evaluate]'\n"
    )
    assert not Path(tmp_path / "r").exists()
