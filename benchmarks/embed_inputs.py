"""What benchmarks/embed.py embeds, with which models, and what it is compared with."""

import contextlib
import dataclasses
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.embed.chunks import divide
from clip_jax.loading import picture_digest
from clip_jax.sources import open_input

CORES = len(os.sched_getaffinity(0))
BATCH = 32
MILLION = 1_000_000


def make_pictures(folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> Path:
    """JPEGs with coarse and fine detail, as photographs have; made once."""
    target = folder / f"pictures-{count}-{size[0]}"
    if target.exists():
        return target
    target.mkdir()
    rng = np.random.default_rng(0)
    fine = rng.normal(0, 8, (size[1], size[0], 3))
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) + np.roll(fine, i, 0)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(target / f"{i:06d}.jpg", quality=90)
    return target


def odd_jpegs() -> list[bytes]:
    """Colour JPEGs of many sizes, subsamplings and qualities, baseline and progressive."""
    rng, found = np.random.default_rng(0), []
    for size in ((500, 375), (333, 251), (64, 48), (17, 13), (8, 8), (1, 1), (1023, 3)):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size)
        fine = rng.normal(0, 8, (size[1], size[0], 3))
        image = Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8))
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            for progressive in (False, True):
                for quality in (30, 90):
                    file = io.BytesIO()
                    options = {"subsampling": subsampling, "progressive": progressive}
                    image.save(file, "JPEG", quality=quality, **options)
                    found.append(file.getvalue())
    return found


def full_model() -> Any:
    """ViT-B/32 with the numbers that `embed_by_pytorch` has, too."""
    import clip_jax

    arrays = {name: tensor.numpy() for name, tensor in their_model().state_dict().items()}
    return clip_jax.from_parameters(*clip_jax.convert.from_pytorch(arrays))


def their_model() -> Any:
    from clip_jax.catalog import lookup
    from tests import reference
    from tests.models import reference_numbers

    numbers = reference_numbers(lookup("ViT-B/32").config)
    return reference.randomize(reference.build(numbers), seed=0)


def small_model(folder: Path) -> Path:
    """The native folder of a model that takes no time."""
    import clip_jax
    from tests.models import SMALL_VIT, small

    if not (folder / "model").exists():
        clip_jax.save(small(SMALL_VIT), folder / "model")
    return folder / "model"


def finished_million(folder: Path) -> tuple[Path, Any, Path]:
    """Texts, a model of 512 columns, and what a job of theirs would have left; made once."""
    import pyarrow as pa

    from clip_jax.embed import embed
    from clip_jax.embed.parts import Error, Part
    from clip_jax.embed.results import parts_of
    from tests.models import SMALL_VIT, small

    source, out = folder / "million.txt", folder / "million"
    model = small(dataclasses.replace(SMALL_VIT, embed_dim=512))
    if out.exists():
        return source, model, out
    source.write_text("\n" + "".join(f"text {i}\n" for i in range(1, MILLION)))
    # Its job.json, by a job that stops at its first row, which is blank.
    with contextlib.suppress(ValueError):
        embed(source, model, out, dtype="float16", progress=False, max_errors=0)
    job = json.loads((out / "job.json").read_text())
    target, (shard,) = parts_of(str(out), job), open_input(source).shards
    rng = np.random.default_rng(0)
    for unit in divide(0, MILLION, 8192):
        numbers = range(max(unit.begin, 1), unit.end)
        matrix = rng.standard_normal((len(numbers), 512), np.float32)
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        keys = [f"million.txt:{i + 1}" for i in numbers]
        table = pa.table({"key": keys, "caption": [f"text {i}" for i in numbers]})
        errors = [Error(0, "million.txt:1", "blank")] * (unit.begin == 0)
        part = Part(table, {"embedding": matrix.astype(np.float16)})
        target.write(unit, MILLION, part, errors, shard.stamp(numbers))
    return source, model, out


def finished_folder(folder: Path) -> tuple[Path, Any, Path]:
    """As `finished_million`, of a folder of a million files, which are no pictures; made once."""
    import pyarrow as pa

    from clip_jax.embed import embed
    from clip_jax.embed.parts import Part
    from clip_jax.embed.results import parts_of
    from tests.models import SMALL_VIT, small

    source, out = folder / "files", folder / "million-files"
    model = small(dataclasses.replace(SMALL_VIT, embed_dim=512))
    if out.exists():
        return source, model, out
    for i in range(MILLION):
        path = source / f"{i // 1000:03d}" / f"{i % 1000:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % i)
    with contextlib.suppress(ValueError):  # its job.json, as above
        embed(source, model, out, dtype="float16", progress=False, max_errors=0)
    job = json.loads((out / "job.json").read_text())
    target, (shard,) = parts_of(str(out), job), open_input(source).shards
    rows, rng = shard.open(), np.random.default_rng(0)
    for unit in divide(0, MILLION, 8192):
        records = list(rows.records(unit.begin, unit.end))
        columns = {"key": [r.key for r in records], "path": [r.path for r in records]}
        matrix = rng.standard_normal((len(unit), 512), np.float32).astype(np.float16)
        digests = [picture_digest(record.read()) for record in records if record.read]
        part = Part(pa.table(columns), {"embedding": matrix}, np.array(digests, np.uint64))
        target.write(unit, MILLION, part, [], shard.stamp(range(unit.begin, unit.end)))
    return source, model, out


def embed_by_pytorch(pictures: str, out: str) -> None:
    """What one writes first: the reference's model and preprocessing, and a DataLoader.

    Prints the seconds, without those of loading PyTorch and the model.
    """
    from tests import reference

    torch, model = reference.torch(), their_model()
    transform = reference.clip().clip._transform(224)
    start, paths = time.perf_counter(), sorted(Path(pictures).iterdir())

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, i: int) -> Any:
            return transform(Image.open(io.BytesIO(paths[i].read_bytes())))

    loader = torch.utils.data.DataLoader(Pictures(), BATCH, num_workers=CORES)
    with torch.inference_mode():
        found = [torch.nn.functional.normalize(model.encode_image(batch)) for batch in loader]
    np.save(out, torch.cat(found).numpy())
    print(time.perf_counter() - start)


if __name__ == "__main__":
    embed_by_pytorch(*sys.argv[1:])
