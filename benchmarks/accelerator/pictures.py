"""JPEGs in WebDataset's tar files, made on the spot: thousands of files from some hundred."""

import concurrent.futures
import io
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

# Pictures that differ; each is written many times, as files whose bytes differ.
DISTINCT = 256
SHARDS = 4  # of thousands of pictures each, as people have them


def make_shards(folder: Path, count: int, *, distinct: int = DISTINCT) -> str:
    """Writes pictures of 500 x 375, as photographs have detail, by all cores.

    Args:
        folder: that is there.
        count: of the files.
        distinct: of the pictures.

    Returns:
        A pattern of the tar files.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        pictures = list(pool.map(_jpeg, range(distinct)))
        shards = min(SHARDS, count)
        bounds = np.linspace(0, count, shards + 1).astype(int)

        def write(shard: int) -> None:
            with tarfile.open(folder / f"{shard:04d}.tar", "w") as tar:
                for i in range(bounds[shard], bounds[shard + 1]):
                    data = _marked(pictures[i % distinct], i)
                    entry = tarfile.TarInfo(f"{i:08d}.jpg")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))

        list(pool.map(write, range(shards)))
    return f"{folder}/{{{0:04d}..{shards - 1:04d}}}.tar"


def _jpeg(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    fine = rng.standard_normal((375, 500, 3), np.float32) * 8
    pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)) + fine
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _marked(jpeg: bytes, number: int) -> bytes:
    """The file with a comment after its first marker, which makes it another at no cost."""
    comment = str(number).encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
