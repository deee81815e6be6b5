"""The architecture of a CLIP model: frozen dataclasses, to JSON and back."""

import dataclasses
import json
from typing import Any, Literal, get_args

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]

# The largest number in a configuration; above it, arithmetic with sizes fails in many ways.
MAX_NUMBER = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text transformer (Radford et al. 2021, section 2.4)."""

    width: int
    num_layers: int
    num_heads: int
    context_length: int = 77
    vocab_size: int = 49408

    def __post_init__(self):
        _check_positive(self)
        _check_heads(self.width, self.num_heads)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer over square images with sides of `image_size` pixels."""

    image_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int

    def __post_init__(self):
        _check_positive(self)
        _check_heads(self.width, self.num_heads)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size. "
                f"Got {self.image_size} and {self.patch_size}."
            )

    @property
    def num_patches(self) -> int:
        """Patches of an image; the sequence also has a class token."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """A ModifiedResNet: three-convolution stem, anti-aliased strides, attention pooling."""

    image_size: int
    width: int
    stage_depths: tuple[int, int, int, int]
    num_heads: int

    def __post_init__(self):
        _check_positive(self)
        if not isinstance(self.stage_depths, tuple) or len(self.stage_depths) != 4:
            raise ValueError(
                f"stage_depths must be four positive numbers. Got {self.stage_depths}."
            )
        if self.width % 2:
            raise ValueError(f"width must be even: the stem starts at half. Got {self.width}.")
        _check_heads(self.num_features, self.num_heads)
        if self.image_size % 32:
            raise ValueError(f"image_size must be a multiple of 32. Got {self.image_size}.")

    @property
    def num_features(self) -> int:
        """Channels at the input of the attention pool."""
        return 32 * self.width

    @property
    def num_positions(self) -> int:
        """Positions at the input of the attention pool, without the mean token."""
        return (self.image_size // 32) ** 2


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Two towers that embed into a joint space of `embed_dim` dimensions.

    `activation` is the transformers' GELU: `quick_gelu` in every OpenAI model; exact `gelu` or
    `gelu_tanh` in others. It can't be inferred from the weights, so it is stored with them.
    """

    embed_dim: int
    vision: ViTConfig | ResNetConfig
    text: TextConfig
    activation: Activation = "quick_gelu"

    def __post_init__(self):
        _check_positive(self)
        check_activation(self.activation)

    def to_json(self) -> str:
        """Returns the configuration as JSON, the `config.json` of the native format."""
        document = dataclasses.asdict(self)
        kind = "vit" if isinstance(self.vision, ViTConfig) else "resnet"
        document["vision"] = {"type": kind, **document["vision"]}
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "CLIPConfig":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: if the text is not JSON, or a field is missing, unknown or out of range.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the configuration is not JSON: {error}") from None
        vision = _fields(document, "vision")
        kinds = {"vit": ViTConfig, "resnet": ResNetConfig}
        kind = vision.pop("type", None)
        if not isinstance(kind, str) or kind not in kinds:
            raise ValueError(f"vision.type must be one of {', '.join(kinds)}. Got {kind!r}.")
        if isinstance(vision.get("stage_depths"), list):
            vision["stage_depths"] = tuple(vision["stage_depths"])
        towers = {
            "vision": build(kinds[kind], vision),
            "text": build(TextConfig, _fields(document, "text")),
        }
        return build(cls, {**document, **towers})


def _fields(document: Any, name: str) -> dict[str, Any]:
    fields = document.get(name) if isinstance(document, dict) else None
    if not isinstance(fields, dict):
        raise ValueError(f"the configuration must have an object {name!r}.")
    return dict(fields)


def build(cls: type, fields: dict[str, Any]) -> Any:
    """Builds an instance of a dataclass.

    Raises:
        ValueError: fields are missing or unknown; the message lists them.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    missing = dataclasses.MISSING
    required = {
        name
        for name, field in known.items()
        if field.default is missing and field.default_factory is missing
    }
    problems = [f"- {name}: missing" for name in sorted(required - fields.keys())]
    problems += [f"+ {name}: unknown" for name in sorted(fields.keys() - known.keys())]
    if problems:
        raise ValueError(f"{cls.__name__} does not fit: " + "; ".join(problems))
    return cls(**fields)


def check_activation(name: Any) -> None:
    """Raises ValueError if there is no such activation."""
    if name not in get_args(Activation):
        raise ValueError(
            f"activation must be one of {', '.join(get_args(Activation))}. Got {name!r}."
        )


def _check_positive(config: Any) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values = value if isinstance(value, tuple) else (value,)
        if field.type in (int, tuple[int, int, int, int]) and any(
            isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values
        ):
            raise ValueError(f"{field.name} must be positive and whole. Got {value!r}.")
        if field.type in (int, tuple[int, int, int, int]) and max(values) > MAX_NUMBER:
            raise ValueError(f"{field.name} must be at most {MAX_NUMBER:,}. Got a larger number.")


def _check_heads(width: int, num_heads: int) -> None:
    if width % num_heads:
        raise ValueError(f"num_heads must divide the width. Got {num_heads} and {width}.")
