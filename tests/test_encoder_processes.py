"""The encoder over several processes: each gets its own rows, and nothing hangs."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from clip_jax import Encoder
from tests import processes
from tests.encoders import TOLERANCE
from tests.models import relative_error


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes of two devices each have written."""
    return processes.run_two(tmp_path_factory.mktemp("processes"), "encode")


def test_each_of_several_processes_gets_its_own_images(together, model):
    two = Mesh(np.array(jax.devices()[:2]), "x")
    encoder = Encoder(model, parallel="mesh", mesh=two, batch_size=processes.BATCH_SIZE)
    for index, results in enumerate(together):
        assert results["devices"].tolist() == [2, 4]
        for call, counts in enumerate(processes.IMAGES):
            given_ = results[f"mesh images {call}"]
            assert given_.shape == (counts[index], 16)
            # To the bit: two devices of a process hold what those of one process would.
            assert np.array_equal(given_, encoder.images(processes.images(call, index)))


def test_each_of_several_processes_gets_its_own_texts(together, one_device):
    for index, results in enumerate(together):
        for call, counts in enumerate(processes.TEXTS):
            given_ = results[f"mesh texts {call}"]
            assert given_.shape == (counts[index], 16)
            if counts[index]:  # in programs of other sizes
                expected = one_device.texts(processes.texts(call, index))
                assert relative_error(given_, expected) < TOLERANCE["same"]


def test_several_processes_compile_the_same_programs(together):
    assert together[0]["compilations"] == together[1]["compilations"]


def test_meshes_of_several_processes_may_be_interleaved_or_set(together):
    for results in together:
        assert np.array_equal(results["interleaved"], results["mesh images 0"])
        assert np.array_equal(results["callers mesh"], results["mesh images 0"])


def test_one_of_several_processes_may_encode_alone(together, one_device):
    expected = one_device.images(processes.images(0, 0))
    for name in ("jit", "local mesh"):
        assert name not in together[1]
        assert relative_error(together[0][name], expected) < TOLERANCE["same"]


def test_processes_are_refused_what_would_hang(together):
    for results in together:
        assert "pmap" in str(results["pmap"]) and '"mesh"' in str(results["pmap"])
    assert "[1, 2]" in str(together[0]["uneven"]) and "process 1" in str(together[1]["uneven"])
    assert "[0, 2]" in str(together[0]["elsewhere"]) and "[2, 0]" in str(together[1]["elsewhere"])


def test_pmap_is_refused_under_several_processes(monkeypatch, model):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match='"pmap" is for one process. .* use parallel="mesh"'):
        Encoder(model, parallel="pmap")
