"""The shapes of a model's arrays, given its configuration."""

import dataclasses

from flax import nnx

from clip_jax.config import CLIPConfig, TextConfig, ViTConfig
from clip_jax.nn import build
from clip_jax.nn.tree import variables
from clip_jax.towers import TextModel, VisionModel

TEXT_BLOCKS, VISION_BLOCKS = "transformer/resblocks", "visual/transformer/resblocks"


def parameter_shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array of the tree by path; computes no arrays."""
    return _shapes(build(_with_two_blocks(config)), blocks(config))


def text_shapes(config: TextConfig, embed_dim: int | None) -> dict[str, tuple[int, ...]]:
    """Returns the same of a text tower by itself."""
    two = dataclasses.replace(config, num_layers=min(config.num_layers, 2))
    return _shapes(TextModel(two, embed_dim), {TEXT_BLOCKS: config.num_layers})


def vision_shapes(config: ViTConfig, embed_dim: int | None) -> dict[str, tuple[int, ...]]:
    """Returns the same of a Vision Transformer by itself."""
    two = dataclasses.replace(config, num_layers=min(config.num_layers, 2))
    return _shapes(VisionModel(two, embed_dim), {VISION_BLOCKS: config.num_layers})


def _shapes(model: nnx.Module, blocks: dict[str, int]) -> dict[str, tuple[int, ...]]:
    # All blocks of a sequence from the second on have the same shapes, so only two are built.
    shapes = {path: v.shape for path, v in variables(model).items()}
    for sequence, count in blocks.items():
        second = f"{sequence}/1/"
        alike = {path: shape for path, shape in shapes.items() if path.startswith(second)}
        for i in range(2, count):
            for path, shape in alike.items():
                shapes[f"{sequence}/{i}/{path.removeprefix(second)}"] = shape
    return {path: shapes[path] for path in sorted(shapes, key=_in_order)}


def blocks(config: CLIPConfig) -> dict[str, int]:
    """Returns how many blocks each sequence of blocks has, by path."""
    vision = config.vision
    if isinstance(vision, ViTConfig):
        towers = {VISION_BLOCKS: vision.num_layers}
    else:
        towers = {f"visual/layer{i}": depth for i, depth in enumerate(vision.stage_depths, 1)}
    return {TEXT_BLOCKS: config.text.num_layers, **towers}


def check_blocks(config: CLIPConfig, num_arrays: int) -> None:
    """Checks that the number of blocks is plausible, as listing too many would take long.

    Raises:
        ValueError: the arrays can't fill half of the blocks.
    """
    check_num_blocks(sum(blocks(config).values()), num_arrays)


def check_num_blocks(num_blocks: int, num_arrays: int) -> None:
    """As `check_blocks`, of a number of blocks."""
    if num_blocks > max(num_arrays // 6, 100):  # a block has a dozen arrays
        raise ValueError(f"{num_arrays:,} arrays can't fill {num_blocks:,} blocks")


def _with_two_blocks(config: CLIPConfig) -> CLIPConfig:
    """Returns the configuration with at most two blocks in each sequence."""
    vision, text = config.vision, config.text
    if isinstance(vision, ViTConfig):
        vision = dataclasses.replace(vision, num_layers=min(vision.num_layers, 2))
    else:
        a, b, c, d = (min(depth, 2) for depth in vision.stage_depths)
        vision = dataclasses.replace(vision, stage_depths=(a, b, c, d))
    text = dataclasses.replace(text, num_layers=min(text.num_layers, 2))
    return dataclasses.replace(config, vision=vision, text=text)


def _in_order(path: str) -> list[tuple[int, str]]:
    # Flax's order: names alphabetically, blocks by number.
    return [(int(key), "") if key.isdigit() else (0, key) for key in path.split("/")]
