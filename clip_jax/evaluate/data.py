"""Labelled images as embeddings: of pictures, or from what an embedding job has left."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from clip_jax.config import ViTConfig
from clip_jax.embed import embeddings_of, read_job, read_results
from clip_jax.encoder import Encoder
from clip_jax.loading import CpuGate, Loader, loading
from clip_jax.nn import CLIP, flatten, from_parameters, parameters, unflatten
from clip_jax.preprocess import Preprocess
from clip_jax.progress import Progress
from clip_jax.sources import Columns, Record, faults, open_input
from clip_jax.sources.records import as_text
from clip_jax.storage import Disk, storage

Features = Literal["before", "after"]

THREADS = 4
# Bytes of pictures on their way to the device.
READ_AHEAD = 256 << 20
# Batches that go to the encoder in one call.
BATCHES = 4

# Where a record has its class, once that is known.
_LABEL = "class"


@dataclasses.dataclass(frozen=True)
class Images:
    """Embedded images.

    Attributes:
        embeddings: (n, d) float32; normalised where they come from an embedding job.
        labels: the class of each, as it is called in the data.
        keys: which one each is.
        paths: where the pictures are.
        problems: what could not be read, with the reason.
        missing: how many more an embedding job should have, and has not.
        unknown: files of an embedding job's input that no part is of.
    """

    embeddings: Float[np.ndarray, "n d"]
    labels: list[str]
    keys: list[str]
    paths: list[str | None]
    problems: list[str]
    missing: int = 0
    unknown: int = 0


def embedding_job(source: str) -> dict[str, Any] | None:
    """What is noted of the embedding job in that folder; None where it is no such folder."""
    return read_job(source) if storage(source).is_folder(source) else None


def class_folders(source: str) -> list[str]:
    """The classes of a folder on this machine's disks, without a look into the pictures.

    No classes where the source is something else: an embedding job, files, or the folder of an
    object store, which has no empty folders.

    Raises:
        ValueError: there is no class folder, or one without pictures. Hidden ones don't count.
        OSError: one can't be read.
    """
    where = storage(source)
    if not isinstance(where, Disk) or not where.is_folder(source) or embedding_job(source):
        return []
    with os.scandir(source) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not _is_hidden(e.name))
    if not names:
        raise ValueError(f"{source} holds no class folders: expected one a class, with its images")
    for name in names:
        folder = os.path.join(source, name)
        try:
            if next(_pictures(folder), None) is None:
                raise ValueError(f"{folder}: its pictures are hidden files")
        except ValueError as error:
            raise ValueError(f"a class folder without images: {error}") from None
    return [as_text(name) for name in names]


def read_images(source: str, label_column: str = "label") -> Images:
    """The image embeddings and labels of an embedding job's output.

    Raises:
        ValueError: there are no image embeddings, or there is no such column; says which there are.
        OSError: they can't be read.

    Warns:
        UserWarning: the job is not finished.
    """
    found = read_results(source, ("key", "path", label_column))
    table = found.table
    labels, keys, paths = (table[name].to_pylist() for name in (label_column, "key", "path"))
    try:
        labels = [_as_label(label) for label in labels]
    except ValueError as error:
        raise ValueError(f"{source}: the column {label_column!r} has no labels: {error}") from None
    rows = [row for row, label in enumerate(labels) if label is not None]
    without = [
        f"{key}: no {label_column!r}"
        for key, label in zip(keys, labels, strict=True)
        if label is None
    ]
    if not rows:
        raise ValueError(f"{source}: no row has a {label_column!r}, such as {keys[0]}")
    embeddings = embeddings_of(table, "embedding")
    return Images(
        embeddings[rows] if without else embeddings,
        [str(labels[row]) for row in rows],
        [keys[row] for row in rows],
        [paths[row] for row in rows],
        found.problems + without,
        found.missing,
        found.unknown,
    )


def embed_images(
    source: str,
    model: CLIP,
    *,
    label_column: str | None = None,
    features: Features = "after",
    batch_size: int | None = None,
    progress: bool = True,
) -> Images:
    """Reads and embeds labelled pictures; those that can't be read are left out and told.

    Args:
        source: a folder of class folders, whose hidden files and folders are left out; or
            WebDataset's .tar files or a .csv, .jsonl or .parquet table, by a path or a pattern.
        model: any CLIP model.
        label_column: of shards and tables: "cls" for the members of a shard that end in .cls, which
            is what it is there unless it is said; else a key of the JSON documents, or a column.
        features: "after" the projection, or "before" it as the paper's linear probe of ViTs.
        batch_size: as `Encoder` has it.
        progress: whether standard error shows how far it is.

    Raises:
        ValueError: there are no pictures, a class folder is empty, a label is missing; or the
            features of a ResNet are asked for before a projection that it doesn't have.
        OSError: the source can't be read.
    """
    if features == "before":
        model = without_projection(model)
    is_folder = storage(source).is_folder(source)
    column = label_column or ("cls" if source.endswith(".tar") else "label")
    if is_folder:
        class_folders(source)
        records = _pictures(source)
    else:
        records = _records(source, Columns(others=(column,)))
    unlabelled: list[str] = []

    def labelled() -> Iterator[Record]:
        """The records; those without a label are not read for nothing."""
        for record in records:
            problem = record.problem
            try:
                label = _label(record, None if is_folder else column)
            except ValueError as error:
                label, problem = None, problem or str(error)
            if label is None and problem is None:
                unlabelled.append(record.key)
                problem = "no class folder" if is_folder else f"no {column!r}"
            yield dataclasses.replace(record, columns={_LABEL: label}, problem=problem)

    encoder = Encoder(model, batch_size=batch_size)
    with Progress(progress) as bar:
        kept, embeddings, problems = _embed(labelled(), encoder, model, bar)
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
        problems,
    )


def without_projection(model: CLIP) -> CLIP:
    """A ViT whose image embeddings are the features before the projection."""
    vision = model.config.vision
    if not isinstance(vision, ViTConfig):
        raise ValueError(
            "a ResNet has no projection after its attention pooling, whose features the paper "
            "takes: expected features after it"
        )
    # The product with the identity is exact, and the text tower is not used.
    arrays = dict(flatten(parameters(model)))
    arrays["visual/proj"] = np.eye(vision.width, dtype=np.float32)
    arrays["text_projection"] = np.zeros((model.config.text.width, vision.width), np.float32)
    config = dataclasses.replace(model.config, embed_dim=vision.width)
    return from_parameters(config, unflatten(arrays), dtype=model.dtype, precision=model.precision)


def encode_in_batches(
    pixels: Iterable[np.ndarray], encode: Callable[[np.ndarray], np.ndarray], rows: int
) -> list[np.ndarray]:
    """Embeddings of rows that come one by one, so many at a time."""
    embeddings, waiting = [], []
    for row in pixels:
        waiting.append(row)
        if len(waiting) == rows:
            embeddings.append(encode(np.stack(waiting)))
            waiting = []
    if waiting:
        embeddings.append(encode(np.stack(waiting)))
    return embeddings


def _embed(
    records: Iterable[Record], encoder: Encoder, model: CLIP, bar: Progress
) -> tuple[list[Record], Float[np.ndarray, "n d"], list[str]]:
    gate = CpuGate(is_shared=encoder.device.platform == "cpu")
    loader = Loader(
        preprocess=Preprocess(model.config.vision.image_size),
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
            bar.update(len(kept), errors=len(problems))
            yield loaded.pixels

    def encode(pixels: np.ndarray) -> np.ndarray:
        with gate.computing():
            return encoder.images(pixels)

    with loading(numbered, loader, num_threads=THREADS, read_ahead=READ_AHEAD) as ready:
        parts = encode_in_batches(good(ready), encode, BATCHES * encoder.batch_size)
    empty = np.empty((0, encoder.embed_dim), np.float32)
    return kept, np.concatenate([empty, *parts]), problems


def _pictures(folder: str) -> Iterator[Record]:
    """Those in a folder and below, but not what notebooks and macOS leave beside them."""
    return (record for record in _records(folder) if not _is_hidden(record.key))


def _records(source: str, columns: Columns | None = None) -> Iterator[Record]:
    shards = open_input(source, columns).shards  # says here and now what is wrong
    return (record for shard in shards for record in _all(shard))


def _all(shard: Any) -> Iterator[Record]:
    """The rows of a file; what can't be read of it is a problem."""
    rows = faults.opened(shard)
    return faults.all_records(rows, shard.name, 0, len(rows))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _label(record: Record, column: str | None) -> str | None:
    if column is None:
        folder, slash, _ = record.key.partition("/")
        return folder if slash else None
    return _as_label(record.columns.get(column))


def _as_label(value: Any) -> str | None:
    """What a column holds as the name of a class; None where it holds nothing.

    Raises:
        ValueError: it is neither text nor a number.
    """
    if value is None or value != value:  # NaN, as pandas writes what is missing
        return None
    if not isinstance(value, str | int | float):
        raise ValueError(f"a label must be text or a number. Got a {type(value).__name__}")
    return str(value).strip() or None
