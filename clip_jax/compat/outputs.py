"""What Flax CLIP returns: objects with fields, string keys and integer positions; pytrees."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, dataclass_transform

import jax
from jax import Array

Arrays = tuple[Array, ...]


class ModelOutput(Mapping[str, Any]):
    """Results by field, by name and by position; those that weren't asked for are left out.

    Iterating gives the names, as in transformers.
    """

    def __getitem__(self, key: Any) -> Any:
        return self._given()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given())

    def __len__(self) -> int:
        return len(self._given())

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the results in order; those that are objects of this kind as tuples too."""
        return tuple(
            value.to_tuple() if isinstance(value, ModelOutput) else value
            for value in self._given().values()
        )

    def replace(self, **changes: Any) -> Any:
        """Returns a copy with other results in some fields."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def _given(self) -> dict[str, Any]:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        values = {field.name: getattr(self, field.name) for field in fields}
        return {name: value for name, value in values.items() if value is not None}


@dataclass_transform(frozen_default=True)
def _output(cls: type) -> type:
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))


@_output
class FlaxBaseModelOutputWithPooling(ModelOutput):
    """Results of a tower.

    Attributes:
        last_hidden_state: (b, l, w); of texts, after the final norm.
        pooler_output: (b, w), after the final norm.
        hidden_states: (b, l, w) each: what enters the first block, then the result of each block.
        attentions: (b, h, l, l) of each block.
    """

    last_hidden_state: Array | None = None
    pooler_output: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@_output
class FlaxCLIPTextModelOutput(ModelOutput):
    """Results of a text tower with projection: (b, d) embeddings, then as of a tower without."""

    text_embeds: Array | None = None
    last_hidden_state: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@_output
class FlaxCLIPVisionModelOutput(ModelOutput):
    """Results of a vision tower with projection: (b, d) embeddings, then as of one without."""

    image_embeds: Array | None = None
    last_hidden_state: Array | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@_output
class FlaxCLIPOutput(ModelOutput):
    """Results of both towers.

    Attributes:
        logits_per_image: (i, t), scaled cosines.
        logits_per_text: (t, i), the same.
        text_embeds: (t, d), normalised.
        image_embeds: (i, d), normalised.
        text_model_output: the text tower's own results.
        vision_model_output: the vision tower's.
    """

    logits_per_image: Array | None = None
    logits_per_text: Array | None = None
    text_embeds: Array | None = None
    image_embeds: Array | None = None
    text_model_output: FlaxBaseModelOutputWithPooling | None = None
    vision_model_output: FlaxBaseModelOutputWithPooling | None = None
