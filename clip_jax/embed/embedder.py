"""A class that embeds batches of pictures inside other people's pipelines."""

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.config import Activation, NumHeads
from clip_jax.embed.engines.embedding import encoder_of
from clip_jax.embed.engines.local import num_cores
from clip_jax.embed.options import check_counts, require_pyarrow
from clip_jax.embed.setup import PRESETS, Preset
from clip_jax.image_size import ImageSize
from clip_jax.loading import Loader
from clip_jax.nn import CLIP
from clip_jax.picture_options import PictureOptions
from clip_jax.preprocess import known_formats
from clip_jax.sources import Record
from clip_jax.sources.addresses import read_address
from clip_jax.sources.faults import problem_of
from clip_jax.weights import load
from clip_jax.weights.opened import LoadOptions, open_model
from clip_jax.weights.positions import PositionResize
from clip_jax.weights.tokenizers import Preprocessing


class ImageEmbedder:
    """Embeds batches of pictures, for `map_batches` of Ray Data and the like.

    It is made once in each process, where it takes all devices, and then called with batches of
    any size, which run through one program. Sent to another process by pickle, it is made there
    again from the same arguments: a model's name or path costs less than a model. Embeddings have
    L2 norm 1, and are those of `clip_jax.embed.embed` for the same options, to the bit.

    Example:
        import ray
        from clip_jax.embed import ImageEmbedder

        pictures = ray.data.read_binary_files("s3://bucket/pictures", include_paths=True)
        embedded = pictures.map_batches(
            ImageEmbedder,
            fn_constructor_kwargs={"model": "ViT-L/14", "column": "bytes"},
            batch_size=256,
            num_gpus=1,
            compute=ray.data.ActorPoolStrategy(size=8),
        )
        embedded.drop_columns(["bytes"]).write_parquet("s3://bucket/embeddings")
    """

    def __init__(
        self,
        model: CLIP | str | os.PathLike[str] = "ViT-B/32",
        *,
        column: str = "image",
        embedding: str = "embedding",
        reason: str = "reason",
        preset: Preset = "parity",
        batch_size: int | None = None,
        exif_transpose: bool = False,
        pictures: PictureOptions | None = None,
        formats: Sequence[str] | None = None,
        num_threads: int | None = None,
        activation: Activation | None = None,
        num_heads: NumHeads | None = None,
        preprocessing: Preprocessing = "openai",
        image_size: ImageSize | None = None,
        position_resize: PositionResize | None = None,
        drop_remainder: bool = False,
    ):
        """Loads the model; programs are compiled with the first batch.

        Args:
            model: a model, or what `clip_jax.load` takes.
            column: the column of pictures: the bytes of image files; paths, or addresses that
                fsspec knows; dicts of `bytes` and `path`, as Hugging Face's data sets have them;
                arrays of pixels, (h, w, 3) or (h, w) uint8; or PIL's images.
            embedding: the column to add.
            reason: the column to add that says why a row has no embedding.
            preset: as for `embed`.
            batch_size: as for `embed`.
            exif_transpose: as for `embed`; not for arrays.
            pictures: as for `embed`.
            formats: as for `embed`.
            num_threads: threads that read and decode; by default one per core.
            activation: as for `clip_jax.load`.
            num_heads: as for `clip_jax.load`.
            preprocessing: as for `clip_jax.load`.
            image_size: as for `clip_jax.load`.
            position_resize: as for `clip_jax.load`.
            drop_remainder: as for `clip_jax.load`.

        Raises:
            ValueError: as `clip_jax.load`; or an option is out of range.
            CheckpointError: as `clip_jax.load`.
            DownloadError: as `clip_jax.load`.
            ModuleNotFoundError: the extra `embed` isn't installed.
        """
        self._arguments = {name: value for name, value in locals().items() if name != "self"}
        require_pyarrow()
        check_counts(batch_size=batch_size, num_threads=num_threads)
        picture_options = PictureOptions.of(pictures)
        if preset not in PRESETS:
            known = ", ".join(map(repr, PRESETS))
            raise ValueError(f"preset must be one of {known}. Got {preset!r}.")
        if len({column, embedding, reason}) < 3:
            raise ValueError(
                "column, embedding and reason must be three different names. Got "
                f"{column!r}, {embedding!r} and {reason!r}."
            )
        options = LoadOptions(
            activation, num_heads, preprocessing, image_size, position_resize, drop_remainder
        )
        how = {} if isinstance(model, CLIP) else PRESETS[preset]
        opened = open_model(model, options, load, **how)
        self._column, self._embedding, self._reason = column, embedding, reason
        self._preprocess = picture_options.applied_to(opened.preprocess)
        self._loader = Loader(
            preprocess=self._preprocess,
            context_length=None,
            exif_transpose=exif_transpose,
            formats=known_formats(formats),
        )
        self._num_threads = num_threads or num_cores()
        self._encoder = encoder_of(opened.model, batch_size)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the arguments: where it is sent by pickle, it is made again."""
        return self._arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Embeds a batch.

        Args:
            batch: columns of one length by their names: a mapping of sequences or arrays, as Ray
                has it for "numpy" and "pyarrow", or a data frame of pandas.

        Returns:
            These columns and two more, as Arrow arrays: fixed-size lists of float32, null for the
            rows that can't be embedded; and strings, null for the others.

        Raises:
            ValueError: there is no such column, or one of a name that is to be added.
            OSError: a store can't be reached, or the machine has run out of something.
        """
        import pyarrow as pa

        if names := getattr(batch, "column_names", None):  # Arrow's
            batch = {name: batch[name] for name in names}
        if not hasattr(batch, "keys"):
            raise ValueError(
                f"expected a batch of columns by their names, such as a dict. Got {type(batch)}"
            )
        if self._column not in batch:
            raise ValueError(
                f"the batch has no column {self._column!r}. It has {', '.join(map(repr, batch))}"
            )
        for name in (self._embedding, self._reason):
            if name in batch:
                raise ValueError(f"the batch has a column {name!r} already: name another to add")
        column: Any = batch[self._column]
        if isinstance(column, str | bytes) or not hasattr(column, "__iter__"):
            raise ValueError(
                f"expected a column {self._column!r} of several pictures. Got {type(column)}"
            )
        if hasattr(column, "to_pylist"):
            column = column.to_pylist()
        with concurrent.futures.ThreadPoolExecutor(self._num_threads) as pool:
            loaded = list(pool.map(self._pixels, column))
        pixels = [each for each in loaded if not isinstance(each, str)]
        dim = self._encoder.embed_dim
        rows = self._encoder.images(np.stack(pixels)) if pixels else np.empty((0, dim), np.float32)
        failed = np.array([isinstance(each, str) for each in loaded], bool)
        values = np.zeros((len(loaded), dim), np.float32)
        values[~failed] = rows
        lists = pa.FixedSizeListArray.from_arrays(
            pa.array(values.ravel()), dim, mask=pa.array(failed)
        )
        reasons = pa.array([x if isinstance(x, str) else None for x in loaded], pa.string())
        return {**batch, self._embedding: lists, self._reason: reasons}

    def _pixels(self, value: Any) -> np.ndarray | str:
        """Returns a row's pixels, or why there are none."""
        try:
            if isinstance(value, np.ndarray) and value.ndim:
                value = _picture(value)
            if isinstance(value, Image.Image):
                return self._preprocess.pixels(value)
        except Exception as error:  # of one row, as below
            return problem_of(error)
        loaded = self._loader(None, 0, Record("", _reader(value)))
        if loaded.pixels is None:
            return loaded.problem or ""
        return loaded.pixels


def _picture(pixels: np.ndarray) -> Image.Image:
    with contextlib.suppress(TypeError):  # Pillow's of shapes and types that it hasn't
        if pixels.ndim > 1:
            return Image.fromarray(pixels)
    raise ValueError(
        f"expected an array of pixels, (h, w, 3) or (h, w) uint8. Got {pixels.shape} {pixels.dtype}"
    )


def _reader(value: Any) -> Callable[[], bytes] | None:
    """Returns what reads a picture's file, given what stands in the column."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return functools.partial(bytes, value)
    if isinstance(value, str | os.PathLike) and os.fspath(value):
        return functools.partial(read_address, os.fspath(value))
    return None
