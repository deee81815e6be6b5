"""What the page is told of columns that hold NaN or categories."""

import pytest

from clip_jax.embed import Columns, embed
from tests.archives import parquet
from tests.embedding_jobs import QUIET
from tests.serving import application, jpegs, serving

pa = pytest.importorskip("pyarrow")
pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]

NAN = float("nan")


@pytest.fixture
def served(model, tmp_path):
    others = {
        "score": [NAN, float("inf"), 1.5, 1.5],
        "text": ["nan", "1", "2", "2"],
        "nothing": [NAN] * 4,
        "lang": pa.array(["en", "de", "en", None]).dictionary_encode(),
    }
    parquet(tmp_path / "in.parquet", {"image": jpegs(4), **others})
    embed(
        tmp_path / "in.parquet",
        model,
        tmp_path / "out",
        columns=Columns(others=tuple(others)),
        **QUIET,
    )
    with serving(application(tmp_path / "out", model).app) as found:
        yield found


def test_nan_is_no_choice_and_categories_are_choices(served):
    found = served.get("/api/about")
    assert found.status == 200
    columns = {each.pop("name"): each for each in found.json["columns"]}
    assert columns["score"] == {"kind": "choice", "values": [1.5, "inf"], "counts": [2, 1]}
    assert columns["text"] == {"kind": "choice", "values": [1, 2], "counts": [1, 2]}
    assert columns["nothing"] == {"kind": "number", "least": None, "most": None}
    assert columns["lang"] == {"kind": "choice", "values": ["en", "de"], "counts": [2, 1]}
    for name in ("score", "text", "lang"):  # each choice finds as many rows as it says
        for value, count in zip(columns[name]["values"], columns[name]["counts"], strict=True):
            assert len(served.get("/api/rows", where=f"{name}={value}").json) == count


@pytest.mark.parametrize("kind", ["thumbnails", "originals"])
def test_a_row_of_thousands_of_digits_is_not_there(served, kind):
    found = served.get(f"/{kind}/{'9' * 5000}")
    assert (found.status, found.error) == (404, "there is no such row")
