"""Embedding jobs: real processes, killed at any moment and started again."""

import random
import signal
import time
from pathlib import Path

import pytest

import clip_jax
from tests import processes
from tests.embedding_jobs import contents, rows, start, wait_for_parts, write_pictures
from tests.models import SMALL_VIT, small

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> tuple[Path, Path, dict[str, bytes]]:
    """A model, pictures, and what an undisturbed command leaves of them."""
    folder = tmp_path_factory.mktemp("kills")
    clip_jax.save(small(SMALL_VIT), folder / "model")
    write_pictures(folder / "pictures", 240)
    (folder / "pictures" / "bad.png").write_bytes(b"")
    with (folder / "log").open("w") as log:
        process = start(folder / "model", folder / "pictures", folder / "out", log)
        assert process.wait(timeout=120) == 0, (folder / "log").read_text()
    return folder / "model", folder / "pictures", contents(folder / "out")


@pytest.mark.long
def test_a_killed_job_goes_on_without_a_row_lost_or_doubled(many, tmp_path):
    model, pictures, undisturbed = many
    rng, out, kills = random.Random(0), tmp_path / "out", 0
    with (tmp_path / "log").open("w") as log:
        for parts in (1, 40, 80):
            process = start(model, pictures, out, log)
            wait_for_parts(out, parts, [process])
            time.sleep(rng.uniform(0, 0.05))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.wait()
        assert start(model, pictures, out, log).wait(timeout=120) == 0
    assert kills >= 2
    assert contents(out) == undisturbed
    keys = rows(out)["key"]
    assert len(keys) == len(set(keys)) == 240


@pytest.mark.long
def test_two_processes_of_which_one_is_killed_and_both_are_started_again(many, tmp_path):
    model, pictures, undisturbed = many
    for name, target in (("model", model), ("pictures", pictures)):
        (tmp_path / name).symlink_to(target)
    with processes.started(tmp_path, "embed") as running:
        wait_for_parts(tmp_path / "out", 30, running)
        running[1].kill()
    results = processes.run_two(tmp_path, "embed")
    before, now = (sum(int(r[name]) for r in results) for name in ("rows_before", "rows"))
    assert before >= 50 and before + now == 240
    assert all(int(result["rows"]) + int(result["rows_before"]) > 100 for result in results)
    assert contents(tmp_path / "out") == undisturbed
