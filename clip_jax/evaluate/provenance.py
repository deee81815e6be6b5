"""Where the figures of an evaluation come from: the data, the model, the date and the version."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from clip_jax.nn import CLIP, model_digest
from clip_jax.pages import now
from clip_jax.picture_options import PictureOptions
from clip_jax.version import __version__

# Characters of a model's fingerprint that are shown, as embedding jobs do.
SHORT = 16


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where the figures of an evaluation come from.

    Attributes:
        source: the data that was evaluated.
        model: the name or path of the model; None if it was given as an object.
        fingerprint: of the model's configuration and parameters, as embedding jobs have it.
        date: when the evaluation began, in ISO 8601 with the time zone.
        version: of clip_jax.
        pictures: where the pictures are: the source; or the input of the embedding job that the
            source is, None where it isn't known.
        image_column: the column of pictures in Parquet files.
        pixels: what was chosen of how pictures become pixels, such as {"fit": "pad"}; the rest is
            as the model has it.
    """

    source: str
    model: str | None
    fingerprint: str
    date: str
    version: str = __version__
    pictures: str | None = None
    image_column: str = "image"
    pixels: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def provenance_of(
    source: str,
    job: dict[str, Any] | None,
    name: str | os.PathLike[str] | None,
    model: CLIP | None,
    pictures: PictureOptions | None,
) -> Provenance:
    """Returns the provenance of an evaluation that begins now.

    Args:
        source: the data.
        job: the embedding job that the source is the output of, if it is.
        name: the model's name or path; None if it was given as an object.
        model: the model; may be None for the output of an embedding job, which names it.
        pictures: what was chosen of how pictures become pixels; a job has its own.
    """
    assert job or model is not None, "pictures need a model"
    made = PictureOptions.noted_in(job["identity"]) if job else PictureOptions.of(pictures)
    digest = job["identity"]["model"] if job else model_digest(model)  # pyright: ignore[reportArgumentType]
    return Provenance(
        source=source,
        model=None if name is None else os.fspath(name),
        fingerprint=digest[:SHORT],
        date=now(),
        pictures=job.get("source") if job else source,
        image_column=job["image_column"] if job else "image",
        pixels=made.chosen(),
    )
