"""Embedded images with their labels: embedded here, or read from an embedding job's output."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from clip_jax.channels import Losses
from clip_jax.config import ViTConfig
from clip_jax.embed import embeddings_of, read_job, read_results
from clip_jax.encoder import Encoder
from clip_jax.evaluate.labels import Labels, as_labels
from clip_jax.evaluate.results import LeftOut
from clip_jax.loading import CpuGate, Loader, loading
from clip_jax.messages import some
from clip_jax.nn import CLIP, flatten, from_parameters, parameters, unflatten
from clip_jax.nn.tree import check_unadapted
from clip_jax.picture_options import PictureOptions
from clip_jax.preprocess import Preprocess
from clip_jax.progress import Progress, remark
from clip_jax.sources import Columns, Input, Record, faults, open_input
from clip_jax.sources.datasets import data_set_of
from clip_jax.sources.records import as_text
from clip_jax.sources.tar_index import is_shard
from clip_jax.storage import Disk, storage

Features = Literal["before", "after"]

THREADS = 4
# Bytes of pictures that are read but not yet embedded.
READ_AHEAD = 256 << 20
# Batches that are passed to the encoder in one call.
BATCHES = 4

# The column of a record that holds its classes, once they are known.
_LABEL = "classes"


@dataclasses.dataclass(frozen=True)
class Images:
    """Embedded images.

    Attributes:
        embeddings: (n, d) float32; normalised if they come from an embedding job.
        labels: (n) the right classes of each image, as they are called in the source; mostly one.
        keys: (n) names of the images within the source.
        paths: (n) paths of the images; None for members of archives and the like.
        left_out: images that could not be read or have no label, or have not been embedded.
    """

    embeddings: Float[np.ndarray, "n d"]
    labels: list[Labels]
    keys: list[str]
    paths: list[str | None]
    left_out: LeftOut


def class_folders(source: str) -> tuple[list[str], list[str]]:
    """Returns the names of a local folder's class folders, and of those without pictures.

    No pictures are read. There are no names if the source is something else: an embedding job's
    output, files, a folder that holds tables, or one of an object store, which can't have empty
    folders. Hidden files and folders don't count.

    Raises:
        ValueError: there are no class folders, or none holds pictures.
        OSError: a folder can't be read.
    """
    where = storage(source)
    if not isinstance(where, Disk) or not where.is_folder(source) or read_job(source):
        return [], []
    if data_set_of(source):
        return [], []
    with os.scandir(source) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not _is_hidden(e.name))
    if not names:
        raise ValueError(f"{source} holds no class folders: expected one a class, with its images")
    empty = [name for name in names if not _has_pictures(os.path.join(source, name))]
    if len(empty) == len(names):
        raise ValueError(f"{source}: none of its class folders holds pictures: {some(empty)}")
    return [as_text(name) for name in names if name not in empty], list(map(as_text, empty))


def read_images(source: str, label_column: str = "label") -> Images:
    """Reads the image embeddings and labels that an embedding job has left.

    Raises:
        ValueError: there are no image embeddings, or there is no such column; names the columns.
        OSError: the output can't be read.

    Warns:
        UserWarning: the job is not finished.
    """
    found = read_results(source, ("key", "path", label_column))
    table = found.table
    labels, keys, paths = (table[name].to_pylist() for name in (label_column, "key", "path"))
    try:
        labels = [as_labels(label) for label in labels]
    except ValueError as error:
        raise ValueError(f"{source}: the column {label_column!r} has no labels: {error}") from None
    rows = [row for row, label in enumerate(labels) if label]
    without = [
        f"{key}: no {label_column!r}" for key, label in zip(keys, labels, strict=True) if not label
    ]
    if not rows:
        raise ValueError(f"{source}: no row has a {label_column!r}, such as {keys[0]}")
    embeddings = embeddings_of(table, "embedding")
    return Images(
        embeddings[rows] if without else embeddings,
        [labels[row] for row in rows],
        [keys[row] for row in rows],
        [paths[row] for row in rows],
        LeftOut(found.problems + without, found.missing, found.unknown),
    )


def embed_images(
    source: str,
    model: CLIP,
    *,
    preprocess: Preprocess | None = None,
    label_column: str | None = None,
    image_column: str = Columns.image,
    where: str | Sequence[str] | None = None,
    pictures: PictureOptions | None = None,
    features: Features = "after",
    batch_size: int | None = None,
    progress: bool = True,
) -> Images:
    """Reads and embeds labelled pictures. Those that can't be read or have no label are left out.

    Args:
        source: a folder with a folder of pictures for each class, whose hidden files and folders
            are ignored; or WebDataset's .tar files or a .csv, .jsonl or .parquet table, as a path
            or a pattern.
        model: any CLIP model.
        preprocess: makes the pixels; as the model's configuration says by default.
        label_column: "cls" for the members of .tar files that end in .cls, which is the default
            there; or a key of the JSON members; or a column of the table, "label" by default.
        image_column: the column of a table that holds the pictures.
        where: the conditions that a row of a table or of a tar file must fit to be taken.
        pictures: how pictures become pixels; by default as for the model.
        features: "after" the projection, or "before" it, as in the paper's linear probe of ViTs.
        batch_size: as for `Encoder`.
        progress: whether to show progress on standard error.

    Raises:
        ValueError: there are no pictures, no picture has a label; or the
            features of a ResNet or a SigLIP are to be those before the projection, which it doesn't
            have.
        OSError: the source can't be read.
    """
    if features == "before":
        model = without_projection(model)
    is_folder = storage(source).is_folder(source)
    data_set = data_set_of(source) if is_folder else None
    is_folder = is_folder and data_set is None
    of_shards = is_shard(source) if data_set is None else data_set.suffix == "tar"
    column = label_column or ("cls" if of_shards else "label")
    if is_folder:
        _, empty = class_folders(source)
        if empty:
            warnings.warn(
                f"{source}: classes without pictures are left out: {some(empty)}", stacklevel=3
            )
        found = open_input(source, where=where)
        records = _visible(_all_of(found))
    else:
        found = open_input(source, Columns(image_column, others=(column,)), where=where)
        if found.instead:
            raise ValueError(found.instead)
        records = _all_of(found)
    remark(found.remark, progress)
    unlabelled: list[str] = []

    def labelled() -> Iterator[Record]:
        """Gives records their labels; pictures of those without one are not read."""
        for record in records:
            problem = record.problem
            try:
                labels = _labels(record, None if is_folder else column)
            except ValueError as error:
                labels, problem = (), problem or str(error)
            if not labels and problem is None:
                unlabelled.append(record.key)
                problem = "no class folder" if is_folder else f"no {column!r}"
            yield dataclasses.replace(record, columns={_LABEL: labels}, problem=problem)

    preprocess = preprocess or Preprocess(model.config.vision.image_size, model.config.pixels)
    encoder = Encoder(model, batch_size=batch_size)
    preprocess = PictureOptions.of(pictures).applied_to(preprocess)
    with Progress(progress) as bar:
        kept, embeddings, problems, losses = _embed(labelled(), encoder, preprocess, bar)
    for sentence in (*found.tally.sentences(), *losses.sentences()):
        remark(sentence, progress)
    if not kept and not problems and found.where:
        raise ValueError(f"{source}: no row fits where {found.where}")
    if not kept and unlabelled:
        raise ValueError(
            f"{source}: {unlabelled[0]} has no label: expected class folders"
            if is_folder
            else f"{source}: {unlabelled[0]} has no {column!r}: give the label column"
        )
    if not kept:
        first = f" can be read; the first: {problems[0]}" if problems else ""
        raise ValueError(f"{source}: no picture{first}")
    return Images(
        embeddings,
        [record.columns[_LABEL] for record in kept],
        [record.key for record in kept],
        [record.path for record in kept],
        LeftOut(problems),
    )


def without_projection(model: CLIP) -> CLIP:
    """Returns a ViT whose image embeddings are the features before the projection.

    Raises:
        ValueError: the model is a ResNet, or has layers or settings that its configuration doesn't
            say.
    """
    check_unadapted(model, "and would be evaluated without them")
    vision = model.config.vision
    if not isinstance(vision, ViTConfig):
        raise ValueError(
            "a ResNet has no projection after its attention pooling, whose features the paper "
            "takes: expected features after it"
        )
    if vision.pooling == "attention":
        raise ValueError(
            "SigLIP has no projection after its attention pooling: expected features after it, "
            "which are the pooled ones"
        )
    # The product with the identity is exact. The text tower is not used.
    arrays = dict(flatten(parameters(model)))
    arrays["visual/proj"] = np.eye(vision.width, dtype=np.float32)
    arrays["text_projection"] = np.zeros((model.config.text.width, vision.width), np.float32)
    config = dataclasses.replace(model.config, embed_dim=vision.width)
    return from_parameters(config, unflatten(arrays), dtype=model.dtype, precision=model.precision)


def encode_in_batches(
    pixels: Iterable[np.ndarray],
    encode: Callable[[np.ndarray], np.ndarray],
    rows: int,
    encoded: Callable[[int], None],
) -> list[np.ndarray]:
    """Encodes rows that come one by one, in stacks of at most `rows`.

    Args:
        pixels: one row each.
        encode: encodes a stack of rows.
        rows: of a stack.
        encoded: is told after each stack how many rows have been encoded so far.
    """
    embeddings, waiting, done = [], [], 0

    def stack() -> None:
        nonlocal done
        embeddings.append(encode(np.stack(waiting)))
        done += len(waiting)
        waiting.clear()
        encoded(done)

    for row in pixels:
        waiting.append(row)
        if len(waiting) == rows:
            stack()
    if waiting:
        stack()
    return embeddings


def rows_at_a_time(encoder: Encoder) -> int:
    """Returns how many images to pass to the encoder in one call.

    Several batches keep an accelerator busy while results are fetched. A CPU gains nothing by it,
    and with large models the progress would stand still for minutes.
    """
    return encoder.batch_size * (1 if encoder.device.platform == "cpu" else BATCHES)


def _embed(
    records: Iterable[Record], encoder: Encoder, preprocess: Preprocess, bar: Progress
) -> tuple[list[Record], Float[np.ndarray, "n d"], list[str], Losses]:
    gate = CpuGate(is_shared=encoder.device.platform == "cpu")
    loader = Loader(
        preprocess=preprocess,
        context_length=None,
        exif_transpose=False,
        gate=gate,
    )
    numbered = ((None, number, record) for number, record in enumerate(records))
    kept: list[Record] = []
    problems: list[str] = []

    def good(ready: Iterable[Any]) -> Any:
        for loaded in ready:
            if loaded.problem is not None:
                problems.append(f"{loaded.record.key}: {loaded.problem}")
                continue
            kept.append(loaded.record)
            yield loaded.pixels

    def encode(pixels: np.ndarray) -> np.ndarray:
        with gate.computing():
            return encoder.images(pixels)

    def encoded(rows: int) -> None:
        bar.update(rows, errors=len(problems))

    with loading(numbered, loader, num_threads=THREADS, read_ahead=READ_AHEAD) as ready:
        parts = encode_in_batches(good(ready), encode, rows_at_a_time(encoder), encoded)
    encoded(len(kept))
    empty = np.empty((0, encoder.embed_dim), np.float32)
    return kept, np.concatenate([empty, *parts]), problems, loader.losses


def _pictures(folder: str) -> Iterator[Record]:
    """Returns the pictures in a folder and below, without hidden files as macOS leaves them."""
    return _visible(_records(folder))


def _has_pictures(folder: str) -> bool:
    try:
        return next(_pictures(folder), None) is not None
    except ValueError:  # there are none, which is said of all such folders at once
        return False


def _visible(records: Iterator[Record]) -> Iterator[Record]:
    return (record for record in records if not _is_hidden(record.key))


def _records(source: str) -> Iterator[Record]:
    return _all_of(open_input(source))  # raises now what is wrong


def _all_of(found: Input) -> Iterator[Record]:
    return (record for shard in found.shards for record in _all(shard))


def _all(shard: Any) -> Iterator[Record]:
    """Yields the rows of a file. Rows that can't be read have a `problem`."""
    rows = faults.opened(shard)
    return faults.all_records(rows, shard.name, 0, len(rows))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _labels(record: Record, column: str | None) -> Labels:
    if column is None:
        folder, slash, _ = record.key.partition("/")
        return (folder,) if slash else ()
    return as_labels(record.columns.get(column))
