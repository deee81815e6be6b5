"""Two of the same embedding job at once, and two jobs that want one folder."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clip_jax import locks
from clip_jax.embed import embed, read_embeddings
from clip_jax.embed.engines import local
from clip_jax.embed.part_builder import PartBuilder
from clip_jax.locks import InUse, locked
from clip_jax.search import search
from clip_jax.storage import Disk
from clip_jax.unfinished import aside, is_abandoned
from tests.embedding_jobs import QUIET, contents, rows, start
from tests.pictures import noise

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


LOCK = ".share-0-of-1.lock"


OPTIONS = {"rows_per_part": 4, **QUIET}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for i in range(12):
        (folder / f"{i:02d}.png").write_bytes(noise(i))
    return folder


@pytest.fixture(scope="module")
def undisturbed(compiled_once, pictures, model, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("out") / "undisturbed"
    embed(pictures, model, out, **OPTIONS)
    return contents(out)


@pytest.fixture
def begun(pictures, model, tmp_path, undisturbed) -> Path:
    """The folder of a job that has parts still to do."""
    out = tmp_path / "begun"
    embed(pictures, model, out, **OPTIONS)
    (out / "part-000000-000001.parquet").unlink()
    return out


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "DYING", 0.3)


def process(program: str, *arguments: object) -> subprocess.Popen:
    """Another process, once it has printed a line."""
    command = [
        sys.executable,
        "-c",
        f"import sys, time\n{program}\nprint(flush=True)\ntime.sleep(99)",
    ]
    found = subprocess.Popen([*command, *map(str, arguments)], stdout=subprocess.PIPE)
    assert found.stdout is not None and found.stdout.readline() == b"\n"
    return found


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


HOLD = "from clip_jax.locks import locked\nheld = locked(sys.argv[1], 'x')\nheld.__enter__()"


WRITE = "from clip_jax.unfinished import aside\nopen(aside(sys.argv[1]), 'w').close()"


# --- the lock


def test_the_second_is_refused_in_a_line_that_names_the_first(
    pictures, model, begun, undisturbed, impatient
):
    first = process(HOLD, begun / LOCK)
    before = contents(begun)
    with pytest.raises(
        InUse, match=rf"another process \({first.pid} on .*\) is at work in {begun}"
    ):
        embed(pictures, model, begun, **OPTIONS)
    assert contents(begun) == before
    assert embed(pictures, model, begun, dry_run=True, **OPTIONS).parts_to_do == 1
    kill(first)  # whose lock ends with it, though its file is there
    assert embed(pictures, model, begun, **OPTIONS).parts == 1
    assert contents(begun) == undisturbed


def test_one_that_is_dying_is_waited_for(pictures, model, begun, undisturbed):
    first = process(HOLD, begun / LOCK)
    threading.Timer(0.5, first.send_signal, [signal.SIGKILL]).start()
    assert embed(pictures, model, begun, **OPTIONS).parts == 1
    assert contents(begun) == undisturbed
    first.communicate()


def test_a_job_that_begins_is_locked_before_its_first_part(
    pictures, model, tmp_path, impatient, undisturbed
):
    (tmp_path / "out").mkdir()
    first = process(HOLD, tmp_path / "out" / LOCK)
    with pytest.raises(InUse):
        embed(pictures, model, tmp_path / "out", **OPTIONS)
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {LOCK, "job.json", "inputs"}
    kill(first)
    embed(pictures, model, tmp_path / "out", **OPTIONS)
    assert contents(tmp_path / "out") == undisturbed


def test_shares_have_locks_of_their_own(pictures, model, begun, undisturbed, impatient):
    with locked(str(begun / ".share-0-of-2.lock"), "x"):
        assert embed(pictures, model, begun, shard=(1, 2), **OPTIONS).parts == 1
        with pytest.raises(InUse, match="is at work in share 0/2 of"):
            embed(pictures, model, begun, shard=(0, 2), **OPTIONS)
    assert contents(begun) == undisturbed


def test_of_many_that_want_a_lock_one_has_it(tmp_path):
    path, holders, most = str(tmp_path / "lock"), [], []

    def hold():
        for _ in range(20):
            with locked(path, "x"):
                holders.append(1)
                most.append(len(holders))
                time.sleep(0.0005)
                holders.pop()

    threads = [threading.Thread(target=hold) for _ in range(6)]
    locks_every, locks._EVERY = locks._EVERY, 0.0003
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    locks._EVERY = locks_every
    assert most == [1] * 120
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_jobs_run_without(
    pictures, model, begun, undisturbed, monkeypatch, code
):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert embed(pictures, model, begun, **OPTIONS).parts == 1
    assert contents(begun) == undisturbed


# --- unfinished files


def test_what_a_living_process_writes_is_left_alone_and_what_a_dead_one_wrote_is_not(
    pictures, model, begun, undisturbed
):
    twin = process(WRITE, begun / "part-000000-000001.parquet")
    (own,) = begun.glob(".part*.aside")
    embed(pictures, model, begun, **OPTIONS)
    assert contents(begun) == undisturbed | {own.name: b""}
    kill(twin)
    embed(pictures, model, begun, **OPTIONS)
    assert contents(begun) == undisturbed


def test_who_is_on_another_machine_is_dead_after_a_day(tmp_path):
    host, pid, life, number = aside("x").removesuffix(".aside").rpartition(".")[2].split("-")
    ours = [f".x.{host}-{pid}-{life}-{number}.aside"]
    dead = [f".x.{host}-{pid}-{'0' * 8}-{number}.aside", f".x.{host}-{2**22 + 1}-{life}-0.aside"]
    others = [f".x.{'0' * 12}-{pid}-{life}-0.aside", f".x.{'a1' * 16}.aside"]  # an older version's
    for name in (*ours, *dead, *others):
        (tmp_path / name).touch()
    assert [is_abandoned(tmp_path / name) for name in ours] == [False]
    assert [is_abandoned(tmp_path / name) for name in dead] == [True, True]
    assert [is_abandoned(tmp_path / name) for name in others] == [False, False]
    for name in (*ours, *others):
        os.utime(tmp_path / name, (time.time() - 90_000,) * 2)
    assert [is_abandoned(tmp_path / name) for name in ours] == [False]
    assert [is_abandoned(tmp_path / name) for name in others] == [True, True]


def test_the_same_command_twice_at_once_is_one_job(pictures, model, tmp_path):
    import clip_jax

    clip_jax.save(model, tmp_path / "model")
    with (tmp_path / "log").open("w") as log:
        twins = [start(tmp_path / "model", pictures, tmp_path / "out", log) for _ in range(2)]
        codes = [twin.wait(timeout=200) for twin in twins]
    assert codes == [0, 0], (tmp_path / "log").read_text()
    assert sorted(rows(tmp_path / "out")["key"]) == [f"{i:02d}.png" for i in range(12)]
    assert not [name for name in contents(tmp_path / "out") if name.startswith(".")]


def test_twins_on_a_store_which_has_no_locks_write_the_same(pictures, model, undisturbed):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    problems = []

    def run():
        try:
            embed(pictures, model, "memory://twins/out", **OPTIONS)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    found = memory.find("/twins/out")
    assert {
        name.removeprefix("/twins/out/"): memory.cat_file(name) for name in found
    } == undisturbed


def test_a_retry_beside_another_doubles_no_row(pictures, model, tmp_path, monkeypatch):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for i in range(6):
        memory.pipe_file(f"/retry/in/{i}.png", b"bad" if i in (1, 2) else noise(i))
    source, out = "memory://retry/in", "memory://retry/out"
    assert embed(source, model, out, **OPTIONS).errors == 2
    for i in (1, 2):
        memory.pipe_file(f"/retry/in/{i}.png", noise(i))
    finish, twins = PartBuilder.finish, []

    def twin_is_quicker(self):
        if not twins:
            twins.append(1)
            assert embed(source, model, out, retry_errors=True, **OPTIONS).rows == 2
        finish(self)

    monkeypatch.setattr(PartBuilder, "finish", twin_is_quicker)
    embed(source, model, out, retry_errors=True, **OPTIONS)
    keys = read_embeddings(out).to_table()["key"].to_pylist()
    assert keys == [f"{i}.png" for i in range(6)]


# --- whose folder it is


def other_job(out: str) -> bytes:
    """What another job would note, a moment before ours."""
    identity = {"model": "m", "format": "parquet", "dtype": "float32", "rows_per_part": 1}
    noted = {"model": None, "image_column": "i", "embeddings": {"embedding": "image"}, "dim": 9}
    return json.dumps({"fingerprint": "0" * 16, "identity": identity, **noted}).encode()


@pytest.mark.parametrize("has_links", [True, False])
def test_of_two_jobs_that_claim_a_folder_at_once_one_is_refused(
    pictures, model, tmp_path, monkeypatch, has_links
):
    out, create = tmp_path / "out", Disk.create

    def other_is_quicker(self, path, data):
        out.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError), open(path, "xb") as file:
            file.write(other_job(path))
        return create(self, path, data)

    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(Disk, "create", other_is_quicker)
    with pytest.raises(ValueError, match="holds the output of another job, "):
        embed(pictures, model, out, **OPTIONS)
    assert contents(out) == {"job.json": other_job("")}


def test_a_folder_is_claimed_where_files_can_not_be_linked(
    pictures, model, tmp_path, monkeypatch, undisturbed
):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    embed(pictures, model, tmp_path / "out", **OPTIONS)
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("is_conditional", [True, False])
def test_of_two_jobs_that_claim_a_place_on_a_store_one_is_refused(
    pictures, model, monkeypatch, is_conditional
):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    out, pipe = f"memory://claim/{is_conditional}", memory.pipe_file

    def other_is_there_too(path, data, mode="overwrite", **options):
        if path.endswith("job.json"):
            if is_conditional:
                pipe(path, other_job(""))
            elif mode == "create":
                raise NotImplementedError
        pipe(path, data, mode=mode, **options)

    made = local.encoder_of

    def later(*arguments):
        if not is_conditional:
            pipe(f"/claim/{is_conditional}/job.json", other_job(""))
        return made(*arguments)

    monkeypatch.setattr(memory, "pipe_file", other_is_there_too)
    monkeypatch.setattr(local, "encoder_of", later)
    with pytest.raises(ValueError, match="holds the output of another job, "):
        embed(pictures, model, out, **OPTIONS)
    found = [path for path in memory.find(f"/claim/{is_conditional}") if "/inputs/" not in path]
    assert found == [f"/claim/{is_conditional}/job.json"]


def test_what_a_damaged_note_advises_works(pictures, model, begun, undisturbed):
    embed(pictures, model, begun, **OPTIONS)
    (begun / "job.json").write_text("damaged")
    with pytest.raises(ValueError, match="remove it, and start the same job again"):
        embed(pictures, model, begun, **OPTIONS)
    (begun / "job.json").unlink()
    assert embed(pictures, model, begun, **OPTIONS).parts == 0
    assert contents(begun) == undisturbed
    assert len(search(begun, model, "x")) == 10


def test_another_job_does_not_take_a_folder_whose_note_is_gone(pictures, model, begun):
    (begun / "job.json").unlink()
    before = contents(begun)
    for options in (
        {"dtype": "float16"},
        {"rows_per_part": 5},
        {"dry_run": True, "exif_transpose": True},
    ):
        with pytest.raises(
            ValueError, match="holds parts of another job, [0-9a-f]{16}, and no job"
        ):
            embed(pictures, model, begun, **{**OPTIONS, **options})
    assert contents(begun) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fingerprint", 1),
        ("model", ["x"]),
        ("image_column", None),
        ("embeddings", []),
        ("embeddings", {"text_embedding": "text"}),
        ("dim", "16"),
        ("dim", True),
        ("shards", "many"),
        ("identity", {}),
        ("identity.format", ["parquet"]),
        ("identity.dtype", "int8"),
        ("identity.rows_per_part", 0),
        ("identity.model", 7),
    ],
)
def test_a_note_of_other_types_is_damaged(model, pictures, tmp_path, undisturbed, name, value):
    note = json.loads(undisturbed["job.json"])
    inside, _, last = name.rpartition(".")
    (note[inside] if inside else note)[last] = value
    (tmp_path / "job.json").write_text(json.dumps(note))
    for read in (search, lambda out, model, _: embed(pictures, model, out, **OPTIONS)):
        with pytest.raises(ValueError, match="job.json is damaged: remove it"):
            read(tmp_path, model, "x")
