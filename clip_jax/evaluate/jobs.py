"""Zero-shot classification and retrieval, from pictures or embeddings to figures."""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from clip_jax.config import Activation, NumHeads
from clip_jax.evaluate.classes import check_classes, name_classes
from clip_jax.evaluate.classifier import TEMPLATES, ZeroShotClassifier, check_prompts
from clip_jax.evaluate.data import class_folders
from clip_jax.evaluate.inputs import (
    Model,
    embedding_job,
    find_captioned,
    find_images,
    find_model,
    name_of,
)
from clip_jax.evaluate.labels import best_of, number_labels
from clip_jax.evaluate.provenance import provenance_of
from clip_jax.evaluate.recall import EXACT_RANKS, KS, ranks_of_positives, recalls
from clip_jax.evaluate.results import RetrievalResult, ZeroShotResult
from clip_jax.evaluate.retrieval_mistakes import worst_mistakes
from clip_jax.evaluate.scores import blocks, score_blocks
from clip_jax.image_size import ImageSize
from clip_jax.picture_options import PictureOptions
from clip_jax.progress import announce
from clip_jax.sources import Columns
from clip_jax.weights.opened import LoadOptions
from clip_jax.weights.positions import PositionResize
from clip_jax.weights.tokenizers import Preprocessing


def zeroshot(
    source: str | os.PathLike[str],
    model: Model | None = None,
    *,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    label_column: str | None = None,
    image_column: str = Columns.image,
    where: str | Sequence[str] | None = None,
    pictures: PictureOptions | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    activation: Activation | None = None,
    num_heads: NumHeads | None = None,
    preprocessing: Preprocessing = "openai",
    image_size: ImageSize | None = None,
    position_resize: PositionResize | None = None,
    drop_remainder: bool = False,
) -> ZeroShotResult:
    """Classifies labelled pictures by the names of their classes (Radford et al. 2021, 3.1).

    Pictures that can't be read are left out, and listed in `result.left_out`. A picture may have
    several labels, a list in its column, all of which are right: it counts as one of the class
    among them that has the highest score.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("red", "blue"):
        ...     (folder / name).mkdir()
        ...     Image.new("RGB", (64, 64), name).save(folder / name / "0.png")
        >>> result = zeroshot(folder, "emoji", templates=["{} square"], progress=False)
        >>> result.class_names, result.scores.count
        (['blue', 'red'], 2)
        >>> 0 <= result.scores.top1 <= 1
        True

    Args:
        source: a folder with a folder of pictures for each class; WebDataset's .tar files, or a
            .csv, .jsonl or .parquet table, as a path or a pattern; or the output folder of
            `clip_jax.embed.embed`.
        model: a model, or what `clip_jax.load` takes; None for that of the embedding job, or for
            ViT-B/32 where the source is pictures.
        class_names: one entry a class: the label; or the label, a tab and the name; or, for labels
            that are numbers, the names of class 0, class 1, and so on. None if the labels are the
            names.
        templates: sentences with `{}` where the name goes.
        label_column: the column that holds the labels, or "cls" for WebDataset's .cls members;
            None for "cls" in .tar files and "label" elsewhere.
        image_column: the column of a table that holds the pictures.
        where: the conditions that a row of a table or of a tar file must fit to be taken, as for
            `clip_jax.embed.embed`.
        pictures: whether pictures are cropped, padded or squashed, and the like; by default as for
            the model. Embeddings must have been made so.
        batch_size: of pictures and of prompts, as for `clip_jax.Encoder`.
        progress: whether to show progress on standard error.
        activation: of a model that is a bare file, as for `clip_jax.load`.
        num_heads: likewise.
        preprocessing: whose pixels and ids, as for `clip_jax.load`.
        image_size: another size of the images, as for `clip_jax.load`.
        position_resize: how positions are resized for it, likewise.
        drop_remainder: whether it may be no multiple of the patches' size, likewise.

    Returns:
        The figures, in `result.scores`, with each picture's class and prediction.

    Raises:
        ValueError: the source has no pictures, no labels or only one class, a label has no class
            name or is a number, a name or a template is unfit, or the embeddings are another
            model's.
        OSError: the source can't be read.

    Warns:
        UserWarning: the embedding job is not finished.
    """
    source = os.fspath(source)
    # What can be wrong is found before a model is loaded and pictures are read in vain.
    folders, _ = class_folders(source)
    check_prompts(name_classes(folders, class_names)[0] or ["a"], templates)
    check_classes(source, folders, class_names)
    options = LoadOptions(
        activation, num_heads, preprocessing, image_size, position_resize, drop_remainder
    )
    found = find_model(source, model, progress, options)
    job = embedding_job(source)
    provenance = provenance_of(source, job, name_of(job, model), found.model, pictures)
    images = find_images(
        source,
        found,
        label_column=label_column,
        image_column=image_column,
        where=where,
        pictures=pictures,
        batch_size=batch_size,
        progress=progress,
    )
    names, right = number_labels(images.labels, class_names)
    check_classes(source, names, class_names)
    announce("embedding the prompts", progress)
    classifier = ZeroShotClassifier(
        found.model, names, templates, batch_size=batch_size, tokenizer=found.tokenizer
    )
    targets = np.empty(len(right), np.int64)

    def logits() -> Iterator[np.ndarray]:
        for rows in blocks(len(targets), len(names)):
            block = classifier.logits(images.embeddings[rows])
            targets[rows] = best_of(block, right[rows])  # scored after it is yielded
            yield block

    return ZeroShotResult(
        scores=score_blocks(logits(), targets, is_independent=classifier.is_independent),
        class_names=names,
        targets=targets,
        keys=images.keys,
        paths=images.paths,
        left_out=images.left_out,
        templates=classifier.templates,
        provenance=provenance,
    )


def retrieval(
    source: str | os.PathLike[str],
    model: Model | None = None,
    *,
    columns: Columns | None = None,
    where: str | Sequence[str] | None = None,
    pictures: PictureOptions | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    activation: Activation | None = None,
    num_heads: NumHeads | None = None,
    preprocessing: Preprocessing = "openai",
    image_size: ImageSize | None = None,
    position_resize: PositionResize | None = None,
    drop_remainder: bool = False,
) -> RetrievalResult:
    r"""Searches for captions by pictures and for pictures by captions.

    Pictures that can't be read are left out with their captions, and so are pairs that lack one of
    the two; `result.left_out` lists them. Rows of a table with the same picture are one picture
    with several captions.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("red", "blue"):
        ...     Image.new("RGB", (64, 64), name).save(folder / f"{name}.png")
        >>> table = folder / "captions.csv"
        >>> _ = table.write_text("image,caption\nred.png,red square\nblue.png,blue square\n")
        >>> result = retrieval(table, "emoji", progress=False)
        >>> result.num_images, result.num_texts, result.recalls["text_to_image"][5]
        (2, 2, 1.0)

    Args:
        source: WebDataset's .tar files; tables of captions, or a folder that holds one; a folder
            of pictures with their captions beside them, in .txt files; or the output folder of
            `clip_jax.embed.embed` with `what="both"`.
        model: a model, or what `clip_jax.load` takes; None for ViT-B/32 where the source is
            pictures. Embeddings need none; where one is given, they must be of that model.
        columns: the names of a table's columns, as for `clip_jax.embed.embed`.
        where: the conditions that a row of a table or of a tar file must fit to be taken, likewise.
        pictures: as for `zeroshot`.
        batch_size: of pictures and of captions, as for `clip_jax.Encoder`.
        progress: whether to show progress on standard error.
        activation: of a model that is a bare file, as for `clip_jax.load`.
        num_heads: likewise.
        preprocessing: whose pixels and ids, as for `clip_jax.load`.
        image_size: another size of the images, as for `clip_jax.load`.
        position_resize: how positions are resized for it, likewise.
        drop_remainder: whether it may be no multiple of the patches' size, likewise.

    Returns:
        The recall at 1, 5 and 10, each rank, and the worst mistakes of each direction.

    Raises:
        ValueError: the pairs are unfit, no picture can be read, or the embeddings are another
            model's or not of both pictures and captions.
        OSError: the source can't be read.

    Warns:
        UserWarning: the embedding job is not finished.
    """
    source = os.fspath(source)
    options = LoadOptions(
        activation, num_heads, preprocessing, image_size, position_resize, drop_remainder
    )
    job = embedding_job(source)
    # Embeddings alone need no model; where one is given, it is compared with theirs.
    found = None if job and model is None else find_model(source, model, progress, options)
    provenance = provenance_of(source, job, name_of(job, model), found and found.model, pictures)
    captioned = find_captioned(
        source,
        found,
        columns=columns,
        where=where,
        pictures=pictures,
        batch_size=batch_size,
        progress=progress,
    )
    images, texts, image_of = captioned.images, captioned.texts, captioned.pairs
    announce("comparing pictures and captions", progress)
    ranks = ranks_of_positives(images, texts, image_of, EXACT_RANKS)
    numbers = np.arange(len(images))
    mistakes = {
        "image_to_text": worst_mistakes(ranks["image_to_text"], images, texts, numbers, image_of),
        "text_to_image": worst_mistakes(ranks["text_to_image"], texts, images, image_of, numbers),
    }
    return RetrievalResult(
        num_images=len(images),
        num_texts=len(texts),
        recalls=recalls(ranks, KS),
        left_out=captioned.left_out,
        ranks=ranks,
        mistakes=mistakes,
        pairs=image_of,
        keys=captioned.keys,
        paths=captioned.paths,
        captions=captioned.captions,
        provenance=provenance,
        read=captioned.read,
    )
