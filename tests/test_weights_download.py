"""Downloads: a real server on this machine, real processes, real files."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clip_jax.errors import DownloadError
from clip_jax.weights import download
from tests.limits import files_end_at
from tests.model_files import names_below
from tests.processes import wait_until
from tests.servers import Server, fetch

pytestmark = pytest.mark.usefixtures("no_pause")


def start_fetch(server: Server, path: Path) -> subprocess.Popen:
    """The same in another process."""
    program = (
        "import sys, pathlib; from clip_jax.weights.download import fetch;"
        "fetch(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, server.url, server.sha256, str(path)],
        stderr=subprocess.PIPE,
        text=True,
    )


def test_download_leaves_the_file_and_nothing_else(server, tmp_path):
    fetch(server, tmp_path / "new" / "file.bin")
    assert (tmp_path / "new" / "file.bin").read_bytes() == server.body
    assert names_below(tmp_path) == ["new", "new/file.bin"]


def test_right_file_is_not_fetched_again(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(server.body)
    fetch(server, tmp_path / "file.bin")
    assert server.requests == []


def test_wrong_file_is_replaced(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"old")
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == server.body


def test_progress_goes_to_standard_error(server, tmp_path, capsys):
    download.fetch(server.url, server.sha256, tmp_path / "file.bin")
    captured = capsys.readouterr()
    assert captured.out == "" and "file.bin" in captured.err and "100%" in captured.err


def test_cut_connection_is_resumed_where_it_was_cut(server, tmp_path):
    server.cut_after = [1_500_000, 100_000]
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == server.body
    assert server.requests == [None, "bytes=1500000-", "bytes=1600000-"]


def test_download_that_is_always_cut_keeps_what_came_for_the_next_run(server, tmp_path):
    path = tmp_path / "file.bin"
    server.cut_after = [1000] * download.ATTEMPTS
    with pytest.raises(DownloadError, match="cut after 3,000 of 2,000,003 bytes") as error:
        fetch(server, path)
    assert server.url in str(error.value) and str(path) in str(error.value)
    assert names_below(tmp_path) == ["file.bin.part"]
    fetch(server, path)
    assert server.requests[-1] == "bytes=3000-"
    assert path.read_bytes() == server.body


def test_server_without_ranges_is_read_from_the_start(server, tmp_path):
    server.ranges = False
    server.cut_after = [1000]
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == server.body


def test_complete_part_needs_no_request(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(server.body)
    fetch(server, tmp_path / "file.bin")
    assert server.requests == []
    assert names_below(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("extra", [0, 5])
def test_part_that_is_something_else_and_too_long_is_dropped(server, tmp_path, extra):
    (tmp_path / "file.bin.part").write_bytes(b"x" * (len(server.body) + extra))
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == server.body


def test_part_of_something_else_is_dropped(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == server.body
    assert server.requests == ["bytes=1000-", None]


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    server.body = server.body[:-1] + b"?"
    with pytest.raises(DownloadError, match="SHA-256 should be") as error:
        fetch(server, tmp_path / "file.bin")
    assert server.sha256 in str(error.value)
    assert names_below(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404])
def test_refusal_is_quoted_and_not_repeated(server, tmp_path, status):
    server.status = [status]
    with pytest.raises(DownloadError, match=f"answered {status}"):
        fetch(server, tmp_path / "file.bin")
    assert len(server.requests) == 1
    assert not (tmp_path / "file.bin").exists()


def test_busy_server_is_asked_again(server, tmp_path):
    server.status = [503, 429]
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == server.body


def test_web_page_instead_of_the_file_does_not_harm_the_part(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(server.body[:1000])
    server.ranges = False
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="web page"):
        fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin.part").read_bytes() == server.body[:1000]
    assert not (tmp_path / "file.bin").exists()


def test_no_space_is_noticed_before_the_download(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(DownloadError, match="No space left.*CLIP_JAX_CACHE"):
        fetch(server, tmp_path / "file.bin")
    assert names_below(tmp_path) == []


def test_disk_that_refuses_in_the_middle_is_left_clean(server, tmp_path):
    with files_end_at(1_000_000), pytest.raises(DownloadError, match="File too large"):
        fetch(server, tmp_path / "file.bin")
    assert names_below(tmp_path) == []
    assert len(server.requests) == 1


def test_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="File exists .*download_root="):
        fetch(server, tmp_path / "file" / "file.bin")
    assert server.requests == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(server, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DownloadError, match="Permission denied"):
        fetch(server, tmp_path / "file.bin")


def test_no_permission_for_the_lock(server, tmp_path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(download, "open", refuse, raising=False)
    with pytest.raises(DownloadError, match="Permission denied"):
        fetch(server, tmp_path / "file.bin")
    assert names_below(tmp_path) == []


def test_killed_download_leaves_no_lock_and_is_resumed(server, tmp_path):
    path, part = tmp_path / "file.bin", tmp_path / "file.bin.part"
    server.stall_after = 1_500_000
    process = start_fetch(server, path)
    wait_until(lambda: part.exists() and part.stat().st_size > 1_000_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not path.exists()
    kept = part.stat().st_size
    server.stall_after = None
    server.go.set()
    fetch(server, path)
    assert server.requests == [None, f"bytes={kept}-"]
    assert path.read_bytes() == server.body
    assert names_below(tmp_path) == ["file.bin"]


def test_two_processes_download_once(server, tmp_path):
    path = tmp_path / "file.bin"
    server.stall_after = 1_000_000
    first = start_fetch(server, path)
    wait_until(lambda: server.requests)
    second = start_fetch(server, path)
    assert second.stderr is not None
    assert "waiting for another process" in second.stderr.readline()
    server.go.set()
    first.communicate(timeout=20), second.communicate(timeout=20)
    assert (first.returncode, second.returncode) == (0, 0)
    assert server.requests == [None]
    assert path.read_bytes() == server.body
    assert names_below(tmp_path) == ["file.bin"]
