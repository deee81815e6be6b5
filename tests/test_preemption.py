"""SIGTERM as schedulers send it: what is under way is finished in time or dropped."""

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.cli import main
from clip_jax.embed.counts import Counts
from clip_jax.embed.engines import stopping
from clip_jax.embed.engines.stopping import Stopping
from tests import quickly
from tests.embedding_jobs import contents
from tests.models import SMALL_VIT, small
from tests.processes import free_port
from tests.training_runs import checkpoints_of

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.long

SCRIPT = Path(sys.executable).with_name("clip-jax")
PARTS, ROWS = 8, 16


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A model, and pictures that take some time to decode."""
    root = tmp_path_factory.mktemp("preemption")
    clip_jax.save(small(SMALL_VIT), root / "model")
    (root / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    for i in range(PARTS * ROWS):
        pixels[0, 0] = i
        Image.fromarray(pixels).save(root / "in" / f"{i:03d}.jpg", quality=95)
    return root


def start(root: Path, words: list, elsewhere: Path, **environment: str) -> subprocess.Popen:
    """The installed command, in another folder than that of anything it reads or writes."""
    return subprocess.Popen(
        [SCRIPT, *words],
        cwd=elsewhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | quickly.ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": "1"} | environment,
    )


def embedding(root: Path, out: Path, *options: object) -> list:
    words = ["embed", root / "in", "--out", out, "--model", root / "model", "--threads", 1]
    words += ["--rows-per-part", ROWS, "--batch-size", 1, *options]
    return list(map(str, words))


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory) -> dict[str, bytes]:
    """What the job leaves that nobody stops."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    process = start(root, embedding(root, root / "undisturbed"), elsewhere)
    assert process.communicate(timeout=100) and not process.returncode
    return contents(root / "undisturbed")


def parts_in(out: Path) -> int:
    return len(list(out.glob("part-*")))


def wait_for_parts(out: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 100
    while parts_in(out) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def end(process: subprocess.Popen, *numbers: int, between: float = 0.0) -> tuple[str, float]:
    """Sends signals; gives the last line that is said, and the seconds from the last signal on."""
    for number in numbers[:-1]:
        process.send_signal(number)
        time.sleep(between)
    begin = time.monotonic()
    process.send_signal(numbers[-1])
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    return said.splitlines()[-1], time.monotonic() - begin


def check(out: Path, whole: dict[str, bytes], said: str) -> int:
    """Checks that nothing is half-written, and all of it kept as it says; gives its parts."""
    there = contents(out)
    assert all(whole[name] == data for name, data in there.items())
    count = parts_in(out)
    assert said.startswith("clip-jax: terminated; ") and "the same command goes on" in said
    now, before = re.findall(r"(\d+) (?:parts? )?written", said)
    assert int(now) + int(before) == count
    return count


@pytest.fixture
def hanging(root, tmp_path):
    """A table of which one picture is never sent; and whether it was asked for."""
    asked, over = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.set()
            over.wait(60)

        do_HEAD = do_GET

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    paths = [str(root / "in" / f"{i:03d}.jpg") for i in range(ROWS + ROWS // 2)]
    paths += [f"http://127.0.0.1:{server.server_port}/a.jpg"] * (ROWS // 2)
    table = tmp_path / "hanging.csv"
    table.write_text("".join(f"{path}\n" for path in ("image", *paths)))
    yield table, asked
    over.set()
    server.shutdown()
    server.server_close()


def half_way(root: Path, hanging, out: Path, *options: str) -> subprocess.Popen:
    """A job that has written a part, and has half of the next when a picture doesn't come."""
    table, asked = hanging
    words = [str(table) if word == str(root / "in") else word for word in embedding(root, out)]
    process = start(root, [*words, *options], out.parent)
    wait_for_parts(out, 1, process)
    assert asked.wait(60)
    time.sleep(1.0)
    return process


@pytest.mark.parametrize(
    ("number", "options"), [(signal.SIGTERM, []), (signal.SIGUSR1, ["--signal", "USR1"])]
)
def test_the_part_under_way_is_finished_and_the_same_command_goes_on(
    root, undisturbed, tmp_path, number, options
):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    after = 0
    for _ in range(3):  # it may come between two parts, when there is nothing to finish
        process = start(root, embedding(root, out, "--grace", "30", *options), elsewhere)
        wait_for_parts(out, after + 1, process)
        time.sleep(0.1)
        before = parts_in(out)
        said, seconds = end(process, number)
        after = check(out, undisturbed, said)
        assert seconds < 30
        if after > before:
            break
    assert before < after < PARTS
    words = embedding(root, out, *options)
    process = start(root, words, elsewhere)
    assert f"{after * ROWS:,} rows before" in process.communicate(timeout=100)[0]
    assert contents(out) == undisturbed and not list(elsewhere.iterdir())


def test_the_part_under_way_is_dropped_where_there_is_no_time(root, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start(root, embedding(root, out, "--grace", "0"), tmp_path)
    wait_for_parts(out, 2, process)
    said, seconds = end(process, signal.SIGTERM)
    assert check(out, undisturbed, said) < PARTS and seconds < 8


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(root, hanging, tmp_path, second):
    process = half_way(root, hanging, tmp_path / "out", "--grace", "1000")
    said, seconds = end(process, signal.SIGTERM, second, between=1.3)
    assert said.startswith("clip-jax: ended at once; what was finished is kept") and seconds < 1.5
    assert parts_in(tmp_path / "out") == 1


def test_what_takes_longer_than_it_was_likely_to_is_dropped_in_time(root, hanging, tmp_path):
    process = half_way(root, hanging, tmp_path / "out", "--grace", "8")
    said, seconds = end(process, signal.SIGTERM)
    assert said.startswith("clip-jax: terminated; 1 part written now") and 5 < seconds < 8
    assert parts_in(tmp_path / "out") == 1


@pytest.mark.parametrize(
    "moment", [0.3, 1.2, *(pytest.param(m / 5, marks=pytest.mark.slow) for m in range(40))]
)
def test_a_command_that_is_only_starting_is_gone_at_once(root, tmp_path, moment):
    process = start(root, embedding(root, tmp_path / "out", "--grace", "30"), tmp_path)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:  # until it takes signals
        caught = next(line for line in status.read_text().splitlines() if "SigCgt" in line)
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            break
    time.sleep(moment)
    said, seconds = end(process, signal.SIGTERM)
    assert said.startswith("clip-jax: terminated") and seconds < 2.5
    assert not parts_in(tmp_path / "out")


def test_a_part_is_finished_only_if_it_is_likely_to_be_in_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    counts = Counts()
    with Stopping(30, counts, has_texts=False) as job:
        job._asked = lambda: None  # deferring is the command line's
        for left in range(99, -1, -1):  # a row a second, a part of 100
            now[0] += 1.0
            counts.rows += 1
            if left == 99:
                job._begun, job._begun_with = now[0], counts.rows
                assert not job.may_finish()  # nothing is known yet
            job.added(left, 100)
            if left == 50:
                assert not job.may_finish()
            if left == 22:
                assert job.may_finish()
                counts._seconds["writing"] = 2.0
                assert not job.may_finish()  # 22 rows and 2 seconds are more than 22.5
                counts._seconds["writing"] = 0.0
        job.handed_over(100)
        assert not job.may_finish()  # between two parts there is nothing to finish


def test_the_options_are_checked(capsys, tmp_path):
    for options in (["--grace", "soon"], ["--grace", "-1"], ["--signal", "KILL"]):
        with pytest.raises(SystemExit) as stop:
            main(["embed", "in", "--out", str(tmp_path / "out"), *options])
        assert stop.value.code == 2 and options[0] in capsys.readouterr().err


def together(root: Path, words: list, folder: Path) -> list[subprocess.Popen]:
    """Two processes of a command that joins them."""
    port = str(free_port())
    return [
        start(
            root,
            [*words, "--distributed"],
            folder,
            JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
            JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
        )
        for index in range(2)
    ]


def test_processes_that_embed_together_each_end_by_their_signal(root, undisturbed, tmp_path):
    out = tmp_path / "out"
    running = together(root, embedding(root, out, "--grace", "20"), tmp_path)
    wait_for_parts(out, 2, running[0])
    begin = time.monotonic()
    for process in running:
        process.send_signal(signal.SIGTERM)
    ends = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [143, 143], ends
    assert time.monotonic() - begin < 20
    assert all("terminated; " in said and "the same command goes on" in said for said in ends)
    assert all(undisturbed[name] == data for name, data in contents(out).items())


TRAINING = """
out = "{out}"
model = {{from = "{model}"}}
data = {{train = "{data}"}}
optimizer = {{learning_rate = 1e-4, warmup_steps = 1, total_steps = 100000}}
run = {{batch_size = 8, log_every = 1, checkpoint_every = 100000}}
"""


def training(root: Path, folder: Path) -> list[str]:
    """A training of many short steps."""
    data, toml = root / "captions.jsonl", folder / "small.toml"
    if not data.exists():
        rows = []
        for i in range(16):
            image = Image.new("RGB", (32, 32), (i, 2 * i, 3 * i))
            image.save(root / f"{i}.png")
            rows.append({"image": f"{i}.png", "caption": f"number {i}"})
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    toml.write_text(TRAINING.format(out=folder / "run", model=root / "model", data=data))
    return ["train", str(toml), "--grace", "60", "--signal", "USR1"]


def wait_for_step(folder: Path, *running: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    metrics = folder / "run" / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert all(process.poll() is None for process in running) and time.monotonic() < deadline
        time.sleep(0.01)


def test_a_training_saves_its_step_and_ends(root, tmp_path):
    pytest.importorskip("orbax.checkpoint")
    process = start(root, training(root, tmp_path), tmp_path)
    wait_for_step(tmp_path, process)
    said, seconds = end(process, signal.SIGUSR1)
    (step,) = checkpoints_of(tmp_path / "run")
    assert f"terminated; the same command goes on from step {step}" in said and seconds < 60


@pytest.mark.parametrize(
    "number", [signal.SIGUSR1, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_processes_that_train_together_save_one_step_and_end(root, tmp_path, number):
    pytest.importorskip("orbax.checkpoint")
    running = together(root, training(root, tmp_path), tmp_path)
    wait_for_step(tmp_path, *running)
    for process in running:
        process.send_signal(number)
    ends = [process.communicate(timeout=100)[1] for process in running]
    assert [process.returncode for process in running] == [143, 143], ends
    (step,) = checkpoints_of(tmp_path / "run")
    assert all(f"goes on from step {step}" in said for said in ends)
