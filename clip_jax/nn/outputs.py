"""What the towers compute, by the names of Hugging Face's transformers."""

import dataclasses

import jax
from jax import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextOutput:
    """The results of a text tower; a pytree. What wasn't asked for, or can't be, is None.

    Attributes:
        last_hidden_state: (b, l, w), after the final norm.
        pooler_output: (b, w), its row at the position where the text is pooled; projected, (b, d),
            by a projection that has a bias, as SigLIP's head.
        text_embeds: (b, d), that row projected to the joint space, not normalised; None for a
            tower without projection.
        hidden_states: (b, l, w) each: the embeddings with their positions, then the result of each
            block, before the final norm.
        attentions: (b, h, l, l) of each block: how much each position (third axis) takes of each.
    """

    last_hidden_state: Array
    pooler_output: Array
    text_embeds: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ImageOutput:
    """The results of a Vision Transformer; a pytree. As `TextOutput`.

    Attributes:
        last_hidden_state: (b, l, w), the class token and the patches after the last block, without
            a norm; SigLIP's patches with the norm.
        pooler_output: (b, w), pooled and normed; by SigLIP's head normed and pooled.
        image_embeds: (b, d), projected to the joint space, not normalised.
        hidden_states: (b, l, w) each: what enters the first block, then the result of each block.
        attentions: (b, h, l, l) of each block.
    """

    last_hidden_state: Array
    pooler_output: Array
    image_embeds: Array | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
