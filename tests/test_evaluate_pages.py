"""What the reports of evaluations hold: names, counts, mistakes, where figures come from, size."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from clip_jax.evaluate import classification_page, confusion, report, retrieval_page, write_report
from clip_jax.evaluate.documents import classification_document
from clip_jax.evaluate.scores import score
from tests.pages import ODD, PROVENANCE, Tags, page_of, retrieved, zero_shot

pytest.importorskip("matplotlib")


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / f"{i}.png" for i in range(3)]
    for path in found:
        Image.new("RGB", (9, 7), "red").save(path)
    return found


def data_of(page: str) -> dict:
    return json.loads(re.search('(?s)id="confusion-data">(.*?)</script>', page)[1])


def test_the_matrix_on_the_page_has_the_names_and_counts_at_any_size(paths):
    names = [f"class {i}" for i in range(1_000)]
    result = zero_shot(names, paths, rows=1_500)
    data = data_of(page_of("t", result))
    assert data["names"] == names
    matrix = np.zeros((1_000, 1_000), int)
    for i, j, count in data["cells"]:
        matrix[i, j] = count
    assert (matrix == result.scores.confusion.toarray()).all()
    assert data["totals"] == matrix.sum(1).tolist()


def test_every_mistake_is_behind_its_cell_as_a_card_or_by_name(paths):
    result = zero_shot([f"class {i}" for i in range(30)], paths, rows=400)
    page = page_of("t", result)
    cards = [a["data-pair"] for tag, a in Tags(page).all if tag == "li" and "data-pair" in a]
    listed = [f"{i},{j}" for i, j, *_ in data_of(page)["mistakes"]]
    wrong = [
        f"{i},{j}" for i, j in zip(result.targets, result.scores.predicted, strict=True) if i != j
    ]
    assert sorted(cards + listed) == sorted(wrong) and listed
    assert all(cards.count(pair) >= classification_page.OF_EACH for pair in set(wrong))
    linked = {a["data-pair"] for tag, a in Tags(page).all if tag == "a" and "data-pair" in a}
    assert linked == set(wrong)


def test_what_does_not_fit_is_left_out_and_said(paths, monkeypatch):
    for name, most in (("SHOWN", 5), ("CONFUSIONS", 2), ("LISTED", 10), ("CLASSES", 4)):
        monkeypatch.setattr(classification_page, name, most)
    monkeypatch.setattr(confusion, "CELLS", 7)
    result = zero_shot([f"class {i}" for i in range(30)], paths, rows=400)
    page = page_of("t", result)
    data = data_of(page)
    assert (len(data["cells"]), len(data["mistakes"])) == (7, 10)
    cards = page.count("<li data-pair=")
    assert f"{398 - cards - 10} less confident ones are left out" in page
    assert "The 4 classes of the lowest accuracy; per_class.csv has all 30." in page
    assert f"{result.scores.confusion.nnz - 7} cells, the smallest, are not drawn" in page


def test_the_page_of_fifty_thousand_pictures_is_a_few_megabytes(paths):
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(1_000)]
    result = zero_shot(names, paths)
    targets = rng.integers(0, 1_000, 50_000)
    # Most are wrong, each in its own way.
    predicted = rng.integers(0, 1_000, 50_000)
    found = score(np.eye(4)[[0]], np.array([0]))
    from scipy.sparse import coo_array

    matrix = coo_array((np.ones(50_000, int), (targets, predicted)), shape=(1_000, 1_000))
    fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
    fields |= {"confusion": matrix.tocsr(), "predicted": predicted, "count": 50_000}
    fields["confidence"] = rng.uniform(size=50_000)
    keys = [f"some/folder/picture-{i}.jpg" for i in range(50_000)]
    many = type(result)(
        type(found)(**fields), names, targets, keys, [str(paths[0])] * 50_000, result.left_out,
        provenance=PROVENANCE, templates=["{}"],
    )  # fmt: skip
    assert 1 << 20 < len(page_of("t", many)) < 4 << 20


def test_page_and_document_say_where_the_figures_come_from(paths, tmp_path):
    result = zero_shot(ODD, paths)
    write_report(tmp_path / "r", "title", result)
    page = (tmp_path / "r" / "report.html").read_text()
    document = json.loads((tmp_path / "r" / "report.json").read_text())
    assert document == json.loads(json.dumps(classification_document(result)))
    assert (document["model"], document["model_fingerprint"]) == ("ViT-B/32", "0123456789abcdef")
    assert (document["date"], document["data"]) == (PROVENANCE.date, "pets <x>")
    assert document["version"] == PROVENANCE.version and len(document["templates"]) == 2
    for words in ("ViT-B/32", "0123456789abcdef", "pets &lt;x&gt;", "a &lt;b&gt;{}&lt;/b&gt;."):
        assert f"<bdi>{words}</bdi>" in page
    assert f"2026-01-02 03:04:05+00:00, by clip_jax {PROVENANCE.version}" in page
    assert "Left out: 1 picture that can&#x27;t be used" in page or "can't be used" in page


def test_names_that_the_drawings_font_lacks_warn_of_nothing(paths, tmp_path):
    write_report(tmp_path / "r", "title", zero_shot(("\u732b", "\u72ac", "\U0001f431"), paths))


def test_the_page_of_retrieval_shows_the_recalls_the_ranks_and_both_kinds_of_mistakes(paths):
    page = retrieved(ODD, paths)
    assert "<td>image to text</td><td class=number>0.00%</td><td class=number>50.00%</td>" in page
    assert page.count("<b class=bad>found before</b>") == 3
    assert page.count("<b class=bad>found first</b>") == len(ODD)
    assert page.count('<img class="picture"') == 3 + 2 * len(ODD)
    assert "3 of 3 do not come first." in page and "Median rank 3." in page


def test_pictures_without_a_path_are_read_by_their_number(paths):
    def read(image: int) -> bytes:
        if image == 2:
            raise OSError("it is gone")
        return paths[image].read_bytes()

    page = retrieved(ODD, paths, paths=[None] * 3, read=read)
    assert page.count('<img class="picture"') + page.count("not there any more") == 13
    assert page.count("not there any more") == 4 and "target=" not in page


def test_ranks_are_counted_between_powers_of_ten():
    assert retrieval_page.rank_counts(np.array([1, 1, 2, 5, 6, 10, 11, 101])) == [
        ("1", 2),
        ("2 to 5", 2),
        ("6 to 10", 2),
        ("11 to 100", 1),
        ("101 to 1,000", 1),
    ]
    assert retrieval_page.rank_counts(np.array([1])) == [("1", 1)]
    assert retrieval_page.rank_counts(np.array([200_000]))[-1] == ("100,001 and more", 1)


def test_a_report_of_retrieval_needs_no_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "figure", lambda: 1 / 0)
    report.prepare(tmp_path / "r", draws=False)


def test_a_report_that_is_never_written_leaves_no_folder(tmp_path):
    report.prepare(tmp_path / "a" / "b", draws=False)
    assert not (tmp_path / "a").exists()
    (tmp_path / "there").mkdir()
    report.prepare(tmp_path / "there", draws=False)
    assert (tmp_path / "there").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        report.prepare(tmp_path / "file" / "r", draws=False)
