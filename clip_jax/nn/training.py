"""A model arranged for training: gradients as CPUs compute them fastest, memory for time."""

from flax import nnx

from clip_jax.nn.clip import CLIP
from clip_jax.nn.layers import Transformer
from clip_jax.nn.linear import Linear
from clip_jax.nn.resnet import ModifiedResNet


def arrange_for_training(model: CLIP) -> None:
    """Has the gradients of `model`'s linear layers computed by `linear_in_training`, for CPUs.

    The numbers are the same. A model is not made so from the start, because only reverse-mode
    differentiation works then, and the precision of the products in it has to be set around the
    gradient instead of around the model.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Linear):
            module.is_trained = True


def rematerialize(model: CLIP) -> None:
    """Has the gradient compute what lies inside of each residual block of `model` once more.

    Between its ends a training step then keeps one hidden state for each block instead of all of
    them, for about a third more operations (Chen et al. 2016). The numbers are the same.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Transformer | ModifiedResNet):
            module.rematerializes = True
