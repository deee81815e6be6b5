"""Makes a small model and pictures to try everything with, offline.

    python examples/untrained.py DIR

The model is untrained: its numbers are random, and so is what it says about pictures. It loads and
runs as a real one does.
"""

import argparse
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image

import clip_jax
from clip_jax.config import TextConfig, ViTConfig

parser = argparse.ArgumentParser(description="Make a small untrained model and pictures.")
parser.add_argument("folder", type=Path, metavar="DIR", help="where model/ and the pictures go")
folder = parser.parse_args().folder

config = clip_jax.CLIPConfig(
    embed_dim=32,
    vision=ViTConfig(image_size=64, patch_size=16, width=64, num_layers=2, num_heads=1),
    text=TextConfig(width=64, num_layers=2, num_heads=1),
)
clip_jax.save(clip_jax.CLIP(config, rngs=nnx.Rngs(0)), folder / "model")

y, x = np.mgrid[-1:1:96j, -1:1:96j]
SHAPES = {
    "disc": x**2 + y**2 < 0.5,
    "square": np.maximum(abs(x), abs(y)) < 0.6,
    "triangle": (y < 0.6) & (y > 2 * abs(x) - 0.7),
    "ring": abs(x**2 + y**2 - 0.4) < 0.2,
}
COLORS = {
    "red": (200, 40, 40),
    "green": (40, 160, 60),
    "yellow": (235, 200, 40),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
    "violet": (150, 60, 190),
}


def picture(shape: str, color: str, background: tuple[int, int, int]) -> Image.Image:
    """A shape of one colour on another."""
    return Image.fromarray(
        np.where(SHAPES[shape][..., None], COLORS[color], background).astype(np.uint8)
    )


# A red disc on a blue square
picture("disc", "red", (40, 60, 160)).save(folder / "picture.png")
(folder / "pictures").mkdir(exist_ok=True)
for shape in SHAPES:
    for color in COLORS:
        picture(shape, color, (110, 150, 190)).save(folder / "pictures" / f"{color}-{shape}.png")

print(f"wrote {folder / 'model'} (untrained: its answers are random) and {folder / 'picture.png'}")
