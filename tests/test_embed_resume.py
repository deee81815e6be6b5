"""Embedding jobs: started again, they do what is missing and refuse what is not theirs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clip_jax.embed import embed
from tests.embedding_jobs import COUNT, QUIET, contents, lasting, rows, write_pictures
from tests.models import SMALL_VIT, small
from tests.pictures import noise

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


def test_the_same_command_again_has_nothing_to_do(pictures, undisturbed, model):
    before = contents(undisturbed)
    summary = embed(pictures, model, undisturbed, rows_per_part=7, **QUIET)
    assert (summary.rows, summary.parts, summary.rows_before) == (0, 0, COUNT)
    assert contents(undisturbed) == before


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    match how:
        case "cut":
            data = data[: len(data) // 2]
        case "flipped":
            data[len(data) // 8] ^= 1  # well before the footer
        case "empty":
            data = b""
        case "other":
            data = b"something else"
    path.write_bytes(data)


def left_by_a_kill(path: Path) -> None:
    """Writes what a process leaves that dies while it writes a file."""
    program = (
        "import sys; from clip_jax.unfinished import aside; open(aside(sys.argv[1]), 'w').close()"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "other"])
def test_a_part_that_is_damaged_is_done_again(pictures, undisturbed, model, copy, how):
    damage(copy / "part-000000-000003.parquet", how)
    for name in ("part-000000-000004.parquet", "job.json"):
        left_by_a_kill(copy / name)
    (copy / "part-000000-000005.parquet").unlink()
    (copy / "errors").mkdir()
    (copy / "errors" / "part-000000-000001.parquet").write_bytes(b"left by a kill, too")
    summary = embed(pictures, model, copy, rows_per_part=7, **QUIET)
    assert (summary.parts, summary.rows, summary.rows_before) == (2, 12, 28)
    assert contents(copy) == contents(undisturbed)


def test_a_part_of_another_job_does_not_count(pictures, undisturbed, model, copy, tmp_path):
    embed(pictures, model, tmp_path / "other", rows_per_part=7, exif_transpose=True, **QUIET)
    name = "part-000000-000001.parquet"
    (copy / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert embed(pictures, model, copy, rows_per_part=7, **QUIET).parts == 1
    assert contents(copy) == contents(undisturbed)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"dtype": "float16"}, "dtype: there 'float32', here 'float16'"),
        ({"exif_transpose": True}, "exif_transpose: there False, here True"),
        ({"rows_per_part": 8}, "rows_per_part: there 7, here 8"),
        ({"format": "npy"}, "format: there 'parquet', here 'npy'"),
    ],
)
def test_another_job_in_the_folder_is_refused(pictures, undisturbed, model, options, line):
    there = json.loads((undisturbed / "job.json").read_text())["fingerprint"]
    with pytest.raises(ValueError, match="another job") as caught:
        embed(pictures, model, undisturbed, **{"rows_per_part": 7, **QUIET, **options})
    message = str(caught.value)
    assert line in message and there in message
    assert re.search(f"{there}; this one is (?!{there})[0-9a-f]{{16}}", message)


def test_another_model_or_input_is_refused(pictures, undisturbed, model, tmp_path):
    other = small(SMALL_VIT)
    other.visual.proj[...] = other.visual.proj[...] + 1e-6
    with pytest.raises(ValueError, match="model: there '"):
        embed(pictures, other, undisturbed, rows_per_part=7, **QUIET)
    with pytest.raises(ValueError, match="input: there '"):
        embed(pictures / "sub", model, undisturbed, rows_per_part=7, **QUIET)


def test_other_pictures_of_the_same_names_are_refused(model, tmp_path):
    folder, out = write_pictures(tmp_path / "in", 6), tmp_path / "out"
    (folder / "000.png").write_bytes(b"")
    options = {"rows_per_part": 2, **QUIET}
    embed(folder, model, out, **options)
    (folder / "000.png").write_bytes(noise(0))  # it has no embedding that could be another's
    assert embed(folder, model, out, **options).parts == 0
    (folder / "sub" / "005.png").write_bytes(noise(5, (30, 30)))
    next(out.glob("part-000000-000000.*")).unlink()
    before = contents(out)
    with pytest.raises(ValueError, match="of other pictures: rows 4 to 5 of the input"):
        embed(folder, model, out, **options)
    assert contents(out) == before
    next(out.glob("part-000000-000002.*")).unlink()
    assert embed(folder, model, out, **options).parts == 2
    assert len(rows(out)["key"]) == 6


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(pictures, undisturbed, model, copy):
    for name in ("000001", "000002"):
        (copy / f"part-000000-{name}.parquet").unlink()
    before = contents(copy)
    summary = embed(pictures, model, copy, rows_per_part=7, dry_run=True, **QUIET)
    assert (summary.rows_to_do, summary.parts_to_do, summary.rows_before) == (14, 2, 26)
    assert contents(copy) == before
    assert str(summary) == "to do: 14 rows in 2 parts; done before: 26 rows, 0 errors"
    new = copy.parent / "new"
    assert embed(pictures, model, new, rows_per_part=7, dry_run=True, **QUIET).parts_to_do == 6
    assert not new.exists()


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_errors_are_retried_only_if_it_is_said_and_then_are_as_if_they_had_never_been(
    model, tmp_path, format
):
    folder = write_pictures(tmp_path / "in", 20)
    failing = [folder / "000.png", folder / "sub" / "010.png", folder / "sub" / "019.png"]
    good = {path: path.read_bytes() for path in failing}
    options = {"rows_per_part": 6, "format": format, **QUIET}
    embed(folder, model, tmp_path / "undisturbed", **options)
    for path in failing:
        path.write_bytes(b"broken")
    out = tmp_path / "out"
    assert embed(folder, model, out, **options).errors == 3
    with_errors = contents(out)
    assert embed(folder, model, out, retry_errors=True, **options).errors == 3
    assert contents(out) == with_errors
    for path in failing[:2]:
        path.write_bytes(good[path])
    assert embed(folder, model, out, **options).parts == 0
    summary = embed(folder, model, out, retry_errors=True, **options)
    assert (summary.rows, summary.errors, summary.rows_before) == (2, 1, 17)
    failing[2].write_bytes(good[failing[2]])
    embed(folder, model, out, retry_errors=True, **options)
    assert lasting(out) == lasting(tmp_path / "undisturbed")


def test_a_job_stops_at_too_many_errors_and_keeps_what_is_finished(model, tmp_path):
    folder = write_pictures(tmp_path / "in", 20)
    for i in (7, 10, 11):
        (folder / "sub" / f"{i:03d}.png").write_bytes(b"")
    options = {"rows_per_part": 5, **QUIET}
    with pytest.raises(ValueError, match="3 rows could not be embedded, more than max_errors=2"):
        embed(folder, model, tmp_path / "out", max_errors=2, **options)
    assert len(list((tmp_path / "out").glob("part-*"))) >= 1
    assert embed(folder, model, tmp_path / "out", max_errors=3, **options).errors == 3
    with pytest.raises(ValueError, match="more than max_errors=0"):
        (folder / "sub" / "019.png").write_bytes(b"")
        (tmp_path / "out" / "part-000000-000003.parquet").unlink()
        embed(folder, model, tmp_path / "out", max_errors=0, **options)
