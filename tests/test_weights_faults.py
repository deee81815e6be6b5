"""What weights survive: no home, bad servers, no descriptors, others at the same place."""

import builtins
import errno
import importlib
import json
import os
import shutil

import numpy as np
import pytest

from clip_jax.cli import main
from clip_jax.convert import writer
from clip_jax.convert.pytorch import to_pytorch
from clip_jax.convert.reader import read_checkpoint
from clip_jax.errors import DownloadError
from clip_jax.nn import parameters
from clip_jax.weights import cache_root, cached, download, load, native_folder, official_file, save
from tests.limits import no_descriptors
from tests.model_files import VIT, names_below, same
from tests.models import random_parameters, small, unsaid, unsaid_options
from tests.pickles import parts, write
from tests.servers import fetch

pytestmark = pytest.mark.usefixtures("no_pause")

# In clip_jax.weights a function has this name.
_native = importlib.import_module("clip_jax.weights.native_format")


# ---- no home ------------------------------------------------------------------------------------


@pytest.fixture
def homeless(monkeypatch):
    """Neither HOME nor a name for the user's number, as under systemd."""
    pwd = pytest.importorskip("pwd")

    def getpwuid(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    for name in ("HOME", "XDG_CACHE_HOME", "CLIP_JAX_CACHE"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_home_models_are_listed_and_the_bundled_one_loads(homeless, capsys):
    assert main(["models", "--json"]) == 0
    listed = {model["name"]: model["cached"] for model in json.loads(capsys.readouterr().out)}
    assert listed["emoji"] and not listed["ViT-B/32"]
    assert native_folder("emoji").is_dir()


def test_without_a_home_it_is_said_how_to_name_a_place_and_that_works(
    tiny, homeless, monkeypatch, tmp_path
):
    for ask in (cache_root, lambda: official_file("tiny"), lambda: load("tiny")):
        with pytest.raises(DownloadError, match="this user has no home folder") as caught:
            ask()
    assert "download_root= or the environment variable CLIP_JAX_CACHE" in str(caught.value)
    assert official_file("tiny", tmp_path / "one", progress=False).parent == tmp_path / "one"
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "two"))
    assert not cached("tiny")
    load("tiny")
    assert cached("tiny") and (tmp_path / "two" / "tiny.pt").is_file()


def test_the_home_of_an_unknown_user_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIP_JAX_CACHE", "~nobody-of-this-name/x")
    with pytest.raises(DownloadError, match="~nobody-of-this-name/x has no home folder"):
        official_file("ViT-B/32")
    assert not cached("ViT-B/32")


# ---- servers and addresses ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["nonsense", "http://[::1", "http://127.0.0.1:port/x", "http://a..b/x", "http://" + "a" * 99],
)
def test_an_address_that_is_none_is_a_download_error(tmp_path, url):
    with pytest.raises(DownloadError, match="no connection to the server") as caught:
        download.fetch(url, "0" * 64, tmp_path / "file.bin", progress=False)
    assert f"By hand: fetch {url}" in str(caught.value)
    assert names_below(tmp_path) == []


def test_a_proxy_that_is_none_is_a_download_error(server, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request._opener", None)  # which keeps the proxies of its first use
    monkeypatch.setenv("http_proxy", "http://[::1")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(DownloadError, match="no connection to the server"):
        fetch(server, tmp_path / "file.bin")


@pytest.mark.parametrize("length", ["many", "-5", "9" * 5_000, ""])
def test_a_length_that_is_none_does_not_matter(server, tmp_path, monkeypatch, length):
    opened = download._open

    def open_with_another_length(url, start):
        response = opened(url, start)
        del response.headers["Content-Length"]
        response.headers["Content-Length"] = length
        return response

    monkeypatch.setattr(download, "_open", open_with_another_length)
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == server.body


# ---- what is there is not replaced by less ------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE])
def test_a_file_that_can_not_be_read_for_a_moment_is_not_fetched_again(
    server, tmp_path, monkeypatch, number
):
    path = tmp_path / "file.bin"
    fetch(server, path)
    before, server.requests = path.stat(), []

    def failing(name, *arguments, **options):
        if name == path:
            raise OSError(number, os.strerror(number), str(path))
        return builtins.open(name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(download, "open", failing, raising=False)
        with pytest.raises(DownloadError, match=os.strerror(number)):
            fetch(server, path)
    assert server.requests == [] and path.stat().st_ino == before.st_ino
    fetch(server, path)
    assert server.requests == []


def test_what_has_come_is_kept_where_descriptors_run_out(server, tmp_path, monkeypatch):
    path, part = tmp_path / "file.bin", tmp_path / "file.bin.part"
    part.write_bytes(server.body[:1_000])

    def failing(name, *arguments, **options):
        if name == part:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(part))
        return builtins.open(name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(download, "open", failing, raising=False)
        with pytest.raises(DownloadError, match="Too many open files"):
            fetch(server, path)
    assert part.stat().st_size == 1_000
    fetch(server, path)
    assert server.requests == ["bytes=1000-"] and path.read_bytes() == server.body


def test_a_model_is_not_saved_over_what_came_to_its_place_meanwhile(model_folder, monkeypatch):
    written = _native.write_safetensors

    def write_while_others_do(*arguments):
        written(*arguments)
        (model_folder / "notes.txt").write_text("somebody's work")

    monkeypatch.setattr(_native, "write_safetensors", write_while_others_do)
    with pytest.raises(FileExistsError, match="is something else than a folder written by"):
        save(small(VIT, seed=1), model_folder)
    assert names_below(model_folder) == ["config.json", "model.safetensors", "notes.txt"]
    assert names_below(model_folder.parent) == [
        "model", *(f"model/{name}" for name in names_below(model_folder))
    ]  # fmt: skip


def test_without_force_no_conversion_replaces_what_another_made_meanwhile(
    model_folder, tmp_path, monkeypatch, capsys
):
    tensors, storages = parts(to_pytorch(VIT, random_parameters(VIT)))
    source, target = write(tmp_path / "source.pt", tensors, storages), tmp_path / "target"
    written = _native.write_safetensors

    def write_while_others_do(*arguments):
        shutil.copytree(model_folder, target)
        written(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_native, "write_safetensors", write_while_others_do)
        assert main(["convert", str(source), str(target), *unsaid_options(VIT)]) == 1
    assert f"{target}: exists already" in capsys.readouterr().err
    assert same(parameters(load(target)[0]), parameters(load(model_folder)[0]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "source.pt", "target"]


@pytest.mark.torch
@pytest.mark.parametrize("has_links", [True, False])
def test_without_force_no_pt_file_replaces_what_another_made_meanwhile(
    model_folder, tmp_path, monkeypatch, capsys, has_links
):
    torch = pytest.importorskip("torch")
    target = tmp_path / "back.pt"
    saved = torch.save

    def save_while_others_do(*arguments):
        target.write_bytes(b"another's")
        saved(*arguments)

    def link(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_while_others_do)
        if not has_links:
            patch.setattr(writer.os, "link", link)
        assert main(["convert", str(model_folder), str(target)]) == 1
        assert target.read_bytes() == b"another's"
        assert f"{target}: " in capsys.readouterr().err
        assert main(["convert", str(model_folder), str(target), "--force"]) == 0
        target.unlink()
    assert main(["convert", str(model_folder), str(target)]) == 0  # with and without links
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pt", "model"]


# ---- what the machine lacks is not the file's fault ---------------------------------------------


@pytest.mark.parametrize("kind", ["pt", "folder"])
def test_too_many_open_files_are_no_damage(model_folder, tmp_path, capsys, kind):
    tensors, storages = parts(to_pytorch(VIT, random_parameters(VIT)))
    path = write(tmp_path / "a.pt", tensors, storages) if kind == "pt" else model_folder
    with pytest.raises(OSError, match="Too many open files"), no_descriptors():
        load(path)
    load(path, **(unsaid(VIT) if kind == "pt" else {}))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 9. GiB"),
        OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.jpg"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
    ],
)
def test_what_runs_out_is_said_in_a_line_with_what_to_do(monkeypatch, capsys, error):
    def run(args):
        raise error

    monkeypatch.setattr("clip_jax.cli.models.run", run)
    assert main(["models"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    said = "Too many open files" if type(error) is OSError else "memory has run out"
    assert said in line


def test_memory_that_runs_out_is_no_damage(tmp_path, monkeypatch):
    tensors, storages = parts(to_pytorch(VIT, random_parameters(VIT)))
    path = write(tmp_path / "a.pt", tensors, storages)

    def without_memory(*_, **__):
        raise MemoryError

    for name in ("clip_jax.convert.unpickle.pickletools.genops", "zipfile.ZipFile.infolist"):
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(name, without_memory)
            read_checkpoint(path)
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "a.safetensors")
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("clip_jax.convert.safetensors.json.loads", without_memory)
        read_checkpoint(tmp_path / "a.safetensors")
