"""Labelled images as embeddings: of pictures, or from what an embedding job has left."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float

from clip_jax.config import ViTConfig
from clip_jax.embed import read_embeddings
from clip_jax.embed.identity import read_job
from clip_jax.embed.load import Loader, Turns, loading
from clip_jax.embed.watch import Watch
from clip_jax.encoder import Encoder
from clip_jax.nn import CLIP, flatten, from_parameters, nest, parameters
from clip_jax.preprocess import Preprocess
from clip_jax.sources import Columns, Record, open_input
from clip_jax.storage import Disk, storage

Features = Literal["before", "after"]

THREADS = 4
# Bytes of pictures on their way to the device.
READ_AHEAD = 256 << 20
# Batches that go to the encoder in one call.
BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Images:
    """Embedded images.

    Attributes:
        embeddings: (n, d) float32; normalised where they come from an embedding job.
        labels: the class of each, as it is called in the data.
        keys: which one each is.
        paths: where the pictures are.
        problems: what could not be read, with the reason.
    """

    embeddings: Float[np.ndarray, "n d"]
    labels: list[str]
    keys: list[str]
    paths: list[str | None]
    problems: list[str]


def embedding_job(source: str) -> dict[str, Any] | None:
    """What is noted of the embedding job in that folder; None where it is no such folder."""
    return read_job(source) if storage(source).is_folder(source) else None


def read_images(source: str, label_column: str = "label") -> Images:
    """The image embeddings and labels of an embedding job's output.

    Raises:
        ValueError: there are no image embeddings, or there is no such column; says which there are.
        OSError: they can't be read.
    """
    table = read_table(source, ("key", "path", label_column))
    labels = table[label_column].to_pylist()
    if None in labels:
        raise ValueError(f"{source}: row {labels.index(None)} has no {label_column!r}")
    return Images(
        embeddings_of(table, "embedding"),
        [str(label) for label in labels],
        table["key"].to_pylist(),
        table["path"].to_pylist(),
        [],
    )


def read_table(source: str, columns: Sequence[str]) -> Any:
    """An Arrow table of image embeddings and some other columns."""
    dataset = read_embeddings(source)
    job = read_job(source)
    if job is None or job["embeddings"].get("embedding") != "image":
        raise ValueError(f"{source} has no embeddings of images: embed them with --what images")
    if missing := [name for name in columns if name not in dataset.schema.names]:
        names = ", ".join(map(repr, dataset.schema.names))
        raise ValueError(
            f"{source} has no column {missing[0]!r}; its columns are {names}. Embed with --columns "
            "to take one along"
        )
    return dataset.to_table(columns=["embedding", *columns])


def embeddings_of(table: Any, column: str) -> Float[np.ndarray, "n d"]:
    """A column of fixed-size lists as a float32 array."""
    chunks = table[column].combine_chunks()
    values = chunks.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(table), -1).astype(np.float32, copy=False)


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
        source: a folder of class folders; or WebDataset's .tar files or a .csv, .jsonl or .parquet
            table, by a path or a pattern.
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
    if is_folder:
        _check_class_folders(source)
    column = label_column or ("cls" if source.endswith(".tar") else "label")
    columns = Columns() if is_folder else Columns(others=(column,))
    shards = open_input(source, columns).shards
    encoder = Encoder(model, batch_size=batch_size)
    records = (record for shard in shards for record in _all(shard))
    watch = Watch(progress)
    kept, embeddings, problems = _embed(records, encoder, model, watch)
    labels = [_label(record, None if is_folder else column) for record in kept]
    for record, label in zip(kept, labels, strict=True):
        if label is None:
            raise ValueError(
                f"{source}: {record.key} has no label: expected class folders"
                if is_folder
                else f"{source}: {record.key} has no {column!r}: give the label column"
            )
    if not kept:
        raise ValueError(f"{source}: no picture can be read; the first: {problems[0]}")
    return Images(
        embeddings,
        [str(label) for label in labels],
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
    return from_parameters(config, nest(arrays), dtype=model.dtype, precision=model.precision)


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
    records: Iterable[Record], encoder: Encoder, model: CLIP, watch: Watch
) -> tuple[list[Record], Float[np.ndarray, "n d"], list[str]]:
    turns = Turns(are_taken=jax.default_backend() == "cpu")
    loader = Loader(
        preprocess=Preprocess(model.config.vision.image_size),
        context_length=None,
        exif_transpose=False,
        watch=watch,
        turns=turns,
    )
    numbered = ((None, number, record) for number, record in enumerate(records))
    kept: list[Record] = []
    problems: list[str] = []

    def good(ready: Iterable[Any]) -> Any:
        for loaded in ready:
            if loaded.problem is not None:
                problems.append(f"{loaded.record.key}: {loaded.problem}")
                watch.failed(problems[-1])
                continue
            kept.append(loaded.record)
            watch.rows += 1
            watch.shown(None)
            yield loaded.pixels

    def encode(pixels: np.ndarray) -> np.ndarray:
        with turns.computing():
            return encoder.images(pixels)

    with loading(numbered, loader, num_threads=THREADS, read_ahead=READ_AHEAD) as ready:
        parts = encode_in_batches(good(ready), encode, BATCHES * encoder.batch_size)
    watch.summary()
    empty = np.empty((0, encoder.embed_dim), np.float32)
    return kept, np.concatenate([empty, *parts]), problems


def _all(shard: Any) -> Iterable[Record]:
    rows = shard.open()
    return rows.records(0, len(rows))


def _label(record: Record, column: str | None) -> str | None:
    if column is None:
        folder, slash, _ = record.key.partition("/")
        return folder if slash else None
    value = record.columns[column]
    return None if value is None or value == "" else str(value).strip()


def _check_class_folders(source: str) -> None:
    """Object stores have no empty folders."""
    if not isinstance(storage(source), Disk):
        return
    folders = sorted(entry.path for entry in os.scandir(source) if entry.is_dir())
    if not folders:
        raise ValueError(f"{source} holds no class folders: expected one a class, with its images")
    for folder in folders:
        try:
            open_input(folder)
        except ValueError as error:
            raise ValueError(f"a class folder without images: {error}") from None
