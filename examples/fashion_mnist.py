"""Fashion-MNIST as folders of pictures: OUT/train/CLASS/*.png and OUT/test/CLASS/*.png.

    apt-get install dataset-fashion-mnist
    python examples/fashion_mnist.py OUT [--train 200] [--test 50]

Of each class the first so many, dark on white. The data is Zalando Research's, MIT licence.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = "T-shirt trousers pullover dress coat sandal shirt sneaker bag boot".split()
parser = argparse.ArgumentParser(description="Write Fashion-MNIST as folders of pictures.")
parser.add_argument("out", type=Path)
parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
parser.add_argument("--train", type=int, default=200, help="pictures of each class")
parser.add_argument("--test", type=int, default=50, help="likewise")
args = parser.parse_args()

for split, file, count in (("train", "train", args.train), ("test", "t10k", args.test)):
    # MNIST's format: after 16 and 8 bytes of header, a byte a pixel and a byte a label
    images, labels = (
        np.frombuffer(gzip.decompress((args.source / f"{file}-{kind}-ubyte.gz").read_bytes()), "u1")
        for kind in ("images-idx3", "labels-idx1")
    )
    images, labels = images[16:].reshape(-1, 28, 28), labels[8:]
    for number, name in enumerate(CLASSES):
        (args.out / split / name).mkdir(parents=True, exist_ok=True)
        for row in np.flatnonzero(labels == number)[:count]:
            Image.fromarray(255 - images[row]).save(args.out / split / name / f"{row:05}.png")
