"""Zero-shot prediction: what is in a picture, among the names of class folders?

    python examples/zero_shot.py FOLDER [--model ViT-B/32]
    python examples/zero_shot.py FOLDER/cat/1.jpg

FOLDER holds one folder a class, named for it, with its pictures inside.
"""

import argparse
from pathlib import Path

import clip_jax
from clip_jax.evaluate import ZeroShotClassifier

parser = argparse.ArgumentParser(description="Predict the class of pictures from its name alone.")
parser.add_argument("path", type=Path, help="a folder of class folders, or one picture inside it")
parser.add_argument("--model", default="ViT-B/32", help="a name or a path")
args = parser.parse_args()

# The pictures and the classes
root = args.path if args.path.is_dir() else args.path.parent.parent
folders = [f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")]
classes = sorted(folder.name for folder in folders)
pictures = sorted(root.glob("[!.]*/*")) if args.path.is_dir() else [args.path]

# The model, and an embedding of every class
model, preprocess = clip_jax.load(args.model)
classifier = ZeroShotClassifier(model, classes, templates=["a photo of a {}."])

correct = 0
for picture in pictures:
    image = preprocess(clip_jax.open_image(picture))

    # The five most probable classes
    values, indices = classifier.top_k(image[None], k=min(5, len(classes)))
    correct += classes[indices[0, 0]] == picture.parent.name

    print(f"\n{picture}\nTop predictions:\n")
    for value, index in zip(values[0], indices[0], strict=True):
        print(f"{classes[index]:>16s}: {100 * value:.2f}%")

print(f"\nRight: {correct} of {len(pictures)}")
