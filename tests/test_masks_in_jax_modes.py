"""Masks and positions under JAX's modes: truth values where dtypes are strict, Explicit axes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clip_jax import compat
from clip_jax.towers import TextModel
from tests.models import SMALL_VIT, relative_error, small

IDS = np.array([[5, 8, 9, 99, 0, 0], [7, 99, 0, 0, 0, 0]], np.int32)
MASK = IDS > 0
FLAX = compat.FlaxCLIPTextModel(
    compat.CLIPTextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=100,
        max_position_embeddings=6,
        eos_token_id=99,
    )
)
TOWER = TextModel(dataclasses.replace(SMALL_VIT.text, num_layers=1), 16, rngs=nnx.Rngs(0))
CALLS = {
    "a text tower": lambda mask: TOWER(IDS, attention_mask=mask).last_hidden_state,
    "hidden states": lambda mask: TOWER.hidden_state(IDS, -1, attention_mask=mask),
    "a whole model": lambda m: small(SMALL_VIT).text_outputs(IDS, attention_mask=m).text_embeds,
    "Flax CLIP": lambda mask: FLAX(IDS, attention_mask=mask).last_hidden_state,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_a_mask_of_truth_values_is_that_of_numbers_also_where_dtypes_are_strict(call):
    expected = call(MASK.astype(np.int32))
    with jax.numpy_dtype_promotion("strict"):
        for mask in (MASK, jnp.asarray(MASK)):
            assert relative_error(call(mask), expected) < 1e-6


@pytest.mark.parametrize("name", ["attention_mask", "position_ids"])
def test_on_a_mesh_with_explicit_axes_the_error_of_flax_clip_names_the_way_out(name):
    mesh = Mesh(np.array(jax.devices()[:2]), "data", axis_types=(AxisType.Explicit,))
    given = jnp.asarray(MASK.astype(np.int32))
    split = jax.device_put(given, NamedSharding(mesh, PartitionSpec("data")))
    with pytest.raises(ValueError, match=rf"{name} are split.*Explicit, P\('data'.*AxisType.Auto"):
        FLAX(IDS, **{name: split})
