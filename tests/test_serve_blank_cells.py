"""Columns of a CSV file with empty cells, as the page's filters have them."""

import pytest

from clip_jax.embed import Columns, embed
from tests.embedding_jobs import QUIET
from tests.serving import application, serving

pa = pytest.importorskip("pyarrow")
pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


def test_numbers_with_empty_cells_have_bounds(model, tmp_path):
    lines = [f"t{i},{'' if i % 5 == 2 else 1990 + i},{'' if i else 'x'}\n" for i in range(20)]
    (tmp_path / "t.csv").write_text("caption,year,note\n" + "".join(lines))
    columns = Columns(others=("year", "note"))
    embed(tmp_path / "t.csv", model, tmp_path / "out", columns=columns, **QUIET)
    made = application(tmp_path / "out", model)
    with serving(made.app) as found:
        year, note, _ = found.get("/api/about").json["columns"]
        assert year == {"name": "year", "kind": "number", "least": 1990.0, "most": 2009.0}
        assert (note["values"], note["counts"]) == (["", "x"], [19, 1])
        hits = found.get("/api/rows", where="year>=2006").json
        assert [hit["caption"] for hit in hits] == ["t16", "t18", "t19"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1", " ", "", None, "2.5"], [1.0, None, None, None, 2.5]),
        (["1", "x", ""], None),
        (["", " "], None),
        ([None, None], [None, None]),
    ],
)
def test_a_column_of_texts_is_one_of_numbers_if_all_that_it_has_are(texts, expected):
    from clip_jax.serve.filters import as_numbers

    for kind in (pa.string(), pa.large_string()):
        found = as_numbers(pa.chunked_array([texts], kind))
        assert (None if found is None else found.to_pylist()) == expected
