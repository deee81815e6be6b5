"""A job's identity (model, preprocessing, options and input) and its fingerprint."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from clip_jax.embed.chunks import Chunk
from clip_jax.embed.extensions import read_extensions, write_extension
from clip_jax.messages import differences
from clip_jax.nn import CLIP, model_digest
from clip_jax.sources import Input
from clip_jax.sources.files import ListedFile
from clip_jax.storage import storage
from clip_jax.weights.opened import LoadOptions

JOB = "job.json"
# How many parts an error message names.
SHOWN = 10
# The fields of `job.json` that are used, each with a check of its value.
_NOTED = {
    "fingerprint": lambda value: isinstance(value, str),
    "identity": lambda value: isinstance(value, dict) and _fits(value, _IDENTITY),
    "model": lambda value: value is None or isinstance(value, str),
    "image_column": lambda value: isinstance(value, str),
    "embeddings": lambda value: isinstance(value, dict) and _fits(value, _EMBEDDINGS),
    "dim": lambda value: _is_count(value),
    "shards": lambda value: _is_count(value),
    "types": lambda value: isinstance(value, str),
}
# Fields that jobs of earlier versions lack, with their defaults.
_LATER = {"shards": 1, "types": ""}
_IDENTITY = {
    "model": lambda value: isinstance(value, str),
    "format": lambda value: value in ("parquet", "npy"),
    "dtype": lambda value: value in ("float32", "float16"),
    "rows_per_part": lambda value: _is_count(value),
}
_EMBEDDINGS = {"embedding": lambda value: value in ("image", "text")}


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Returns a short hash of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def read_job(out: str) -> dict[str, Any] | None:
    """Reads `job.json` in an output folder; returns None if there is none.

    `extensions` are those of the job, and `shards` counts theirs, too.

    Raises:
        ValueError: the file is damaged, or that of an extension.
        OSError: the file can't be read.
    """
    path = f"{out}/{JOB}"
    try:
        text = storage(out).read(path)
    except FileNotFoundError:
        return None
    job = None
    with contextlib.suppress(ValueError, RecursionError):
        job = json.loads(text)
    if not isinstance(job, dict) or not _fits({**_LATER, **job}, _NOTED):
        raise ValueError(f"{path} is damaged: remove it, and start the same job again")
    job["extensions"] = extensions = read_extensions(out, job["fingerprint"])
    return job | {"shards": extensions[-1]["shards"]} if extensions else job


def _fits(document: Mapping[str, Any], expected: Mapping[str, Callable[[Any], bool]]) -> bool:
    return all(name in document and fits(document[name]) for name, fits in expected.items())


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def check_model(source: str, job: dict[str, Any], model: CLIP) -> None:
    """Checks that a job's embeddings come from this model.

    Raises:
        ValueError: they come from another; the message gives both fingerprints.
    """
    theirs, ours = job["identity"]["model"], model_digest(model)
    if theirs != ours:
        raise ValueError(
            f"{source} was embedded with another model: its fingerprint is {theirs[:16]}, this "
            f"one's is {ours[:16]}"
        )


def job_options(
    job: Mapping[str, Any], model: str | os.PathLike[str], told: LoadOptions
) -> LoadOptions:
    """Returns how to load a job's model: as the job did, where nothing else is said.

    Args:
        job: the content of `job.json`.
        model: the model's name or path; it may have moved, or become a folder meanwhile.
        told: what the caller says.
    """
    kept = LoadOptions.of(job.get("load"))
    if not os.path.isfile(model):
        kept = dataclasses.replace(kept, activation=None, num_heads=None)
    return LoadOptions.of({**kept.given(), **told.given()})


def claim(
    out: str,
    identity: Mapping[str, Any],
    about: Mapping[str, Any],
    dry: bool,
    extensions: Sequence[Mapping[str, Any]] = (),
) -> bool:
    """Claims a folder for this job by writing `job.json` and its extensions, unless they exist.

    Args:
        out: the folder.
        identity: the job's identity.
        about: other fields of `job.json`.
        dry: whether to write nothing.
        extensions: the notes of what the input has got since the job began.

    Returns:
        Whether the folder is this job's now.

    Raises:
        ValueError: it is another job's; gives both fingerprints and what differs. Or another
            process has just extended the job by something else.
        OSError: a file can't be read or written.
    """
    job = read_job(out)
    if job is None and not dry:
        document = {"fingerprint": fingerprint(identity), "identity": identity, **about}
        storage(out).create(f"{out}/{JOB}", json.dumps(document, indent=1).encode() + b"\n")
        job = read_job(out)  # another process may have written it first
    if job is None:
        return False
    if job["identity"] != identity:
        raise another_job(out, job, identity)
    for number, note in enumerate(extensions, start=1):
        if number > len(job["extensions"]):
            if dry:
                break
            write_extension(out, number, note)
            job = read_job(out) or job
        if job["extensions"][number - 1 : number] != [note]:
            raise ValueError(
                f"{out} has just been extended by another process, whose input has got other "
                "files or rows: start the same command again"
            )
    return True


def another_job(
    out: str, job: Mapping[str, Any], identity: Mapping[str, Any], more: Sequence[str] = ()
) -> ValueError:
    """Returns the error for a folder that holds the output of another job.

    Args:
        out: the folder.
        job: the content of its `job.json`.
        identity: the identity of this job.
        more: lines that say more of what differs.
    """
    there = job["identity"]
    lines = [*differences(there, identity), *more]
    return ValueError(
        f"{out} holds the output of another job, {fingerprint(there)}; this one is "
        f"{fingerprint(identity)}. Give another folder, or the same options. They differ in:\n"
        + "\n".join(lines)
    )


class Other(NamedTuple):
    """A part whose rows differ from the input's.

    Attributes:
        part: the path of its table.
        what: what differs: "rows" or "pictures".
        how: the rows of the input, and how they differ.
    """

    part: str
    what: str
    how: str


def refuse_others(others: Sequence[Other]) -> None:
    """Raises an error that names the parts whose rows differ from the input's, if any.

    Raises:
        ValueError: there are such parts.
    """
    if not others:
        return
    first, *more = others
    also = f"; {len(more)} more parts likewise" if more else ""
    if len(others) >= SHOWN:  # the comparison stopped there
        also = f"; at least {len(more)} more parts likewise"
        # All parts of these files: those not compared are likely to differ too.
        parts = {re.sub(r"(\d{6,})-\d{6,}", r"\1-*", other.part) for other in others}
    else:
        parts = {other.part for other in others}
    raise ValueError(
        f"the output holds embeddings of other {first.what}: {first.how}{also}. Give another "
        f"folder for the output; or remove {', '.join(sorted(parts))} to have these rows embedded "
        "again."
    )


def place(source: Input, chunk: Chunk) -> str:
    """Describes the rows of a chunk, for messages."""
    shard = source.shards[chunk.shard]
    name = shard.name if isinstance(shard, ListedFile) else "the input"  # a folder
    return f"rows {chunk.begin} to {chunk.end - 1} of {name}"
