"""Linear probe: logistic regression on a model's image embeddings.

    python examples/linear_probe.py FOLDER [--model ViT-B/32]

FOLDER holds one folder a class, with its pictures inside. Every fifth picture of a class is for
testing, the others are for training.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import clip_jax
from clip_jax.evaluate import LinearProbe

parser = argparse.ArgumentParser(description="Train a classifier on embeddings of pictures.")
parser.add_argument("folder", type=Path, help="one folder a class, with pictures inside")
parser.add_argument("--model", default="ViT-B/32", help="a name or a path")
parser.add_argument("--batch-size", type=int, default=100)
args = parser.parse_args()

model, preprocess = clip_jax.load(args.model)

# The dataset: (picture, number of its class), split in two
folders = sorted(
    folder
    for folder in args.folder.iterdir()
    if folder.is_dir() and not folder.name.startswith(".")
)
train, test = [], []
for label, folder in enumerate(folders):
    for i, picture in enumerate(sorted(folder.iterdir())):
        (test if i % 5 == 4 else train).append((picture, label))
if not test:
    raise SystemExit(f"{args.folder}: no class has five pictures, to leave one for testing")


def batches(dataset: list[tuple[Path, int]]) -> Iterator[tuple[np.ndarray, list[int]]]:
    """A data loader; anything that yields batches of preprocessed images will do."""
    for start in range(0, len(dataset), args.batch_size):
        pictures, labels = zip(*dataset[start : start + args.batch_size], strict=True)
        yield np.stack([preprocess(clip_jax.open_image(p)) for p in pictures]), list(labels)


def features(dataset: list[tuple[Path, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and labels of a whole dataset."""
    all_features, all_labels = [], []
    for images, labels in batches(dataset):
        all_features.append(np.asarray(model.encode_image(images)))
        all_labels += labels
    return np.concatenate(all_features), np.array(all_labels)


train_features, train_labels = features(train)
test_features, test_labels = features(test)

classifier = LinearProbe(C=0.316, max_iter=1000)
classifier.fit(train_features, train_labels)

print(f"Train accuracy: {100 * classifier.score(train_features, train_labels):.1f}%")
print(f"Test accuracy: {100 * classifier.score(test_features, test_labels):.1f}%")
