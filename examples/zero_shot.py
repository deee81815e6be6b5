"""Zero-shot prediction: what is in a picture, among the names of class folders?

    python examples/zero_shot.py FOLDER [--model ViT-B/32]
    python examples/zero_shot.py FOLDER/cat/1.jpg

FOLDER holds one folder a class, named for it, with its pictures inside.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import clip_jax

parser = argparse.ArgumentParser(description="Predict the class of pictures from its name alone.")
parser.add_argument("path", type=Path, help="a folder of class folders, or one picture inside it")
parser.add_argument("--model", default="ViT-B/32", help="a name or a path")
args = parser.parse_args()

# The pictures and the classes
root = args.path if args.path.is_dir() else args.path.parent.parent
classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
pictures = sorted(root.glob("*/*")) if args.path.is_dir() else [args.path]

# The model, and an embedding of every class
model, preprocess = clip_jax.load(args.model)
tokens = clip_jax.tokenize([f"a photo of a {name}." for name in classes])
text_features = model.encode_text(tokens)
text_features /= jnp.linalg.norm(text_features, axis=-1, keepdims=True)

correct = 0
for picture in pictures:
    image = preprocess(clip_jax.open_image(picture))
    image_features = model.encode_image(image[None])
    image_features /= jnp.linalg.norm(image_features, axis=-1, keepdims=True)

    # The five most similar classes
    similarity = np.asarray(jax.nn.softmax(100 * image_features @ text_features.T, axis=-1)[0])
    best = np.argsort(-similarity)[:5]
    correct += classes[best[0]] == picture.parent.name

    print(f"\n{picture}\nTop predictions:\n")
    for i in best:
        print(f"{classes[i]:>16s}: {100 * similarity[i]:.2f}%")

print(f"\nRight: {correct} of {len(pictures)}")
