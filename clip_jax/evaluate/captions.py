"""Embedded images with their captions, of which an image may have several."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from clip_jax.channels import Losses
from clip_jax.embed import embeddings_of, read_results
from clip_jax.encoder import Encoder
from clip_jax.errors import is_exhausted
from clip_jax.evaluate.data import encode_in_batches, rows_at_a_time
from clip_jax.evaluate.results import LeftOut
from clip_jax.naming import reading
from clip_jax.picture_options import PictureOptions
from clip_jax.preprocess import decode_image
from clip_jax.progress import Progress, announce, remark
from clip_jax.sources import Columns, open_pairs
from clip_jax.sources.stand_ins import warn_of_stand_ins
from clip_jax.storage import Unreachable
from clip_jax.weights.opened import Opened

# Batches of captions between two updates of the progress. Captions are sorted by their length into
# batches, of which each call leaves some half empty.
TEXT_BATCHES = 64


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Embeddings of images and of their captions.

    Attributes:
        images: (i, d) embeddings.
        texts: (t, d) embeddings.
        pairs: (t,) the image of each text, as an index into `images`.
        keys: (i) names of the images within their source.
        paths: (i) paths of the images; None for those that have none.
        captions: (t) the texts.
        left_out: images that could not be read, or have not been embedded.
        read: reads the file of an image without a path, given its index; None if there is no such.
    """

    images: Float[np.ndarray, "i d"]
    texts: Float[np.ndarray, "t d"]
    pairs: Int[np.ndarray, " t"]
    keys: Sequence[str]
    paths: Sequence[str | None]
    captions: Sequence[str]
    left_out: LeftOut
    read: Callable[[int], bytes] | None = None


def read_captioned(source: str) -> Captioned:
    """Reads what an embedding job of pictures and captions has left.

    Rows with the same path are one image with several captions.

    Raises:
        ValueError: the job has not embedded both pictures and captions.
        OSError: its output can't be read.

    Warns:
        UserWarning: the job is not finished.
    """
    found = read_results(source, ("text_embedding", "key", "path", "caption"))
    table = found.table
    keys, paths, texts = (table[name].to_pylist() for name in ("key", "path", "caption"))
    # A table with a row for each caption names a picture several times.
    numbers: dict[str, int] = {}
    pairs = [numbers.setdefault(path, len(numbers)) for path in paths]
    first = np.unique(pairs, return_index=True)[1]
    return Captioned(
        embeddings_of(table, "embedding")[first],
        embeddings_of(table, "text_embedding"),
        np.array(pairs),
        [keys[row] for row in first],
        [paths[row] for row in first],
        texts,
        LeftOut(found.problems, found.missing, found.unknown),
    )


def embed_captioned(
    source: str | os.PathLike[str],
    opened: Opened,
    *,
    columns: Columns | None = None,
    where: str | Sequence[str] | None = None,
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
        opened: any CLIP model, with what makes its inputs.
        columns: the names of a table's columns.
        where: the conditions that a row of a table or of a tar file must fit to be taken.
        pictures: how pictures become pixels; by default as for the model.
        batch_size: of pictures and of captions, as for `Encoder`.
        progress: whether to show progress on standard error.

    Raises:
        ValueError: the pairs are unfit, which it lists, or no picture can be read.
        OSError: the source can't be read.
    """
    opened.check_strings()
    pairs = open_pairs(source, columns, max_skipped=1.0, where=where)
    remark(pairs.left_out.choice(), progress)
    warn_of_stand_ins(pairs, os.fspath(source))
    preprocess, losses = PictureOptions.of(pictures).applied_to(opened.preprocess), Losses()
    encoder = Encoder(opened.model, batch_size=batch_size)
    captions: list[str] = []
    image_of: list[int] = []
    read: list[int] = []
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
                    decoded = decode_image(pair.image, preprocess=preprocess)
                    image = preprocess.pixels(decoded)
            except (OSError, ValueError) as error:
                if isinstance(error, Unreachable) or is_exhausted(error):
                    raise
                problems.append(f"{pairs.key(number)}: {error}")
                continue
            captions.extend(pair.captions)
            losses.add(preprocess.losses(decoded), pair.key)
            numbers[picture] = len(read)
            image_of.extend([len(read)] * len(pair.captions))
            read.append(number)
            yield image

    with Progress(progress) as bar:

        def encoded(rows: int) -> None:
            bar.update(rows, errors=len(problems), total=len(pairs))

        parts = encode_in_batches(pixels(), encoder.images, rows_at_a_time(encoder), encoded)
        encoded(len(read))
    for sentence in losses.sentences():
        remark(sentence, progress)
    if not parts:
        raise ValueError(f"{source}: no picture can be read; the first: {problems[0]}")
    announce("embedding the captions", progress)
    tokens = opened.tokens(captions)
    texts, step = [], TEXT_BATCHES * encoder.batch_size
    with Progress(progress) as bar:
        for begin in range(0, len(tokens), step):
            texts.append(encoder.texts(tokens[begin : begin + step]))
            bar.update(min(begin + step, len(tokens)), total=len(tokens))
    return Captioned(
        np.concatenate(parts),
        np.concatenate(texts),
        np.array(image_of),
        [pairs.key(number) for number in read],
        [None] * len(read),
        captions,
        LeftOut(problems),
        lambda image: pairs[read[image]].image,
    )
