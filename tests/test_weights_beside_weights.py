"""Weights at the root of a checkpoint are not passed over for those that lie beside them."""

from clip_jax.convert.reader import read_checkpoint
from tests.checkpoint_files import refusal
from tests.pickles import FIVE, W, write


def test_weights_at_the_root_and_in_a_dictionary_are_two_sets(path):
    message = refusal(write(path, {"visual.proj": W, "scale": W, "ema": {"visual.proj": W}}, FIVE))
    assert "holds 2 sets of weights (outside of any dictionary: 2 arrays, ema: 1 array)" in message


def test_a_number_beside_the_weights_is_no_other_set_of_them(path):
    state = {"a": W, "b": W, "c": W}
    write(path, {"state_dict": state, "step": W}, FIVE)
    assert list(read_checkpoint(path)) == ["a", "b", "c"]
