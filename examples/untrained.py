"""Makes a small model and a picture to try everything with, offline.

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

parser = argparse.ArgumentParser(description="Make a small untrained model and a picture.")
parser.add_argument("folder", type=Path, metavar="DIR", help="where model/ and picture.png go")
folder = parser.parse_args().folder

config = clip_jax.CLIPConfig(
    embed_dim=32,
    vision=ViTConfig(image_size=64, patch_size=16, width=64, num_layers=2, num_heads=1),
    text=TextConfig(width=64, num_layers=2, num_heads=1),
)
clip_jax.save(clip_jax.CLIP(config, rngs=nnx.Rngs(0)), folder / "model")

# A red disc on a blue square
y, x = np.mgrid[-1:1:96j, -1:1:96j]
disc = (x**2 + y**2 < 0.5)[..., None]
Image.fromarray(np.where(disc, (200, 40, 40), (40, 60, 160)).astype(np.uint8)).save(
    folder / "picture.png"
)

print(f"wrote {folder / 'model'} (untrained: its answers are random) and {folder / 'picture.png'}")
