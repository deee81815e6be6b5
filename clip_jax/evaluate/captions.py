"""Images with their captions, embedded, for retrieval: any number of captions to an image."""

import dataclasses
import os
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from clip_jax.embed import embeddings_of, read_results
from clip_jax.encoder import Encoder
from clip_jax.errors import is_exhausted
from clip_jax.evaluate.data import BATCHES, encode_in_batches
from clip_jax.nn import CLIP
from clip_jax.preprocess import Preprocess, decode_image
from clip_jax.progress import Progress
from clip_jax.sources import open_pairs
from clip_jax.storage import Unreachable
from clip_jax.tokenizer import tokenize


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Embeddings of images and of their captions.

    Attributes:
        images: (i, d) embeddings.
        texts: (t, d) embeddings.
        pairs: (t,) the number of each text's image.
        problems: images that could not be read, with the reason; rows of an embedding job.
        missing: how many more rows an embedding job should have, and has not.
        unknown: files of an embedding job's input that no part is of.
    """

    images: Float[np.ndarray, "i d"]
    texts: Float[np.ndarray, "t d"]
    pairs: Int[np.ndarray, " t"]
    problems: list[str]
    missing: int = 0
    unknown: int = 0


def read_captioned(source: str) -> Captioned:
    """From an embedding job of pictures and captions; rows of one picture are one image.

    Raises:
        ValueError: the job has embedded only one of the two.
        OSError: it can't be read.

    Warns:
        UserWarning: the job is not finished.
    """
    found = read_results(source, ("text_embedding", "path"))
    table = found.table
    # A table with a row for each caption names a picture several times.
    numbers: dict[str, int] = {}
    pairs = [numbers.setdefault(path, len(numbers)) for path in table["path"].to_pylist()]
    first = np.unique(pairs, return_index=True)[1]
    images, texts = (embeddings_of(table, name) for name in ("embedding", "text_embedding"))
    counts = found.missing, found.unknown
    return Captioned(images[first], texts, np.array(pairs), found.problems, *counts)


def embed_captioned(
    source: str | os.PathLike[str],
    model: CLIP,
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> Captioned:
    """Embeds pairs: WebDataset's tar files, or a table of captions; all captions of each.

    Captions that are too long for the model are cut.

    Raises:
        ValueError: lists what is wrong with the pairs, or no picture can be read.
        OSError: they can't be read.
    """
    pairs, preprocess = open_pairs(source), Preprocess(model.config.vision.image_size)
    encoder = Encoder(model, batch_size=batch_size)
    captions: list[str] = []
    owners: list[int] = []
    problems: list[str] = []

    def pixels() -> Iterator[np.ndarray]:
        images = 0
        for number in range(len(pairs)):
            try:
                pair = pairs[number]
                image = preprocess.pixels(decode_image(pair.image))
            except (OSError, ValueError) as error:
                if isinstance(error, Unreachable) or is_exhausted(error):
                    raise
                problems.append(f"pair {number}: {error}")
                continue
            captions.extend(pair.captions)
            owners.extend([images] * len(pair.captions))
            images += 1
            bar.update(images, errors=len(problems), total=len(pairs))
            yield image

    with Progress(progress) as bar:
        parts = encode_in_batches(pixels(), encoder.images, BATCHES * encoder.batch_size)
    if not parts:
        raise ValueError(f"{source}: no picture can be read; the first: {problems[0]}")
    texts = encoder.texts(tokenize(captions, model.config.text.context_length, truncate=True))
    return Captioned(np.concatenate(parts), texts, np.array(owners), problems)
