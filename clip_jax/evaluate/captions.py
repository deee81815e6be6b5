"""Embedded images with their captions, of which an image may have several."""

import dataclasses
import os
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from clip_jax.channels import Losses
from clip_jax.embed import embeddings_of, read_results
from clip_jax.encoder import Encoder
from clip_jax.errors import is_exhausted
from clip_jax.evaluate.data import BATCHES, encode_in_batches
from clip_jax.evaluate.results import LeftOut
from clip_jax.naming import reading
from clip_jax.nn import CLIP
from clip_jax.preprocess import PictureOptions, decode_image
from clip_jax.progress import Progress, remark
from clip_jax.sources import Columns, open_pairs
from clip_jax.storage import Unreachable
from clip_jax.tokenizer import tokenize


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
    columns: Columns | None = None,
    pictures: PictureOptions | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Captioned:
    """Embeds the pictures and all captions of WebDataset's tar files, of tables or of a folder.

    Captions that are too long for the model are cut. Pairs without caption or picture, and pictures
    that can't be read, are left out. A picture that several rows of a table have is one.

    Args:
        source: as for training: .tar files, tables of captions, or a folder that holds one, or
            pictures with their captions beside them.
        model: any CLIP model.
        columns: the names of a table's columns.
        pictures: how pictures become pixels; by default as for the model.
        batch_size: of pictures and of captions, as for `Encoder`.
        progress: whether to show progress on standard error.

    Raises:
        ValueError: the pairs are unfit, which it lists, or no picture can be read.
        OSError: the source can't be read.
    """
    model.config.text.check_strings()
    pairs = open_pairs(source, columns, max_skipped=1.0)
    preprocess, losses = (pictures or PictureOptions()).preprocess(model.config), Losses()
    encoder = Encoder(model, batch_size=batch_size)
    captions: list[str] = []
    image_of: list[int] = []
    problems = pairs.left_out.all()
    numbers: dict[object, int] = {}  # of images, by what identifies their pictures

    def pixels() -> Iterator[np.ndarray]:
        for number in range(len(pairs)):
            picture = pairs.picture(number)
            if picture in numbers:
                captions.extend(pairs.captions(number))
                image_of.extend([numbers[picture]] * len(pairs.captions(number)))
                continue
            try:
                pair = pairs[number]
                with reading(pair.key):
                    decoded = decode_image(pair.image)
                    image = preprocess.pixels(decoded)
            except (OSError, ValueError) as error:
                if isinstance(error, Unreachable) or is_exhausted(error):
                    raise
                problems.append(f"{pairs.key(number)}: {error}")
                continue
            captions.extend(pair.captions)
            losses.add(preprocess.losses(decoded), pair.key)
            numbers[picture] = len(numbers)
            image_of.extend([numbers[picture]] * len(pair.captions))
            bar.update(len(numbers), errors=len(problems), total=len(pairs))
            yield image

    with Progress(progress) as bar:
        parts = encode_in_batches(pixels(), encoder.images, BATCHES * encoder.batch_size)
    for sentence in losses.sentences():
        remark(sentence, progress)
    if not parts:
        raise ValueError(f"{source}: no picture can be read; the first: {problems[0]}")
    texts = encoder.texts(tokenize(captions, model.config.text.context_length, truncate=True))
    return Captioned(np.concatenate(parts), texts, np.array(image_of), LeftOut(problems))
