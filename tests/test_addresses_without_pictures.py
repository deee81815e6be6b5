"""A table of addresses is told what can be done by the interface that it was given to."""

import pytest

from clip_jax.embed import embed
from clip_jax.evaluate import retrieval
from clip_jax.sources.pairs import open_pairs
from tests.models import SMALL_VIT, small


def test_only_a_job_is_told_that_it_could_fetch_pictures_or_take_texts_alone(tmp_path):
    table, model = tmp_path / "urls.csv", small(SMALL_VIT)
    table.write_text("url,caption\nhttps://example.org/0.png,a pear\n")
    job = r"url_col url .*fetched as they are embedded, .* what='texts'"
    with pytest.raises(ValueError, match=job):
        embed(table, model, tmp_path / "out", what="images", progress=False)
    for call in (lambda: open_pairs(table), lambda: retrieval(table, model, progress=False)):
        with pytest.raises(ValueError, match="and give the folder that it writes$"):
            call()
