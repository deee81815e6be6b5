"""Folders as other programs leave them: img2dataset's, and data sets of Parquet files."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Sequence

from clip_jax.messages import counted, some
from clip_jax.sources.records import IMAGES
from clip_jax.sources.tar_index import is_shard
from clip_jax.sources.where import Where
from clip_jax.storage import is_remote, plain, storage

STATISTICS = "_stats.json"
# Tables beside a folder's pictures, which are no data set by themselves.
_BESIDE = ("captions.parquet", "metadata.parquet")
# What shows that a folder is an output of an embedding job.
_JOB = "job.json"
# Columns by which a Parquet file of img2dataset's is known, and what rows with a picture have.
OF_IMG2DATASET = frozenset(("url", "key", "status", "error_message"))
DOWNLOADED = Where.of("status=success")
# Threads that read img2dataset's statistics.
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Found:
    """The files of a folder that hold its rows.

    Attributes:
        suffix: "tar" or "parquet"; empty for the pictures in the folder and below.
        paths: the files.
        remark: what there is to tell of them.
    """

    suffix: str
    paths: Sequence[str]
    remark: str


def img2dataset_of(folder: str) -> Found | None:
    """Returns what img2dataset has put into a folder; None if the folder isn't one of its.

    What it is still writing, which has no statistics yet, is left out.

    Raises:
        ValueError: it has written a format that isn't read.
        OSError: the folder can't be listed.
    """
    where = storage(folder)
    names = set(where.names(folder))
    done = sorted(name.removesuffix(STATISTICS) for name in names if is_statistics(name))
    if not done:
        return None
    suffixes = {name.rpartition(".")[2] for name in names if re.fullmatch(r"\d+\.\w+", name)}
    if "tfrecord" in suffixes:
        raise ValueError(
            f"{folder} holds TFRecord files, which are not read: have img2dataset write with "
            "--output_format webdataset"
        )
    if "tar" in suffixes:
        suffix = "tar"
    else:
        has_pictures = where.is_folder(f"{folder}/{done[0]}")
        suffix = "" if has_pictures else "parquet"
    of_rows = [f"{name}.{suffix}" for name in done] if suffix else []
    paths = [f"{folder}/{name}" for name in of_rows if name in names]
    unfinished = sorted(
        name for name in names if re.fullmatch(rf"\d+\.{suffix}", name) and name not in of_rows
    )
    told = [_failed(folder, done)]
    if suffix and unfinished:
        told.append(f"left out of {folder}, as img2dataset has not finished it: {some(unfinished)}")
    return Found(suffix, paths, "\n".join(filter(None, told)))


def data_set_of(folder: str) -> Found | None:
    """Returns what a folder that isn't one of pictures holds; None if it is, or holds nothing.

    Raises:
        ValueError: as `img2dataset_of`.
        OSError: the folder can't be listed.
    """
    folder = folder.rstrip("/")
    if found := img2dataset_of(folder):
        return found if found.suffix else None
    if not is_hub(folder):
        for name, _ in storage(folder).walk(folder):
            if name.rpartition(".")[2].lower() in IMAGES or is_shard(name):
                return None
    return parquet_of(folder)


def parquet_of(folder: str) -> Found | None:
    """Returns the Parquet files of a folder and those below it, as of a data set of the Hub.

    Returns None if there are none, or if they are the output of an embedding job.

    Raises:
        OSError: the folder can't be listed.
    """
    names = []
    for name, found in storage(folder).walk(folder):
        if name == _JOB:
            return None
        is_hidden = any(part.startswith((".", "_")) for part in name.split("/"))
        is_parquet = name.lower().endswith(".parquet") and os.path.basename(name) not in _BESIDE
        if is_parquet and not is_hidden and not isinstance(found, str):
            names.append(name)
    if not names:
        return None
    names.sort()
    groups = sorted({_group(name) for name in names})
    remark = ""
    if len(groups) > 1:
        remark = (
            f"all {len(names):,} Parquet files of {folder} are taken, {some(groups, most=6)}; a "
            f"pattern such as {folder}/{groups[0]}*.parquet takes some of them"
        )
    return Found("parquet", [f"{folder}/{name}" for name in names], remark)


def is_statistics(name: str) -> bool:
    """Whether a file is one of img2dataset's, which tells of a shard."""
    return re.fullmatch(rf"\d+{re.escape(STATISTICS)}", name) is not None


def is_hub(address: str | os.PathLike[str]) -> bool:
    """Whether an address is one of the Hugging Face Hub."""
    return plain(address).startswith("hf://")


def hint_of_hub(source: str) -> str:
    """Returns where a name that is no file may be found; empty if it isn't a repository's name."""
    is_name = not is_remote(source) and re.fullmatch(r"[\w.-]+/[\w.-]+", source)
    return f"; a data set of the Hub is hf://datasets/{source}" if is_name else ""


def _group(name: str) -> str:
    """Returns what the files of one split of a data set have in common."""
    return re.sub(r"(-\d+-of-\d+|(?<=/)\d+|\d+)\.parquet$", "", name, flags=re.IGNORECASE)


def _failed(folder: str, names: Sequence[str]) -> str:
    """Returns the sentence that tells how many pictures img2dataset has failed to get."""

    def read(name: str) -> tuple[int, int]:
        path = f"{folder}/{name}{STATISTICS}"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            found = json.loads(storage(path).read(path))
            return int(found["count"]), int(found["successes"])
        return 0, 0

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        counts = list(pool.map(read, names))
    total, successes = (sum(each) for each in zip(*counts, strict=True))
    if total <= successes:
        return ""
    return (
        f"left out of {folder}: {counted(total - successes, 'picture')} of {total:,} that "
        "img2dataset could not download or resize"
    )
