"""Embedding jobs: what they say while they run, and at their end."""

import io
import json
import re
import sys

import pytest

from clip_jax import progress as progress_module
from clip_jax.embed import Summary, embed
from tests.embedding_jobs import COUNT

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


def test_lines_of_json_tell_how_it_goes_where_there_is_no_terminal(
    pictures, model, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(progress_module, "EVERY", 0.0)
    monkeypatch.setattr(progress_module, "REFRESH", 0.0)
    embed(pictures, model, tmp_path, rows_per_part=7, batch_size=8)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[-1]["rows"] == lines[-1]["total"] == COUNT
    for name in ("rows_per_second", "remaining_seconds", "errors", "waiting"):
        assert name in lines[-1]


def test_a_bar_tells_how_it_goes_on_a_terminal(pictures, model, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress_module, "REFRESH", 0.0)
    embed(pictures, model, tmp_path, rows_per_part=7, batch_size=8)
    last = sys.stderr.getvalue().rpartition("\r")[2]
    assert re.search(rf"100%.* {COUNT}/{COUNT} .*row/s, 0 errors, \d+% waiting\]\n$", last)


@pytest.mark.parametrize(
    ("seconds", "bottleneck"),
    [
        ({"waited": 6.0, "reading": 9.0, "decoding": 2.0, "device": 3.0}, "reading"),
        ({"waited": 6.0, "reading": 1.0, "decoding": 9.0, "device": 3.0}, "decoding"),
        ({"waited": 1.0, "device": 8.0, "blocked": 7.0, "writing": 2.0}, "device"),
        ({"waited": 1.0, "device": 3.0, "blocked": 3.0, "writing": 8.0}, "writing"),
        # The device computed beside the rest, and nobody waited for it.
        ({"waited": 1.0, "device": 8.0, "blocked": 1.0, "writing": 2.0}, "host"),
    ],
)
def test_the_summary_names_the_bottleneck_with_figures(seconds, bottleneck):
    summary = Summary(rows=100, parts=1, seconds=10.0, **seconds)
    assert summary.bottleneck == bottleneck
    assert f"bottleneck: {bottleneck} (waited for data {seconds['waited']} s" in str(summary)
    assert "10.0 s, 10.0 rows/s" in str(summary)
