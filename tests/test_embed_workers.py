"""Embedding jobs: several processes share the rows, each row once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.embed import embed
from clip_jax.embed.chunks import Worker, divide
from tests.archives import write_tar
from tests.embedding_jobs import QUIET, contents
from tests.pictures import noise

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=12),
    st.integers(1, 20),
    st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_every_row_is_in_one_unit_of_one_share(shards, rows_per_part, count):
    units = [unit for i, rows in enumerate(shards) for unit in divide(i, rows, rows_per_part)]
    assert all(0 < len(unit) <= rows_per_part for unit in units)
    covered = [(unit.shard, row) for unit in units for row in range(unit.begin, unit.end)]
    assert covered == [(i, row) for i, rows in enumerate(shards) for row in range(rows)]
    assert len({unit.name for unit in units}) == len(units)
    assert units == sorted(units) and sorted(u.name for u in units) == [u.name for u in units]
    shares = [
        [
            unit
            for unit in units
            if unit.shard in share.shards(len(shards)) and share.takes(unit, len(shards))
        ]
        for share in (Worker(i, count) for i in range(count))
    ]
    assert sorted(unit for share in shares for unit in share) == units


def test_shares_together_are_the_whole_job_to_the_bit(pictures, undisturbed, model, tmp_path):
    for i in (2, 0, 1):
        summary = embed(pictures, model, tmp_path, rows_per_part=7, shard=(i, 3), **QUIET)
        assert summary.parts == 2
    assert contents(tmp_path) == contents(undisturbed)


def test_a_process_with_files_enough_opens_no_other(model, tmp_path, monkeypatch):
    for i in range(9):
        write_tar(tmp_path / f"{i}.tar", {f"{j}.png": noise(10 * i + j) for j in range(3)})
    from clip_jax.sources.tar import TarShard

    opened, open_ = [], TarShard.open
    monkeypatch.setattr(TarShard, "open", lambda self: opened.append(self.name) or open_(self))
    embed(tmp_path / "*.tar", model, tmp_path / "out", shard=(1, 2), **QUIET)
    assert opened == ["1.tar", "3.tar", "5.tar", "7.tar"]
    assert len(list((tmp_path / "out").glob("part-*"))) == 4
    # What is finished need not be opened to know that it is.
    opened.clear()
    embed(tmp_path / "*.tar", model, tmp_path / "out", shard=(1, 2), **QUIET)
    assert opened == []
