"""Infers the configuration of an official checkpoint from the shapes of its arrays."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from clip_jax.config import Activation, CLIPConfig, NumHeads, ResNetConfig, TextConfig, ViTConfig
from clip_jax.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
# Arrays that give a number, each by the length of one axis. The most frequent value is used, so
# that one misshapen array is detected instead of spoiling the whole comparison.
Witnesses = tuple[tuple[str, int], ...]

EMBED_DIM: Witnesses = (
    ("text_projection", 1),
    ("visual.proj", 1),
    ("visual.attnpool.c_proj.weight", 0),
    ("visual.attnpool.c_proj.bias", 0),
)
TEXT_WIDTH: Witnesses = (
    ("ln_final.weight", 0),
    ("ln_final.bias", 0),
    ("positional_embedding", 1),
    ("token_embedding.weight", 1),
    ("text_projection", 0),
)
CONTEXT_LENGTH: Witnesses = (("positional_embedding", 0),)
VOCAB_SIZE: Witnesses = (("token_embedding.weight", 0),)
VIT_WIDTH: Witnesses = (
    ("visual.ln_post.weight", 0),
    ("visual.ln_pre.weight", 0),
    ("visual.class_embedding", 0),
    ("visual.conv1.weight", 0),
    ("visual.proj", 0),
)
VIT_PATCH: Witnesses = (("visual.conv1.weight", 3), ("visual.conv1.weight", 2))
RESNET_WIDTH: Witnesses = (
    ("visual.conv3.weight", 0),
    ("visual.bn3.weight", 0),
    ("visual.bn3.bias", 0),
)
# Positional embeddings of a Vision Transformer's patches, and of a ResNet's last pixels.
VIT_POSITIONS = "visual.positional_embedding"
RESNET_POSITIONS = "visual.attnpool.positional_embedding"


def infer_config(
    shapes: Shapes, activation: Activation, num_heads: NumHeads | None = None
) -> CLIPConfig:
    """Returns the configuration of arrays with these official names and shapes.

    Args:
        shapes: shapes by official name, in PyTorch's layout.
        activation: the activation, which can't be inferred from shapes.
        num_heads: the attention heads, which can't either: the vision tower's, or those of vision
            and text; 64 wide by default.

    Raises:
        ValueError: `num_heads` are not positive whole numbers.
        CheckpointError: arrays that are needed for this are missing or inconsistent; lists all
            problems.
    """
    vision_heads, text_heads = heads_of_towers(num_heads)
    is_vit = "visual.proj" in shapes or any(n.startswith("visual.transformer.") for n in shapes)
    problems: list[str] = []

    def told(find: Callable[..., int], *arguments: Any) -> int:
        try:
            return find(*arguments, shapes)
        except ValueError as error:
            problems.append(str(error))
            return 0

    width = told(_number, "text width", TEXT_WIDTH)
    text: dict[str, Any] = {
        "width": width,
        "num_layers": told(_count, "transformer.resblocks."),
        "num_heads": text_heads or max(width // 64, 1),
        "context_length": told(_number, "context length", CONTEXT_LENGTH),
        "vocab_size": told(_number, "vocabulary size", VOCAB_SIZE),
    }
    embed_dim = told(_number, "embedding size", EMBED_DIM)
    vision = _vit_numbers(told) if is_vit else _resnet_numbers(told)
    vision["num_heads"] = vision_heads or vision["num_heads"]
    try:
        if problems:
            raise ValueError("; ".join(problems))
        tower = ViTConfig(**vision) if is_vit else ResNetConfig(**vision)
        return CLIPConfig(embed_dim, tower, TextConfig(**text), activation)
    except ValueError as error:
        raise CheckpointError(f"the shapes of the arrays describe no CLIP model: {error}") from None


def heads_of_towers(num_heads: NumHeads | None) -> tuple[int | None, int | None]:
    """Returns the heads of the vision and of the text tower, None for those that aren't given.

    Raises:
        ValueError: they are not positive whole numbers, or more than two.
    """
    numbers = num_heads if isinstance(num_heads, tuple | list) else (num_heads, None)
    given = [number for number in numbers if number is not None]
    if len(numbers) != 2 or any(type(number) is not int or number < 1 for number in given):
        raise ValueError(
            f"num_heads must be a positive whole number, of the vision tower, or two, of the "
            f"vision and the text tower. Got {num_heads!r}."
        )
    return numbers[0], numbers[1]


def _vit_numbers(told: Callable[..., int]) -> dict[str, Any]:
    width = told(_number, "vision width", VIT_WIDTH)
    patch_size = told(_number, "patch size", VIT_PATCH)
    return {
        "image_size": patch_size * told(_side, VIT_POSITIONS),
        "patch_size": patch_size,
        "width": width,
        "num_layers": told(_count, "visual.transformer.resblocks."),
        "num_heads": max(width // 64, 1),
    }


def _resnet_numbers(told: Callable[..., int]) -> dict[str, Any]:
    width = told(_number, "vision width", RESNET_WIDTH)
    return {
        "image_size": 32 * told(_side, RESNET_POSITIONS),
        "width": width,
        "stage_depths": tuple(told(_count, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),
        "num_heads": max(32 * width // 64, 1),
    }


def _number(what: str, witnesses: Witnesses, shapes: Shapes) -> int:
    values = [
        shapes[name][axis]
        for name, axis in witnesses
        if name in shapes and len(shapes[name]) > axis
    ]
    if not values:
        names = ", ".join(dict.fromkeys(name for name, _ in witnesses))
        raise ValueError(f"nothing tells the {what}: expected {names}")
    return Counter(values).most_common(1)[0][0]


def _count(prefix: str, shapes: Shapes) -> int:
    pattern = re.compile(re.escape(prefix) + r"([0-9]+)\.")
    numbers = {int(match[1]) for name in shapes if (match := pattern.match(name))}
    if not numbers:
        raise ValueError(f"no blocks: expected {prefix}0 and so on")
    highest = max(numbers) + 1
    # A gap is a missing block; a huge number is a wrong name, not a million missing blocks.
    return highest if highest <= 2 * len(numbers) else len(numbers)


def _side(name: str, shapes: Shapes) -> int:
    """Returns the side of the square of positions, which follow the class or mean token."""
    num_tokens = _number("image size", ((name, 0),), shapes)
    side = math.isqrt(max(num_tokens - 1, 0))
    if side < 1 or side * side + 1 != num_tokens:
        raise ValueError(
            f"{name}: expected n x n + 1 vision positions, each a row. Got {num_tokens} rows in an "
            f"array of shape {shapes[name]}"
        )
    return side
