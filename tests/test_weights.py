"""Names and paths to models: a real server on this machine, real processes, real files."""

import contextlib
import dataclasses
import errno
import hashlib
import http.server
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import clip_jax.catalog
from clip_jax.catalog import CATALOG, CatalogEntry
from clip_jax.cli import main
from clip_jax.config import CLIPConfig
from clip_jax.convert.pytorch import from_pytorch, to_pytorch
from clip_jax.convert.reader import read_checkpoint
from clip_jax.errors import CheckpointError, DownloadError
from clip_jax.nn import CLIP, flatten, from_parameters, parameters, unflatten
from clip_jax.weights import (
    cache_root,
    cached,
    download,
    load,
    official_file,
    read_native,
    replace,
    save,
    save_parameters,
)
from tests.models import SMALL_RESNET, SMALL_VIT, random_images, random_parameters


def with_few_words(config: CLIPConfig) -> CLIPConfig:
    """A configuration with a vocabulary of few words, so that its files are small."""
    return dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=61))


VIT, RESNET = with_few_words(SMALL_VIT), with_few_words(SMALL_RESNET)


def some_model(config: CLIPConfig, seed: int = 0) -> CLIP:
    return from_parameters(config, random_parameters(config, seed))


def same(given, expected) -> bool:
    """Whether two trees have the same paths and bits."""
    given, expected = flatten(given), flatten(expected)
    return given.keys() == expected.keys() and all(
        np.array_equal(np.asarray(given[path]), np.asarray(expected[path])) for path in expected
    )


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- a server -----------------------------------------------------------------------------------


class Server:
    """Serves one file, well or badly."""

    def __init__(self, body: bytes):
        self.body = body
        self.ranges = True  # whether it knows them
        self.cut_after: list[int] = []  # for each request in turn, bytes before it hangs up
        self.status: list[int] = []  # for each request in turn, instead of an answer
        self.content_type = "application/octet-stream"
        self.requests: list[str | None] = []  # the Range of each
        self.stall_after: int | None = None  # bytes before it waits for `go`
        self.go = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}"
        self.url = f"{self.base}/file.bin"
        self.sha256 = hashlib.sha256(body).hexdigest()
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        span = handler.headers.get("Range")
        self.requests.append(span)
        if self.status:
            handler.send_error(self.status.pop(0))
            return
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and self.ranges else 0
        if start and start >= len(self.body):
            handler.send_error(416)
            return
        body = self.body[start:]
        handler.send_response(206 if start else 200)
        if start:
            end = len(self.body)
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        handler.send_header("Content-Type", self.content_type)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if self.cut_after:
            body = body[: self.cut_after.pop(0)]
        with contextlib.suppress(ConnectionError):
            if self.stall_after is not None:
                handler.wfile.write(body[: self.stall_after])
                handler.wfile.flush()
                self.go.wait(20)
                body = body[self.stall_after :]
            handler.wfile.write(body)

    def close(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server():
    server = Server(np.random.default_rng(0).bytes(2_000_003))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)


def fetch(server: Server, path: Path) -> None:
    download.fetch(server.url, server.sha256, path, progress=False)


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


def wait_until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


# ---- download -----------------------------------------------------------------------------------


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


@contextlib.contextmanager
def files_end_at(size: int):
    """A disk that takes no more: writing fails in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


# ---- names --------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder without anything in it."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for variable in ("CLIP_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    return home


@pytest.fixture
def tiny(monkeypatch, home):
    """A server with the official-format file of a model named "tiny"."""
    body = safetensors.numpy.save(to_pytorch(VIT, random_parameters(VIT)))
    server = Server(body)
    entry = CatalogEntry("tiny", VIT, "tiny.pt", server.sha256, 0, 0, 0.0)
    monkeypatch.setitem(CATALOG, "tiny", entry)
    monkeypatch.setattr(clip_jax.catalog, "_BASE", server.base)
    yield server
    server.close()


def native_name(server: Server) -> str:
    return f"tiny-{server.sha256[:12]}-v1"


def test_name_is_downloaded_and_converted_once(tiny, home):
    root = home / ".cache" / "clip_jax"
    assert not cached("tiny")
    model, preprocess = load("tiny")
    assert same(parameters(model), random_parameters(VIT))
    assert model.config == VIT and preprocess.image_size == VIT.vision.image_size
    assert cached("tiny")
    folder = native_name(tiny)
    files = [folder, f"{folder}/config.json", f"{folder}/model.safetensors", "tiny.pt"]
    assert names_below(root) == files

    (root / "tiny.pt").unlink()  # the second load needs no more than the native folder
    again, _ = load("tiny")
    assert same(parameters(again), random_parameters(VIT))
    assert tiny.requests == [None]
    assert cached("tiny")


@pytest.mark.parametrize(
    "own, xdg, expected",
    [
        ("own", "xdg", "own"),
        (None, "xdg", "xdg/clip_jax"),
        (None, None, "home/.cache/clip_jax"),
        ("", "", "home/.cache/clip_jax"),
    ],
)
def test_cache_root_follows_the_environment(tmp_path, home, monkeypatch, own, xdg, expected):
    for variable, value in (("CLIP_JAX_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        if value is not None:
            monkeypatch.setenv(variable, str(tmp_path / value) if value else "")
    assert cache_root() == tmp_path / expected
    assert cache_root(tmp_path / "given") == tmp_path / "given"


def test_download_root_overrides_the_cache(tiny, home, tmp_path):
    load("tiny", download_root=tmp_path / "root")
    assert (tmp_path / "root" / "tiny.pt").is_file()
    assert names_below(home) == []
    assert cached("tiny", tmp_path / "root") and not cached("tiny")


def test_file_of_the_pytorch_package_is_used_in_place(tiny, home):
    folder = home / ".cache" / "clip"
    folder.mkdir(parents=True)
    (folder / "tiny.pt").write_bytes(tiny.body)
    assert cached("tiny")
    assert official_file("tiny") == folder / "tiny.pt"
    load("tiny")
    assert tiny.requests == []
    assert not (home / ".cache" / "clip_jax" / "tiny.pt").exists()


def test_damaged_file_of_the_pytorch_package_is_not_used(tiny, home):
    folder = home / ".cache" / "clip"
    folder.mkdir(parents=True)
    (folder / "tiny.pt").write_bytes(tiny.body[:-1])
    load("tiny")
    assert tiny.requests == [None]
    assert (folder / "tiny.pt").read_bytes() == tiny.body[:-1]


def test_checksum_is_computed_only_before_the_conversion(tiny, monkeypatch):
    load("tiny")
    monkeypatch.setattr(hashlib, "file_digest", None)
    load("tiny")


def test_cache_that_cannot_hold_the_converted_form_still_loads(tiny, home):
    root = home / ".cache" / "clip_jax"
    (root / f"{native_name(tiny)}.lock").mkdir(parents=True)
    with pytest.warns(UserWarning, match="can't be kept"):
        model, _ = load("tiny")
    assert same(parameters(model), random_parameters(VIT))
    assert names_below(root) == [f"{native_name(tiny)}.lock", "tiny.pt"]


def test_interrupted_conversion_is_cleared_away(tiny, home):
    root = home / ".cache" / "clip_jax"
    (root / f".{native_name(tiny)}.0123.part").mkdir(parents=True)
    load("tiny")
    assert names_below(root)[0] == native_name(tiny)


def test_offline_says_what_to_fetch_and_where_to_put_it(tiny, home, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(clip_jax.catalog, "_BASE", base)
    place = home / ".cache" / "clip_jax" / "tiny.pt"
    with pytest.raises(DownloadError) as error:
        load("tiny")
    message = str(error.value)
    assert f"{base}/{tiny.sha256}/tiny.pt" in message and str(place) in message
    assert "no connection" in message and "\n" not in message
    assert names_below(place.parent) == []

    place.write_bytes(tiny.body)
    model, _ = load("tiny")
    assert same(parameters(model), random_parameters(VIT))


def test_wrong_checksum_of_a_name_leaves_nothing(tiny, home):
    tiny.body = tiny.body[:-4] + b"oops"
    with pytest.raises(DownloadError, match="SHA-256"):
        load("tiny")
    assert names_below(home / ".cache" / "clip_jax") == []


# ---- paths --------------------------------------------------------------------------------------


@pytest.fixture
def native_folder(tmp_path):
    save_parameters(VIT, random_parameters(VIT), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_saved_model_is_loaded_to_the_bit(tmp_path, config):
    model = some_model(config)
    save(model, tmp_path / "new" / "model")
    again, preprocess = load(tmp_path / "new" / "model")
    assert same(parameters(again), parameters(model))
    assert again.config == config and preprocess.image_size == config.vision.image_size
    images = random_images(2, config.vision.image_size)
    assert np.array_equal(again.encode_image(images), model.encode_image(images))
    assert names_below(tmp_path) == [
        "new",
        "new/model",
        "new/model/config.json",
        "new/model/model.safetensors",
    ]


def test_activation_is_saved_with_the_weights(tmp_path):
    save(some_model(dataclasses.replace(VIT, activation="gelu")), tmp_path / "model")
    assert load(str(tmp_path / "model"))[0].config.activation == "gelu"


def test_dtype_and_precision_reach_the_model(native_folder):
    model, _ = load(native_folder, dtype=jnp.bfloat16, precision="default")
    assert model.dtype == jnp.bfloat16 and model.precision == "default"
    assert all(array.dtype == jnp.float32 for array in flatten(parameters(model)).values())


def test_state_dict_file_with_another_activation(tmp_path):
    params = random_parameters(VIT)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(to_pytorch(VIT, params), path)
    assert load(path)[0].config.activation == "quick_gelu"
    model, _ = load(path, activation="gelu")
    assert model.config.activation == "gelu"
    assert same(parameters(model), params)


def test_activation_of_a_native_folder_cannot_be_overridden(native_folder):
    with pytest.raises(ValueError, match="knows its own"):
        load(native_folder, activation="gelu")


def test_half_precision_arrays_become_float32_exactly(tmp_path):
    halves = {
        path: array.astype(np.float16) if path.endswith("kernel") else array
        for path, array in flatten(random_parameters(VIT)).items()
    }
    path = tmp_path / "state.safetensors"
    safetensors.numpy.save_file(to_pytorch(VIT, unflatten(halves)), path)
    given = flatten(parameters(load(path)[0]))
    for name, half in halves.items():
        assert given[name].dtype == jnp.float32
        assert np.array_equal(given[name], half.astype(np.float32))


def test_model_of_a_file_outlives_changes_to_the_file(tmp_path):
    path = tmp_path / "state.safetensors"
    safetensors.numpy.save_file(to_pytorch(VIT, random_parameters(VIT)), path)
    model, _ = load(path)
    with open(path, "r+b") as file:
        file.truncate(0)
    assert same(parameters(model), random_parameters(VIT))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_native_form_keeps_the_stored_dtype(tmp_path, dtype):
    arrays = {name: array.astype(dtype) for name, array in flatten(random_parameters(VIT)).items()}
    save_parameters(VIT, unflatten(arrays), tmp_path / "model")
    _, params = read_native(tmp_path / "model")
    assert all(array.dtype == dtype for array in flatten(params).values())
    assert same(params, unflatten(arrays))
    loaded = flatten(parameters(load(tmp_path / "model")[0]))
    assert all(np.array_equal(loaded[k], v.astype(np.float32)) for k, v in arrays.items())


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_state_dict_to_native_and_back_is_exact(tmp_path, config):
    state = to_pytorch(config, random_parameters(config))
    state["visual.conv1.weight"] = state["visual.conv1.weight"].astype(np.float16)
    safetensors.numpy.save_file(state, tmp_path / "state.safetensors")
    read = from_pytorch(read_checkpoint(tmp_path / "state.safetensors"))
    save_parameters(*read, tmp_path / "model")
    back = to_pytorch(*read_native(tmp_path / "model"))
    assert back.keys() == state.keys()
    for name, array in state.items():
        assert back[name].dtype == array.dtype
        assert np.array_equal(back[name], array)


def test_transposed_arrays_are_not_scrambled_and_the_library_reads_the_file(tmp_path):
    params = {
        path: np.asfortranarray(array)[::-1] if array.ndim else array
        for path, array in flatten(random_parameters(RESNET)).items()
    }
    save_parameters(RESNET, unflatten(params), tmp_path / "model")
    read = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors")
    assert same(read, params)


def test_library_writes_files_that_we_read(native_folder):
    read = safetensors.numpy.load_file(native_folder / "model.safetensors")
    safetensors.numpy.save_file(read, native_folder / "model.safetensors")
    assert same(parameters(load(native_folder)[0]), random_parameters(VIT))


def test_arrays_in_the_file_are_aligned(native_folder):
    _, params = read_native(native_folder)
    addresses = {path: array.ctypes.data for path, array in flatten(params).items()}
    assert {path for path, address in addresses.items() if address % 64} <= {"logit_scale"}


def test_native_arrays_are_mapped_and_not_copied(native_folder):
    spans = lambda: [  # noqa: E731
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(native_folder) in line
    ]
    model, _ = load(native_folder)
    kernel = parameters(model)["visual"]["transformer"]["resblocks"]["0"]["mlp"]["c_fc"]["kernel"]
    address = kernel.unsafe_buffer_pointer()
    assert any(low <= address < high for low, high in spans())


def test_donated_parameters_do_not_change_the_file(native_folder):
    before = (native_folder / "model.safetensors").read_bytes()
    model, _ = load(native_folder)
    params = parameters(model)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    params = step(step(params))
    jax.block_until_ready(params)
    assert (native_folder / "model.safetensors").read_bytes() == before
    for path, array in flatten(random_parameters(VIT)).items():
        assert np.array_equal(flatten(params)[path], array + np.float32(1) + np.float32(1))


def test_writing_to_a_mapped_array_does_not_change_the_file(native_folder):
    before = (native_folder / "model.safetensors").read_bytes()
    _, params = read_native(native_folder)
    params["token_embedding"]["embedding"][:] = 7
    assert (native_folder / "model.safetensors").read_bytes() == before


def test_model_can_be_saved_over_the_folder_it_is_mapped_from(native_folder):
    model, _ = load(native_folder)
    save(model, native_folder)
    assert same(parameters(model), random_parameters(VIT))
    assert same(parameters(load(native_folder)[0]), random_parameters(VIT))
    assert names_below(native_folder) == ["config.json", "model.safetensors"]
    assert names_below(native_folder.parent)[0] == "model"


def test_arrays_given_by_the_user_are_copied():
    params = random_parameters(VIT)
    own = {path: array.copy() for path, array in flatten(params).items()}
    model = from_parameters(VIT, unflatten(own))
    for array in own.values():
        array[...] = 0
    assert same(parameters(model), params)


@pytest.mark.parametrize("given", ["nowhere.pt", Path("RN50"), "x" * 5000, "null\0.pt"])
def test_what_is_neither_name_nor_path(given):
    with pytest.raises(ValueError, match="neither the name of a model nor a file or folder"):
        load(given)


def test_unknown_activation_is_the_callers_mistake(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(to_pytorch(VIT, random_parameters(VIT)), path)
    with pytest.raises(ValueError, match="quick_gelu, gelu, gelu_tanh. Got 'relu'"):
        load(path, activation="relu")


def test_heads_of_another_width_are_set_in_a_native_folder(tmp_path):
    config = dataclasses.replace(VIT, text=dataclasses.replace(VIT.text, num_heads=4))
    model = some_model(config)
    path = tmp_path / "state.safetensors"
    safetensors.numpy.save_file(to_pytorch(config, parameters(model)), path)
    tokens = np.arange(1, 61, dtype=np.int32)[None]
    expected = model.encode_text(tokens)
    loaded, _ = load(path)
    assert loaded.config.text.num_heads == 1
    assert not np.allclose(loaded.encode_text(tokens), expected)

    save(loaded, tmp_path / "model")
    document = json.loads((tmp_path / "model" / "config.json").read_text())
    document["text"]["num_heads"] = 4
    (tmp_path / "model" / "config.json").write_text(json.dumps(document))
    assert np.array_equal(load(tmp_path / "model")[0].encode_text(tokens), expected)


def test_unknown_name_and_missing_path_are_one_error():
    with pytest.raises(ValueError, match="neither.*'ViT-B/32'.*known: RN50, ") as error:
        load("ViT-B32")
    assert "ViT-B32" in str(error.value)


@pytest.mark.parametrize("content", [{}, {"config.json": "{}"}, {"pytorch_model.bin": "?"}])
def test_folder_of_something_else_says_what_a_model_is(tmp_path, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match="is not a model.*config.json and model.safetensors"):
        load(tmp_path)


def test_folder_of_another_library(native_folder):
    (native_folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match="not a configuration of clip_jax"):
        load(native_folder)


def test_folder_of_hugging_face_says_that_its_layout_is_not_read(native_folder):
    (native_folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match="Hugging Face.*is not read: .*'ViT-B/32'"):
        load(native_folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"vision": {"type": []}}'])
def test_nested_configuration_is_refused(native_folder, text):
    (native_folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="not a configuration of clip_jax"):
        load(native_folder)


def test_folder_without_permission_is_refused(native_folder, monkeypatch):
    status = os.stat

    def refuse(path, **options):  # root may enter any folder, so chmod shows nothing
        if os.fspath(path).endswith(".json"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return status(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(CheckpointError, match="model can't be read .Permission denied"):
        load(native_folder)


@pytest.mark.parametrize("num_layers", [10_000, 2**31 - 1])
def test_number_of_blocks_in_a_configuration_costs_nothing(native_folder, num_layers):
    document = json.loads(VIT.to_json())
    document["vision"]["num_layers"] = num_layers
    (native_folder / "config.json").write_text(json.dumps(document))
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=f"can't fill {num_layers + 2:,} blocks"):
        load(native_folder)
    assert time.monotonic() - started < 5


def test_a_few_blocks_too_many_are_listed_up_to_a_limit(native_folder):
    vision = dataclasses.replace(VIT.vision, num_layers=5)
    (native_folder / "config.json").write_text(dataclasses.replace(VIT, vision=vision).to_json())
    with pytest.raises(CheckpointError, match="- visual/transformer/resblocks/2/.*: missing") as e:
        load(native_folder)
    assert str(e.value).endswith("\nand 16 more") and len(str(e.value).splitlines()) == 22


def test_weights_file_out_of_its_folder(native_folder):
    with pytest.raises(CheckpointError, match="give the folder"):
        load(native_folder / "model.safetensors")


def test_configuration_of_another_model_lists_every_misfit(native_folder):
    other = dataclasses.replace(VIT, embed_dim=24)
    (native_folder / "config.json").write_text(other.to_json())
    with pytest.raises(CheckpointError) as error:
        load(native_folder)
    for path in ("visual/proj", "text_projection"):
        assert f"! {path}: expected shape (64, 24). Got (64, 16)" in str(error.value)


def test_integers_are_no_weights(native_folder):
    arrays = flatten(random_parameters(VIT))
    arrays["visual/proj"] = arrays["visual/proj"].astype(np.int32)
    safetensors.numpy.save_file(arrays, native_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="! visual/proj: expected floats. Got int32"):
        load(native_folder)


def test_newer_format_is_named(native_folder):
    arrays = flatten(random_parameters(VIT))
    path = native_folder / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"version": "2"})
    with pytest.raises(CheckpointError, match="version 2.*reads 1"):
        load(native_folder)


@pytest.mark.parametrize("size", [0, 5, 8, 100, 5_000, -1])
def test_truncated_weights(native_folder, size):
    path = native_folder / "model.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load(native_folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        ((10**6).to_bytes(8, "little") + b'{"', "was cut short"),
        (b"<!doctype html>", "looks like HTML"),
        (b"PK\x03\x04" + bytes(100), "a ZIP archive, as torch.save writes"),
        ((400_000).to_bytes(8, "little") + b"[" * 400_000, "begins with"),
        ((400_000).to_bytes(8, "little") + b'{"":' * 100_000, "malformed .* header"),
        ((20 << 20).to_bytes(8, "little") + b"{" + bytes(20 << 20), "expected at most 16,777,216"),
    ],
)
def test_weights_that_are_something_else(native_folder, content, said):
    (native_folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"model.safetensors: .*{said}"):
        load(native_folder)


def test_damaged_weights(native_folder):
    path = native_folder / "model.safetensors"
    rng = np.random.default_rng(0)
    whole = path.read_bytes()
    for header in (b"[]", b"{}", b"7", b'{"__metadata__": 3}', rng.bytes(200)):
        path.write_bytes(len(header).to_bytes(8, "little") + header + whole[-100:])
        with pytest.raises(CheckpointError, match="model.safetensors"):
            load(native_folder)
    path.write_bytes(rng.bytes(1000))
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load(native_folder)


def test_checkpoint_that_does_not_fit_names_its_file(tmp_path):
    state = to_pytorch(VIT, random_parameters(VIT))
    del state["visual.proj"]
    safetensors.numpy.save_file(state, tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="state.safetensors: .*\n- visual.proj: missing"):
        load(tmp_path / "state.safetensors")


# ---- save ---------------------------------------------------------------------------------------


def test_save_refuses_a_folder_of_something_else(native_folder):
    (native_folder / "notes.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="something else"):
        save(some_model(VIT), native_folder)
    assert (native_folder / "notes.txt").read_text() == "precious"


def test_save_refuses_a_file(tmp_path):
    (tmp_path / "model").write_text("precious")
    with pytest.raises(FileExistsError, match="something else"):
        save(some_model(VIT), tmp_path / "model")


def test_save_takes_an_empty_folder_and_follows_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    save(some_model(VIT), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names_below(tmp_path / "real") == ["config.json", "model.safetensors"]


def test_save_refuses_arrays_that_do_not_fit(tmp_path):
    arrays = flatten(random_parameters(VIT))
    arrays["extra"] = arrays.pop("visual/proj")
    with pytest.raises(ValueError, match="- visual/proj: missing\n[+] extra: unexpected"):
        save_parameters(VIT, unflatten(arrays), tmp_path / "model")
    assert names_below(tmp_path) == []


def test_folder_in_the_place_of_a_pt_file_is_named(native_folder, capsys):
    target = native_folder.parent / "d.pt"
    target.mkdir()
    assert main(["convert", str(native_folder), str(target)]) == 1
    assert capsys.readouterr().err == f"clip-jax: {target}: is a folder: name a file in it\n"


def test_save_refuses_what_is_no_array(tmp_path):
    params = random_parameters(VIT)
    params["logit_scale"] = 3.0
    with pytest.raises(ValueError, match="! logit_scale: .*np.asarray.*. Got builtins.float"):
        save_parameters(VIT, params, tmp_path / "model")


def test_full_disk_leaves_the_old_model_and_nothing_else(native_folder):
    before = (native_folder / "model.safetensors").read_bytes()
    with files_end_at(50_000), pytest.raises(OSError, match="model"):
        save(some_model(VIT, seed=1), native_folder)
    assert (native_folder / "model.safetensors").read_bytes() == before
    assert names_below(native_folder.parent) == [
        "model",
        "model/config.json",
        "model/model.safetensors",
    ]


@pytest.mark.parametrize("failing", [1, 2])
def test_interrupt_while_folders_are_exchanged(native_folder, monkeypatch, failing):
    before = (native_folder / "model.safetensors").read_bytes()
    rename, calls = os.rename, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(replace, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(some_model(VIT, seed=1), native_folder)
    assert (native_folder / "model.safetensors").read_bytes() == before
    assert names_below(native_folder.parent)[1:] == ["model/config.json", "model/model.safetensors"]


MODEL = ["model", "model/config.json", "model/model.safetensors"]


def save_and_die(folder: Path, preparation: str) -> None:
    """Another process saves a model that it loaded, and is killed where it calls `die`."""
    program = (
        "import os, signal, sys; import clip_jax\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "model = clip_jax.load(sys.argv[1])[0]; rename = os.rename\n"
        f"{preparation}\nclip_jax.save(model, sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=False)


REPLACE = "from clip_jax.weights import replace"
RENAMES_ONCE = "os.rename = lambda *names: (rename(*names), die())"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges folders in one step")
def test_a_model_is_at_its_place_whenever_a_save_is_killed(native_folder):
    save_and_die(native_folder, RENAMES_ONCE)
    assert same(read_native(native_folder)[1], random_parameters(VIT))


def test_a_model_moved_away_by_a_killed_save_is_brought_back(native_folder):
    save_and_die(native_folder, f"{REPLACE}; replace._exchange = lambda *_: False; {RENAMES_ONCE}")
    assert not native_folder.exists()
    with files_end_at(50_000), pytest.raises(OSError):
        save(some_model(VIT, seed=1), native_folder)
    assert same(read_native(native_folder)[1], random_parameters(VIT))
    assert names_below(native_folder.parent) == MODEL


@pytest.mark.parametrize("exchanges", [True, False])
def test_remains_of_killed_saves_are_removed(native_folder, monkeypatch, exchanges):
    save_and_die(native_folder, f"{REPLACE}; replace._put = die")
    left = [name for name in names_below(native_folder.parent) if name.endswith(".part")]
    assert len(left) == 1
    if not exchanges:
        monkeypatch.setattr(replace, "_exchange", lambda one, other: False)
    save(some_model(VIT, seed=1), native_folder)
    assert names_below(native_folder.parent) == MODEL
    assert same(read_native(native_folder)[1], random_parameters(VIT, seed=1))


def test_a_save_leaves_alone_what_others_are_writing(native_folder):
    other = native_folder.with_name(".model.x.0123.part")  # of a folder "model.x"
    other.mkdir()
    with pytest.raises(KeyboardInterrupt), replace.replacing(native_folder) as new:
        save(some_model(VIT, seed=1), native_folder)
        assert new.is_dir() and other.is_dir()
        raise KeyboardInterrupt
    assert not new.exists()


def test_mounted_disk_cannot_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "disk")
    with pytest.raises(OSError, match="name a folder in it"):
        save(some_model(VIT), tmp_path / "disk")
    save(some_model(VIT), tmp_path / "disk" / "model")


def test_place_where_no_folder_can_be_made_is_named_as_the_user_did(tmp_path, monkeypatch):
    def refuse(path, **options):
        if "exist_ok" not in options:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (tmp_path / "model").mkdir()
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match="Permission denied.*a folder in it") as error:
        save(some_model(VIT), tmp_path / "model")
    assert error.value.filename == str(tmp_path / "model")


# ---- the model that comes with the package ------------------------------------------------------


def test_the_bundled_model_is_what_the_catalog_says():
    entry, folder = CATALOG["emoji"], clip_jax.weights.native_folder("emoji")
    config, params = read_native(folder)
    assert config == entry.config
    assert {array.dtype for array in flatten(params).values()} == {np.dtype(np.float16)}
    weights = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == entry.sha256
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20e6
    notice = (folder / "NOTICE").read_text()
    assert all(name in notice for name in ("Noto Emoji", "Twemoji", "Fluent", "emojibase"))
    with pytest.raises(ValueError, match="'emoji' is no official model"):
        official_file("emoji")


def test_the_bundled_model_loads_where_nothing_can_be_fetched_or_written(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr(socket, "socket", None)
    assert cached("emoji")
    model, preprocess = load("emoji")
    assert model.config.vision.image_size == preprocess.image_size == 48
    assert {array.dtype for array in flatten(parameters(model)).values()} == {np.dtype(np.float32)}
    assert not (tmp_path / "none").exists()


@pytest.mark.long
def test_an_installed_wheel_carries_the_bundled_model(tmp_path):
    source = tmp_path / "source"
    root = Path(__file__).parents[1]
    source.mkdir()
    for name in ("clip_jax", "convert"):
        shutil.copytree(root / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels, installed = tmp_path / "wheels", tmp_path / "installed"
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, source], check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)
    program = (
        "import clip_jax, socket; clip_jax.load; socket.socket = None;"
        "model, preprocess = clip_jax.load('emoji');"
        "print(clip_jax.__file__, model.config.embed_dim)"
    )
    environment = os.environ | {"PYTHONPATH": str(installed), "CLIP_JAX_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", program]
    run = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    place, embed_dim = run.stdout.split()
    assert place.startswith(str(installed))
    assert int(embed_dim) == CATALOG["emoji"].config.embed_dim
