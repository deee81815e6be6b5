"""How pictures become pixels in an evaluation: alike in all of its sources."""

from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.picture_options import PictureOptions


def same_pictures(
    sources: Sequence[str],
    jobs: Sequence[Mapping[str, Any] | None],
    pictures: PictureOptions | None,
) -> PictureOptions:
    """Returns how the pictures of all sources become pixels: as those embedded already did.

    Args:
        sources: embedding jobs' outputs, or pictures.
        jobs: the job of each; None for pictures.
        pictures: what the caller says; what has its default isn't said.

    Raises:
        ValueError: embeddings were made in another way than that, or than others of the sources;
            or the pictures of one source were rotated, and those of another are not.
        TypeError: `pictures` are no such options.
    """
    told = PictureOptions.of(pictures)
    embedded = [(each, job["identity"]) for each, job in zip(sources, jobs, strict=True) if job]
    if not embedded:
        return told
    first, identity = embedded[0]
    noted = PictureOptions.noted_in(identity)
    if told.chosen() and told != noted:
        raise ValueError(
            f"{first} was embedded with {_said(noted)}, and this asks for {_said(told)}, which "
            "embeddings can't be given any more: leave it out, or give the pictures instead"
        )
    for other, theirs in embedded[1:]:
        if PictureOptions.noted_in(theirs) != noted:
            raise ValueError(
                f"{first} was embedded with {_said(noted)}, {other} with "
                f"{_said(PictureOptions.noted_in(theirs))}: embed both alike"
            )
        if identity.get("preprocessing") != theirs.get("preprocessing"):
            raise ValueError(
                f"of {first} and {other} one was embedded with --preprocessing huggingface "
                "(preprocessing=), or with another one than the other: embed both alike"
            )
    rotated = [bool(job and job["identity"].get("exif_transpose")) for job in jobs]
    if len(set(rotated)) > 1:
        raise ValueError(
            f"the pictures of {sources[rotated.index(True)]} were rotated by their EXIF data as "
            f"they were embedded, and those of {sources[rotated.index(False)]} are not: embed both "
            "alike"
        )
    return noted


def _said(pictures: PictureOptions) -> str:
    """Returns the options that differ from their defaults, as text."""
    chosen = pictures.chosen()
    if not chosen:
        return "pictures as the model has them"
    return ", ".join(f"{name} {value!r}" for name, value in chosen.items())
