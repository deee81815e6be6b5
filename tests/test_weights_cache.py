"""Models by name: downloaded and converted once, into a cache."""

import hashlib
import socket

import pytest

import clip_jax.catalog
from clip_jax.errors import DownloadError
from clip_jax.nn import parameters
from clip_jax.weights import cache_root, cached, load, official_file
from tests.model_files import VIT, names_below, same
from tests.models import random_parameters
from tests.servers import Server, serving_tiny

pytestmark = pytest.mark.usefixtures("no_pause")


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
    """A server of a model named "tiny", and a home folder without anything in it."""
    with serving_tiny(monkeypatch) as server:
        yield server


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
