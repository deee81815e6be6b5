"""Embedded images with their captions, of which an image may have several."""

import dataclasses
import os
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from clip_jax.embed import embeddings_of, read_results
from clip_jax.encoder import Encoder
from clip_jax.errors import is_exhausted
from clip_jax.evaluate.data import BATCHES, encode_in_batches
from clip_jax.evaluate.results import LeftOut
from clip_jax.nn import CLIP
from clip_jax.preprocess import Preprocess, decode_image
from clip_jax.progress import Progress
from clip_jax.sentence_piece import AnyTokenizer
from clip_jax.sources import open_pairs
from clip_jax.storage import Unreachable
from clip_jax.weights.tokenizers import string_tokenizer


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Embeddings of images and of their captions.

    Attributes:
        images: (i, d) embeddings.
        texts: (t, d) embeddings.
        pairs: (t,) the image of each text, as an index into `images`.
        left_out: images that could not be read, or have not been embedded.
    """

    images: Float[np.ndarray, "i d"]
    texts: Float[np.ndarray, "t d"]
    pairs: Int[np.ndarray, " t"]
    left_out: LeftOut


def read_captioned(source: str) -> Captioned:
    """Reads what an embedding job of pictures and captions has left.

    Rows with the same path are one image with several captions.

    Raises:
        ValueError: the job has not embedded both pictures and captions.
        OSError: its output can't be read.

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
    left_out = LeftOut(found.problems, found.missing, found.unknown)
    return Captioned(images[first], texts, np.array(pairs), left_out)


def embed_captioned(
    source: str | os.PathLike[str],
    model: CLIP,
    *,
    tokenizer: AnyTokenizer | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Captioned:
    """Embeds the pictures and all captions of WebDataset's tar files or of a table.

    Captions that are too long for the model are cut. Pictures that can't be read are left out.

    Args:
        source: as for training: .tar files, a table of captions, or a folder that holds one.
        model: any CLIP model.
        tokenizer: makes the ids of the captions; by default CLIP's own.
        batch_size: of pictures and of captions, as for `Encoder`.
        progress: whether to show progress on standard error.

    Raises:
        ValueError: the pairs are unfit, which it lists, or no picture can be read.
        OSError: the source can't be read.
    """
    to_ids = tokenizer or string_tokenizer(model.config.text)
    pairs = open_pairs(source)
    preprocess = Preprocess(model.config.vision.image_size, model.config.pixels)
    encoder = Encoder(model, batch_size=batch_size)
    captions: list[str] = []
    image_of: list[int] = []
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
            image_of.extend([images] * len(pair.captions))
            images += 1
            bar.update(images, errors=len(problems), total=len(pairs))
            yield image

    with Progress(progress) as bar:
        parts = encode_in_batches(pixels(), encoder.images, BATCHES * encoder.batch_size)
    if not parts:
        raise ValueError(f"{source}: no picture can be read; the first: {problems[0]}")
    texts = encoder.texts(to_ids(captions, truncate=True))
    return Captioned(np.concatenate(parts), texts, np.array(image_of), LeftOut(problems))
