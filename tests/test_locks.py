"""The lock that is a file: by whom it is held, and that it ends with its holder."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from clip_jax import locks
from clip_jax.locks import InUse, locked

HOLD = """
    import os, sys, time
    from clip_jax.locks import locked
    held = locked(sys.argv[1], "x")
    held.__enter__()
    {then}
    print(flush=True)
    time.sleep(99)
"""


def holder(path: Path, then: str = "pass") -> subprocess.Popen:
    """Another process, which holds the lock."""
    program = textwrap.dedent(HOLD).format(then=then)
    process = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    return process


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "x.lock"


def test_who_waits_is_told_once_and_who_gives_up_names_the_holder(path):
    first, told = holder(path), []
    begin = time.monotonic()
    with pytest.raises(InUse, match=rf"another process \({first.pid} on .*\) is at work in here"):
        with locked(path, "here", timeout=0.3, on_wait=lambda: told.append(1)):
            pass
    assert 0.3 <= time.monotonic() - begin < 5 and told == [1]
    kill(first)


def test_the_lock_of_a_killed_process_is_free_at_once(path):
    kill(holder(path))
    assert path.exists()
    with locked(path, "here", timeout=0.0):
        assert path.read_text().startswith(f"{os.getpid()} on ")
    assert not path.exists()


def test_a_lock_ends_with_its_process_and_not_with_those_that_it_has_forked(path):
    first = holder(path, then="os.fork() or (time.sleep(9), os._exit(0))")
    first.send_signal(signal.SIGKILL)
    first.wait()
    with locked(path, "here", timeout=4):  # a process takes a moment to be forked
        pass
    assert first.stdout is not None
    first.stdout.close()


def test_a_file_that_its_holder_removes_while_another_waits_is_no_lock(path, monkeypatch):
    """Even where it is still there under another name, as on NFS."""
    monkeypatch.setattr(locks, "_EVERY", 0.01)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def release() -> None:
            os.rename(path, path.with_name(".nfs0123"))
            fcntl.flock(file, fcntl.LOCK_UN)

        with locked(path, "here", timeout=5, on_wait=release):
            assert path.read_text().startswith(f"{os.getpid()} on ")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_locks_nothing_is_left_behind(path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(path, "here"):
        pass
    assert not path.exists()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_where_nothing_can_be_written_the_block_runs_without(path, monkeypatch, code):
    def refuse(name, *_, **__):
        raise OSError(code, os.strerror(code), name)

    monkeypatch.setattr(os, "open", refuse)
    ran = False
    with locked(path, "here"):
        ran = True
    assert ran


def test_what_is_no_file_is_an_error_that_names_it(path):
    path.mkdir()
    with pytest.raises(OSError) as caught, locked(path, "here"):
        pass
    assert caught.value.filename == str(path)
