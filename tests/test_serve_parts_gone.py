"""Parts that are deleted while `clip-jax serve` runs."""

import shutil
from pathlib import Path

import pytest

from clip_jax.search.several import AllDamaged
from clip_jax.weights.opened import DEFAULTS
from tests.serving import serving

pytest.importorskip("pyarrow")
pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


def test_where_all_parts_are_gone_searches_say_so_and_go_on_saying_so(collection, tmp_path):
    from clip_jax.serve import server

    out = Path(shutil.copytree(collection / "out", tmp_path / "out"))
    how = {"exact": False, "fetch": False, "is_local": True, "token": None}
    made, searcher = server._application(str(out), None, DEFAULTS, **how)
    for part in out.glob("part-*.parquet"):
        part.unlink()
    with pytest.raises(AllDamaged):  # the command ends by this
        searcher.prepare()
    searcher.step = None  # as where they went later, of more rows than memory holds
    with serving(made.app) as found:
        for query in ("x", "y", "x"):
            answer = found.get("/api/search", q=query)
            assert answer.status == 503 and "the rows can't be read: all parts" in answer.error
        assert found.get("/api/rows").status in (200, 503)
