"""Embedding jobs on Ray whose workers, encoders, nodes and driver are killed at random."""

import pytest

from tests.ray_kills import KINDS, torture

pytest.importorskip("ray")


@pytest.mark.slow
def test_no_kill_loses_doubles_or_changes_a_row(tmp_path):
    done = torture(tmp_path, pictures=600, kills=len(KINDS), seed=0)
    assert done.pop("finished") >= 1
    assert done == dict.fromkeys(KINDS, 1)
