"""How well a model finds emoji by their names, in drawings it has never seen.

    python examples/emoji/evaluate.py DIR [--model emoji] [--pytorch] [--sheet FILE.png]

DIR is what prepare.py wrote. The pictures are OpenMoji's of the base emoji: an artist's who is not
in the training set. `--drawings choose` takes the drawings to choose a recipe by instead.
"""

import argparse
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import clip_jax
from clip_jax.parity import load_reference
from clip_jax.sources import open_pairs

# Chosen before any of them was tried, each with all emoji that are plainly that thing.
WORDS = {
    "dog": {"dog face", "dog"},
    "cat": {"cat face", "cat"},
    "pizza": {"pizza"},
    "rain": {"cloud with rain"},
    "car": {"automobile", "oncoming automobile"},
    "banana": {"banana"},
    "house": {"house"},
    "guitar": {"guitar"},
    "bicycle": {"bicycle"},
    "fish": {"fish"},
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Measure retrieval of emoji by their names.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="what prepare.py wrote")
    parser.add_argument("--model", default="emoji", help="a name or a path")
    parser.add_argument("--drawings", choices=("test", "choose"), default="test")
    parser.add_argument("--pytorch", action="store_true", help="the same in PyTorch")
    parser.add_argument("--sheet", type=Path, help="a picture of the best for each word")
    args = parser.parse_args()

    with open(args.folder / "drawings.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["is_base"] == "1"]
    base = {row["key"] for row in rows}
    drawn = [one for one in drawings(args.folder / f"{args.drawings}.tar") if one[0] in base]
    pictures, names = [picture for _, picture, _ in drawn], [name for *_, name in drawn]

    model, preprocess = clip_jax.load(args.model)
    pixels = np.stack([preprocess.pixels(picture) for picture in pictures])
    encoder = clip_jax.Encoder(model, batch_size=64, normalize=True)
    images, texts = encoder.images(pixels), encoder.texts(names)

    print(f"{len(names):,} drawings, each with its name\n")
    print("| what | R@1 | R@10 |\n|---|---|---|")
    report(images, texts)
    if args.pytorch:
        theirs = in_pytorch(
            args.model, np.stack([preprocess(picture) for picture in pictures]), names
        )
        report(*theirs, where=", PyTorch")
        for name, ours, other in zip(("image", "text"), (images, texts), theirs, strict=True):
            difference = np.linalg.norm(ours - other) / np.linalg.norm(other)
            print(f"\n{name} features against PyTorch: relative difference {difference:.1e}")
    if args.drawings == "test":
        words(encoder.texts(list(WORDS)), images, names, pictures, args.sheet)


def drawings(path: Path) -> Iterator[tuple[str, Image.Image, str]]:
    """The key, the picture on white and the name of each drawing."""
    pairs = open_pairs(str(path))
    for pair in (pairs[i] for i in range(len(pairs))):
        with Image.open(io.BytesIO(pair.image)) as image:
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image.convert("RGBA"))
        yield pair.key, white.convert("RGB"), pair.captions[0]


def report(images: np.ndarray, texts: np.ndarray, where: str = "") -> None:
    """Two rows of the table: recall both ways."""
    similarity = images.astype(np.float64) @ texts.T.astype(np.float64)
    for direction, scores in (("text to image", similarity.T), ("image to text", similarity)):
        # How many are at least as near as the right one, itself included
        ranks = (scores >= np.diag(scores)[:, None]).sum(axis=1)
        recalls = " | ".join(f"{(ranks <= k).mean():.1%}" for k in (1, 10))
        print(f"| {direction}{where} | {recalls} |")


def words(
    texts: np.ndarray,
    images: np.ndarray,
    names: list[str],
    pictures: Sequence[Image.Image],
    sheet: Path | None,
) -> None:
    """Everyday words, and the drawings that are nearest to each."""
    best = np.argsort(-(texts @ images.T), axis=1)[:, :5]
    found = [[names[int(i)] for i in row] for row in best]
    right = [bool(WORDS[word] & set(row[:3])) for word, row in zip(WORDS, found, strict=True)]
    print(f"\nright in the first three: {sum(right)} of {len(WORDS)} words\n")
    for word, row, is_right in zip(WORDS, found, right, strict=True):
        print(f"  {'+' if is_right else '-'} {word:<8} {', '.join(row)}")
    if sheet is not None:
        contact_sheet(list(WORDS), [[pictures[int(i)] for i in row] for row in best]).save(sheet)
        print(f"\nwrote {sheet}")


def contact_sheet(titles: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """A row of pictures beside each title."""
    side = 72
    sheet = Image.new("RGB", (side * (len(rows[0]) + 1), side * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (title, row) in enumerate(zip(titles, rows, strict=True)):
        draw.text((8, side * y + side // 2 - 6), title, fill="black")
        for x, picture in enumerate(row, start=1):
            sheet.paste(picture.resize((side - 8, side - 8)), (side * x + 4, side * y + 4))
    return sheet


def in_pytorch(
    name_or_path: str, images: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The features that the reference gives with the exported weights, normalised."""
    reference = load_reference(name_or_path)
    torch, network = reference.torch, reference.model
    tokens = torch.from_numpy(clip_jax.tokenize(list(names)))

    def embed(encode: Callable, inputs: Any) -> np.ndarray:
        with torch.inference_mode():
            features = torch.cat([encode(part) for part in inputs.split(64)])
        return torch.nn.functional.normalize(features, dim=1).numpy()

    return (
        embed(network.encode_image, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())),
        embed(network.encode_text, tokens),
    )


if __name__ == "__main__":
    main()
