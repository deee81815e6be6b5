"""The compile cache, on a CPU that counts as a GPU: what it keeps, and what it leaves alone."""

import jax
import jax.numpy as jnp
import pytest

from clip_jax import Encoder, compilation, compile_cache
from tests.models import SMALL_VIT, random_images, small

SETTINGS = [name for name in dir(jax.config) if "cache" in name and not name.startswith("__")]


def settings() -> dict:
    return {name: getattr(jax.config, name) for name in SETTINGS if name.startswith("jax_")}


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(compilation, "UNSAFE", ())


def test_programs_are_kept_for_the_next_process(accelerator, tmp_path):
    x = jnp.ones(7)

    def run() -> dict[str, int]:
        with compile_cache(tmp_path / "new"):
            jax.jit(lambda x: x * 5 + 3)(x)
        files = (tmp_path / "new").glob("jit__lambda*-cache")
        return {path.name: path.stat().st_mtime_ns for path in files}

    kept = run()
    assert len(kept) == 1
    jax.clear_caches()
    assert run() == kept  # taken from there: neither new nor written again


def test_settings_are_as_they_were_and_nothing_more_is_kept(accelerator, tmp_path):
    before = settings()
    assert before
    with pytest.raises(RuntimeError, match="inside"), compile_cache(tmp_path):
        raise RuntimeError("inside")
    assert settings() == before
    jax.jit(lambda x: x * 7 - 2)(jnp.ones(3))
    assert not list(tmp_path.iterdir())


def test_an_encoder_keeps_its_programs_and_no_others(accelerator, tmp_path):
    model, images = small(SMALL_VIT), random_images(1, 32)
    plain = Encoder(model, batch_size=1).images(images)
    assert not list(tmp_path.iterdir())
    before = settings()
    kept = Encoder(model, batch_size=1, compile_cache=tmp_path).images(images)
    assert list(tmp_path.glob("*-cache"))
    assert (kept == plain).all()
    assert settings() == before


def test_on_a_cpu_it_says_so_and_keeps_nothing(tmp_path):
    with pytest.warns(UserWarning, match="for GPUs and TPUs"), compile_cache(tmp_path):
        jax.jit(lambda x: x + 11)(jnp.ones(2))
    assert not list(tmp_path.iterdir())


def test_no_folder_is_no_cache():
    before = settings()
    with compile_cache(None):
        assert settings() == before
