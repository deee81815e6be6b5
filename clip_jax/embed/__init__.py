"""Batch embedding that resumes where it was stopped, and functions that read its output."""

from typing import Any

from clip_jax.embed.counts import Summary as Summary
from clip_jax.embed.embedder import ImageEmbedder as ImageEmbedder
from clip_jax.embed.gaps import Incomplete as Incomplete
from clip_jax.embed.identity import check_model as check_model
from clip_jax.embed.identity import read_job as read_job
from clip_jax.embed.job import embed as embed
from clip_jax.embed.results import Results as Results
from clip_jax.embed.results import embeddings_of as embeddings_of
from clip_jax.embed.results import read_embeddings as read_embeddings
from clip_jax.embed.results import read_results as read_results
from clip_jax.picture_options import PictureOptions as PictureOptions
from clip_jax.sources import Columns as Columns

_MOVED = ("search", "contact_sheet")  # to clip_jax.search, in 0.2


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        import warnings

        from clip_jax import search

        warnings.warn(
            f"clip_jax.embed.{name} is clip_jax.search.{name} now, and goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(search, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
