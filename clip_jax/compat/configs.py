"""The configuration classes that Flax CLIP takes; those of transformers itself do as well."""

import copy
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from clip_jax.compat.folders import PLACES, find_folder
from clip_jax.config import CLIPConfig as Architecture
from clip_jax.config import TextConfig, ViTConfig
from clip_jax.convert import huggingface_config
from clip_jax.convert.fields import Fields, raise_problems
from clip_jax.convert.huggingface import read_config

_COMMON = {
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "initializer_factor": 1.0,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
}


class PretrainedConfig:
    """Attributes with defaults; those that aren't known are kept."""

    model_type: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]

    def __init__(self, **values: Any):
        values.pop("model_type", None)
        self.__dict__.update(copy.deepcopy({**self.defaults, **values}))

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `config.json`."""
        return {"model_type": self.model_type, **copy.deepcopy(self.__dict__)}

    def to_json_string(self) -> str:
        """Returns the text of `config.json`."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], **changes: Any) -> "PretrainedConfig":
        """Builds a configuration from the content of `config.json`."""
        return cls(**{**document, **changes})

    @classmethod
    def from_pretrained(cls, name_or_path: Any, **options: Any) -> "PretrainedConfig":
        """Reads the configuration of a folder or repository, as the models' `from_pretrained`.

        Args:
            name_or_path: the folder or repository.
            **options: `subfolder`, `revision` and so on; others change the configuration.

        Raises:
            CheckpointError: it can't be read, or is of another kind of model.
        """
        place = {name: options.pop(name) for name in PLACES if name in options}
        return cls.of_folder(find_folder(name_or_path, **place), **options)

    @classmethod
    def of_folder(cls, folder: Any, **changes: Any) -> "PretrainedConfig":
        """Reads the configuration of a folder; of a whole model's, a tower's class takes its part.

        Raises:
            CheckpointError: it can't be read, or is of another kind of model.
        """
        document = read_config(folder)
        inner = {"clip_text_model": "text_config", "clip_vision_model": "vision_config"}
        if document["model_type"] == "clip" and cls.model_type in inner:
            document = document.get(inner[cls.model_type]) or {}
        return cls.from_dict(document, **changes)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__


class CLIPTextConfig(PretrainedConfig):
    """Configuration of a text tower, with the names of transformers."""

    model_type = "clip_text_model"
    defaults = {**huggingface_config.TEXT, "projection_dim": 512, **_COMMON}


class CLIPVisionConfig(PretrainedConfig):
    """Configuration of a vision tower, with the names of transformers."""

    model_type = "clip_vision_model"
    defaults = {**huggingface_config.VISION, "projection_dim": 512, **_COMMON}


class CLIPConfig(PretrainedConfig):
    """Configuration of both towers; `text_config` and `vision_config` are objects too."""

    model_type = "clip"
    defaults = {"projection_dim": 512, "logit_scale_init_value": 2.6592, **_COMMON}

    def __init__(self, text_config: Any = None, vision_config: Any = None, **values: Any):
        super().__init__(**values)
        self.text_config = _config(CLIPTextConfig, text_config)
        self.vision_config = _config(CLIPVisionConfig, vision_config)

    @classmethod
    def from_text_vision_configs(
        cls, text_config: Any, vision_config: Any, **values: Any
    ) -> "CLIPConfig":
        """Joins the configurations of two towers."""
        return cls(text_config, vision_config, **values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `config.json`."""
        towers = {"text_config": self.text_config, "vision_config": self.vision_config}
        return {**super().to_dict(), **{name: tower.to_dict() for name, tower in towers.items()}}


def _config(kind: type[PretrainedConfig], given: Any) -> PretrainedConfig:
    if given is None or isinstance(given, Mapping):
        return kind(**(given or {}))
    return given


def document_of(config: Any) -> dict[str, Any]:
    """Returns a configuration of ours or of transformers as a dictionary.

    Raises:
        TypeError: it is something else.
    """
    if hasattr(config, "to_dict"):
        return config.to_dict()
    raise TypeError(
        f"config must be a CLIPTextConfig, CLIPVisionConfig or CLIPConfig of clip_jax.compat or of "
        f"transformers. Got {type(config).__name__}."
    )


def text_architecture(document: Mapping[str, Any]) -> TextConfig:
    """Returns our configuration of a text tower.

    Raises:
        CheckpointError: values are not possible or not supported; lists all problems.
    """
    fields = Fields(document, "config", problems := [])
    config = huggingface_config.text_config(fields, huggingface_config.activation(fields))
    raise_problems(problems)
    assert config is not None
    return config


def vision_architecture(document: Mapping[str, Any]) -> ViTConfig:
    """Returns our configuration of a vision tower; as `text_architecture`."""
    fields = Fields(document, "config", problems := [])
    config = huggingface_config.vision_config(fields, huggingface_config.activation(fields))
    raise_problems(problems)
    assert config is not None
    return config


def whole_architecture(
    document: Mapping[str, Any],
) -> tuple[Architecture, tuple[TextConfig, ViTConfig]]:
    """Returns our configuration of both towers, and of each; as `text_architecture`."""
    config = huggingface_config.from_document(document)
    assert isinstance(config.vision, ViTConfig)
    text = dataclasses.replace(config.text, activation=config.text_activation)
    vision = dataclasses.replace(config.vision, activation=config.vision_activation)
    return config, (text, vision)


def projection_of(document: Mapping[str, Any]) -> int:
    """Returns the size of a tower's projection; raises CheckpointError as `text_architecture`."""
    fields = Fields(document, "config", problems := [])
    size = fields.whole("projection_dim", huggingface_config.PROJECTION)
    raise_problems(problems)
    return size


def dropout_of(document: Mapping[str, Any] | None) -> float:
    """Returns the fraction of attention that training drops; raises CheckpointError likewise."""
    fields = Fields(document or {}, "config", problems := [])
    fraction = fields.number("attention_dropout", 0.0) or 0.0
    if not 0 <= fraction < 1:
        fields.problem("attention_dropout", f"expected at least 0, below 1. Got {fraction}")
    raise_problems(problems)
    return fraction
