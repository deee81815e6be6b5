"""The benchmark for accelerators: its processes, its rows, and what goes wrong there."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import pytest

from benchmarks.accelerator import __main__ as program
from benchmarks.accelerator import cases as cases_module
from benchmarks.accelerator import keep, machine, table
from benchmarks.accelerator.cases import RESTART, Case, NotHere, run_cases
from benchmarks.accelerator.rows import Rows
from benchmarks.accelerator.sections import SECTIONS, Section
from benchmarks.accelerator.supervise import Supervisor
from tests import reference
from tests.processes import wait_until

ROOT = Path(__file__).resolve().parent.parent
CPU = {"platform": "cpu", "kind": "cpu", "devices": 1, "memory": None, "driver": None}


def case(name, run=None, **options):
    return Case(name, "ours", run, **options)


def found(value=1.0, **others):
    return {"value": value, "unit": "images/s", **others}


def statuses(rows):
    return [(row["what"], row["size"], row["status"]) for row in rows.read()]


def run(cases, folder, seconds=60.0, **options):
    rows = Rows(folder)
    status = run_cases("2 images", cases, rows, time.monotonic() + seconds, **options)
    return status, rows


# --- rows


def test_rows_are_on_disk_and_printed_when_they_are_added(tmp_path, capsys):
    rows = Rows(tmp_path)
    fast = case("tower", size=256, about={"model": "ViT-B/32"})
    rows.add(fast.row("2 images", "ok", value=3021.4, unit="images/s", ratio=1.312, beside="XLA"))
    assert json.loads((tmp_path / "rows.jsonl").read_text())["model"] == "ViT-B/32"
    assert capsys.readouterr().out == (
        "2 images | tower, batch 256 | ours | 3,021 images/s | 1.31 x XLA\n"
    )


def test_line_that_a_killed_process_left_unfinished_costs_no_other(tmp_path):
    rows = Rows(tmp_path)
    rows.add(case("a").row("s", "ok", **found()))
    with open(rows.path, "a") as file:
        file.write('{"section": "s", "wh')
    rows.add(case("b").row("s", "ok", **found()))
    assert [row["what"] for row in rows.read()] == ["a", "b"]


# --- cases


@pytest.fixture(autouse=True)
def caches_of_other_tests(monkeypatch):
    """Stay as they are where a row runs out of memory."""
    monkeypatch.setattr(keep, "_collect", lambda: None)


@pytest.mark.parametrize("framework", ["jax", pytest.param("torch", marks=pytest.mark.torch)])
def test_row_without_memory_says_so_and_the_next_smaller_size_runs(tmp_path, framework):
    if framework == "jax":
        error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
    elif reference.available():
        error = reference.torch().OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
    else:
        pytest.skip("PyTorch is not installed")

    def measure(size):
        if size > 64:
            raise error
        return found(size)

    status, rows = run([case("a", measure, size=256), case("b", measure, size=32)], tmp_path)
    assert statuses(rows) == [
        ("a", 256, "out of memory"),
        ("a", 128, "out of memory"),
        ("a", 64, "ok"),
        ("b", 32, "ok"),
    ]
    assert status == 0


def test_memory_is_given_back_before_the_smaller_size_runs(tmp_path):
    made = []

    def measure(size):
        made.append(keep.once("base", lambda: size))
        if size > 8:
            raise MemoryError
        return found()

    run([case("a", measure, size=16)], tmp_path)
    assert made == [16, 8]
    keep.forget()


def test_no_row_is_left_where_nothing_fits(tmp_path):
    def measure(size):
        raise MemoryError("nothing")

    _, rows = run([case("a", measure, size=4)], tmp_path)
    assert [row[1] for row in statuses(rows)] == [4, 2, 1]
    assert {row[2] for row in statuses(rows)} == {"out of memory"}


def test_size_is_doubled_where_the_memory_suffices_after_all_other_cases(tmp_path):
    def measure(size):
        if size > 64:
            raise MemoryError
        return found(larger=True)

    _, rows = run([case("a", measure, size=16), case("b", lambda size: found())], tmp_path)
    assert statuses(rows) == [
        ("a", 16, "ok"),
        ("b", None, "ok"),
        ("a", 32, "ok"),
        ("a", 64, "ok"),
        ("a", 128, "out of memory"),
    ]


def test_error_is_a_row_and_the_next_case_runs(tmp_path, capsys):
    def fails(size):
        raise ValueError("a shape\nof another kind")

    status, rows = run([case("a", fails), case("b", lambda size: found())], tmp_path)
    assert [row["status"] for row in rows.read()] == ["error", "ok"]
    assert rows.read()[0]["note"] == "ValueError: a shape of another kind"
    assert "Traceback" in capsys.readouterr().err  # which the log keeps
    assert status == 0


def test_what_is_not_installed_is_not_here(tmp_path, capsys):
    def peer(size):
        raise NotHere("no PyTorch")

    def imported(size):
        import no_such_module  # noqa: F401  # pyright: ignore[reportMissingImports]

    _, rows = run([case("a", peer), case("b", imported)], tmp_path)
    assert [row["status"] for row in rows.read()] == ["not here", "not here"]
    assert rows.read()[0]["note"] == "no PyTorch"
    assert capsys.readouterr().err == ""


def test_rows_for_which_no_time_is_left_say_so_and_shorter_ones_run(tmp_path):
    cases = [
        case("long", lambda size: found(), seconds=100),
        case("short", lambda size: found(), seconds=1),
    ]
    _, rows = run(cases, tmp_path, seconds=50)
    assert [row["status"] for row in rows.read()] == ["not reached", "ok"]
    assert rows.read()[0]["note"] == "out of time"


def test_worker_asks_for_another_when_its_device_has_failed(tmp_path, monkeypatch):
    def fails(size):
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(cases_module, "_device_works", lambda: False)
    cases = [case("a", fails), case("b", lambda size: found())]
    status, rows = run(cases, tmp_path)
    assert (status, statuses(rows)) == (RESTART, [("a", None, "error")])
    # The next one goes on behind the row that is there.
    status, rows = run(cases, tmp_path)
    assert (status, statuses(rows)[1:]) == (0, [("b", None, "ok")])


# --- sections


@pytest.fixture
def sections(tmp_path, monkeypatch):
    """Makes sections of modules whose source is given; quick, for they need no JAX."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    others = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), others]))

    def make(**sources):
        made = []
        for name, source in sources.items():
            module = f"section_{tmp_path.name}_{name}".replace("-", "_")
            head = f"""
                import os, signal, subprocess, sys, time
                from benchmarks.accelerator.cases import Case
                from benchmarks.accelerator.sections import Section
                SECTION = Section({name!r}, {module!r}, 1)
                def ok(size):
                    return {{"value": 1.0, "unit": "s"}}
            """
            (folder / f"{module}.py").write_text(textwrap.dedent(head) + textwrap.dedent(source))
            made.append(Section(name, module, 1))
        return made

    return make


def run_sections(sections, rows, seconds, **options):
    with Supervisor(sections, rows, **options) as supervisor:
        supervisor.run(seconds)


def folder_of_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return Rows(folder)


FINE = """
    def cases(tiny):
        return [Case("fine", "ours", ok)]
"""


def test_section_whose_process_dies_is_an_error_row_and_its_next_case_runs(tmp_path, sections):
    dying = """
        def crash(size):
            os.kill(os.getpid(), signal.SIGSEGV)
        def cases(tiny):
            return [Case("a", "ours", ok), Case("b", "ours", crash), Case("c", "ours", ok)]
    """
    rows = folder_of_run(tmp_path)
    run_sections(sections(dying=dying, fine=FINE), rows, 60)
    assert statuses(rows) == [
        ("a", None, "ok"),
        ("b", None, "error"),
        ("c", None, "ok"),
        ("fine", None, "ok"),
    ]
    assert "SIGSEGV" in rows.read()[1]["note"]


def test_section_that_overruns_its_share_is_killed_with_its_processes(tmp_path, sections):
    hanging = """
        def hang(size):
            code = "import time; time.sleep(600)"
            # In a session of its own, as what compiles for PyTorch may be.
            child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
            open(os.environ["PIDS"], "w").write(f"{os.getpid()} {child.pid}")
            time.sleep(600)
        def cases(tiny):
            return [Case("a", "ours", ok), Case("b", "ours", hang), Case("c", "ours", ok)]
    """
    rows, pids = folder_of_run(tmp_path), tmp_path / "pids"
    made = sections(hanging=hanging, fine=FINE)
    run_sections(made, rows, 10, grace=0.0, environment={"PIDS": str(pids)})
    assert statuses(rows) == [
        ("a", None, "ok"),
        ("b", None, "not reached"),
        ("c", None, "not reached"),
        ("fine", None, "ok"),
    ]
    assert [row.get("note") for row in rows.read()[1:3]] == ["stopped: out of time", "out of time"]
    assert not any(is_running(int(pid)) for pid in pids.read_text().split())


def test_time_that_a_section_leaves_goes_to_later_ones(tmp_path, sections):
    telling = """
        def cases(tiny):
            return [Case("told", "ours", ok, seconds=12)]
    """
    rows = folder_of_run(tmp_path)
    run_sections(sections(quick=FINE, telling=telling), rows, 20)
    assert statuses(rows)[1] == ("told", None, "ok")  # of half of the time it would have 10


def test_temporary_files_of_a_section_are_gone_after_it(tmp_path, sections):
    writing = """
        import tempfile
        def write(size):
            folder = tempfile.mkdtemp()
            return {"value": 1.0, "unit": "s", "folder": folder}
        def cases(tiny):
            return [Case("a", "ours", write)]
    """
    rows = folder_of_run(tmp_path)
    run_sections(sections(writing=writing), rows, 60)
    assert not Path(rows.read()[0]["folder"]).exists()


@pytest.fixture
def started(tmp_path, sections):
    """A whole run, at its second row, which takes forever; and that row's process."""
    hanging = """
        def hang(size):
            open(os.environ["PID"], "w").write(str(os.getpid()))
            time.sleep(600)
        def cases(tiny):
            return [Case("fine", "ours", ok), Case("b", "ours", hang)]
    """
    (section,) = sections(hanging=hanging)
    code = f"""
import sys, time
from pathlib import Path
from benchmarks.accelerator.__main__ import run
from benchmarks.accelerator.sections import Section
section = Section({section.name!r}, {section.module!r}, 1)
sys.exit(run([section], Path({str(tmp_path / "out")!r}), time.monotonic() + 600, tiny=True))
"""
    paths = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    pid = tmp_path / "pid"
    environment = {**os.environ, "PYTHONPATH": paths, "PID": str(pid)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: pid.exists() and pid.read_text(), seconds=300)
        yield process, int(pid.read_text())
    finally:
        process.kill()
        if pid.exists() and is_running(int(pid.read_text())):
            os.kill(int(pid.read_text()), signal.SIGKILL)
        process.communicate()


def test_workers_die_with_a_supervisor_that_is_killed(started):
    process, pid = started
    process.kill()
    process.wait()
    wait_until(lambda: not is_running(pid), seconds=300)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_keeps_its_rows_and_prints_the_table(tmp_path, started, number, status):
    process, pid = started
    process.send_signal(number)
    out, error = process.communicate(timeout=300)
    assert process.returncode == status
    assert "Traceback" not in error
    assert "# Accelerator" in out and "| fine | ours | 1 s |" in out
    assert (tmp_path / "out" / "table.md").read_text().startswith("# Accelerator")
    assert statuses(Rows(tmp_path / "out")) == [("fine", None, "ok")]
    assert not is_running(pid)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# --- the program


def test_without_accelerator_it_says_so_in_one_line(tmp_path, capsys):
    assert program.main(["--out", str(tmp_path / "out")]) == 1
    out, error = capsys.readouterr()
    assert error.count("\n") == 1
    assert "no accelerator" in error and "--tiny" in error
    assert out == ""
    assert not list((tmp_path / "out").iterdir())  # so that the same command runs elsewhere


@pytest.mark.parametrize("kind", ["under a file", "of another run"])
def test_out_that_cannot_be_written_is_one_line_before_anything_runs(
    tmp_path, capsys, monkeypatch, kind
):
    monkeypatch.setattr(machine, "look", lambda: pytest.fail("it has looked for a device"))
    if kind == "under a file":
        (tmp_path / "file").write_text("")
        out = tmp_path / "file" / "out"
    else:
        out = tmp_path
        Rows(out).add(case("a").row("s", "ok", **found()))
        capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    assert program.main(["--tiny", "--out", str(out)]) == 1
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "--out" in shown.err and str(out) in shown.err
    assert shown.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_minutes_are_a_number_above_zero(capsys):
    for minutes in ("0", "-1", "nan", "inf"):
        with pytest.raises(SystemExit, match="2"):
            program.main([f"--minutes={minutes}"])
    assert "must be a number above 0" in capsys.readouterr().err


def test_cases_of_full_and_tiny_runs_are_planned_without_a_device():
    for section in SECTIONS:
        for tiny in (False, True):
            keys = [str(case.key) for case in section.cases(tiny)]
            assert keys and len(set(keys)) == len(keys), section.name


def test_full_plan_has_what_the_issue_lists():
    planned = {section.name: section.cases(False) for section in SECTIONS}
    images = {(case.about["model"], case.size) for case in planned["2 images"]}
    assert images == {
        *(("ViT-B/32", batch) for batch in (1, 32, 256, 1024)),
        *((model, 256) for model in ("ViT-B/16", "ViT-L/14", "ViT-L/14@336px", "RN50")),
    }
    assert {case.about["model"] for case in planned["1 parity"]} == {
        "ViT-B/32",
        "ViT-L/14",
        "RN50",
    }
    assert {case.size for case in planned["6 embedding job"]} == {20_000}
    assert {case.size for case in planned["7 search and probe"]} >= {10_000_000, 50_000}


@pytest.mark.long
def test_tiny_run_measures_every_section(tmp_path):
    """The whole program, as somebody starts it; what it takes is most of this file's time."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "benchmarks.accelerator", "--tiny", "--out", str(tmp_path)]
    command += ["--minutes", "60"]  # on a machine that does much else
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    rows, log = Rows(tmp_path).read(), (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, done.stderr + log
    bad = [row for row in rows if row["status"] not in ("ok", "not here")]
    assert not bad, log
    for section in SECTIONS:
        assert any(row["status"] == "ok" for row in rows if row["section"] == section.name)
        assert len(section.cases(True)) == sum(row["section"] == section.name for row in rows)
    peers = [row["status"] for row in rows if row["contender"].startswith("PyTorch")]
    assert set(peers) == ({"ok"} if reference.available() else {"not here"})
    # Ours and theirs have the same weights, and the model on the CPU device computes as it should.
    for row in rows:
        if "float32 highest" in row["contender"] or "float64" in row["contender"]:
            assert row["status"] == "not here" or row["value"] < 1e-5
        assert row.get("difference", 0) < 2e-2  # bfloat16
    assert (tmp_path / "table.md").read_text() in done.stdout
    assert done.stdout.count("\n") > len(rows)


def test_table_of_no_rows_is_a_table():
    text = table.text([], CPU, tiny=True)
    assert "not measured" in text and "Tiny" in text
