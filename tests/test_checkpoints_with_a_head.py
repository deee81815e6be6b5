"""Checkpoints with what trainings keep beside a model: a classifier's head, random generators."""

import numpy as np
import pytest

import clip_jax
from clip_jax import CheckpointError
from clip_jax.convert import read_checkpoint, to_pytorch
from tests.models import SMALL_VIT, random_parameters, unsaid

torch = pytest.importorskip("torch")
SEEDED = (np.random.default_rng(0), np.random.RandomState(0), np.random.PCG64(0))


@pytest.fixture(scope="module")
def state():
    """The tensors of a model."""
    arrays = to_pytorch(SMALL_VIT, random_parameters(SMALL_VIT))
    return {name: torch.tensor(np.array(array)) for name, array in arrays.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_classifiers_head_makes_no_siglip(state, tmp_path, prefix):
    head = {"head.weight": torch.zeros(3, 16), "head.bias": torch.zeros(3)}
    torch.save({prefix + name: each for name, each in (state | head).items()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"(?s)2 arrays do not fit.*\+ head.bias") as told:
        clip_jax.load(str(tmp_path / "x.pt"), **unsaid(SMALL_VIT))
    assert "SigLIP" not in str(told.value)


def test_a_siglip_tower_is_known_by_its_head(tmp_path):
    torch.save({"head.weight": torch.zeros(3, 16), "layers.0": torch.zeros(3)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="is a SigLIP model"):
        clip_jax.load(str(tmp_path / "x.pt"), **unsaid(SMALL_VIT))


@pytest.mark.parametrize("seeded", SEEDED, ids=lambda each: type(each).__name__)
def test_generators_of_random_numbers_beside_weights_are_passed_over(state, tmp_path, seeded):
    torch.save({"state_dict": state, "rng": seeded}, tmp_path / "x.pt")
    read = read_checkpoint(tmp_path / "x.pt")
    assert read.keys() == state.keys()
    np.testing.assert_array_equal(read["ln_final.bias"], state["ln_final.bias"])
