"""Embeddings with clusters, as what a job has left, and queries for them.

A row is the sum of four parts, normalised: what all have in common (CLIP's embeddings lie in a
narrow cone), one of 20,000 concepts of unequal size, of which every hundred share a subject; what
differs within a concept, in 48 directions of decreasing size; and noise. Two rows have a cosine of
0.5 in the median, as pictures have with ViT-B/32, and a row's tenth neighbour of a million one of
about 0.9.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.embed.chunks import Chunk, divide

DIM = 512
CONCEPTS, SUBJECTS, KINDS, WITHIN = 20_000, 200, 64, 48
# The norms of the parts of a row: common, concept, within it, noise.
NORMS = (0.7, 0.55, 0.42, 0.12)


class Drawn:
    """A distribution of embeddings; each block of rows has a seed of its own."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.common = _unit(rng.standard_normal(DIM, np.float32))
        self.common_of_texts = _unit(rng.standard_normal(DIM, np.float32))
        sizes = (np.arange(1, DIM + 1, dtype=np.float32) ** -0.5)[rng.permutation(DIM)]
        subjects = rng.standard_normal((SUBJECTS, DIM), np.float32)[
            np.arange(CONCEPTS) * SUBJECTS // CONCEPTS
        ]
        own = rng.standard_normal((CONCEPTS, DIM), np.float32)
        self.concepts = _unit((0.6 * subjects + 0.8 * own) * sizes)
        scale = np.arange(1, WITHIN + 1, dtype=np.float32) ** -0.5
        maps = rng.standard_normal((KINDS, WITHIN, DIM), np.float32) * scale[:, None]
        self.maps = maps / np.sqrt((maps**2).sum(axis=(1, 2), keepdims=True))
        weights = (np.arange(CONCEPTS) + 20.0) ** -0.7
        self.shares = (weights / weights.sum())[rng.permutation(CONCEPTS)]
        self.spread = rng.uniform(0.7, 1.3, CONCEPTS).astype(np.float32)

    def rows(self, seed: int, count: int) -> np.ndarray:
        """(count, DIM) float32, normalised."""
        return self._drawn(seed, count, self.common, NORMS)

    def texts(self, seed: int, count: int) -> np.ndarray:
        """As texts lie to pictures: about a concept, in a cone of their own."""
        return self._drawn(seed, count, self.common_of_texts, (0.7, 0.5, 0.2, 0.45))

    def _drawn(
        self, seed: int, count: int, common: np.ndarray, norms: tuple[float, ...]
    ) -> np.ndarray:
        rng = np.random.default_rng([1, seed])
        concepts = rng.choice(CONCEPTS, count, p=self.shares)
        rows = common * norms[0] + self.concepts[concepts] * norms[1]
        inner = rng.standard_normal((count, WITHIN), np.float32) * self.spread[concepts, None]
        for kind in range(KINDS):
            of_kind = np.flatnonzero(concepts % KINDS == kind)
            rows[of_kind] += inner[of_kind] @ (self.maps[kind] * norms[2])
        rows += rng.standard_normal((count, DIM), np.float32) * (norms[3] / DIM**0.5)
        return _unit(rows)


def finished_job(folder: Path, count: int) -> Path:
    """What an embedding job of so many rows would have left, in float16; made once."""
    import pyarrow as pa

    import clip_jax
    from clip_jax.embed import embed
    from clip_jax.embed.parts import Part
    from clip_jax.embed.results import parts_of
    from tests.models import SMALL_VIT, small

    source, model, out = folder / "texts.txt", folder / "model", folder / f"rows-{count}"
    if (folder / f"{out.name}.done").exists():
        return out
    folder.mkdir(parents=True, exist_ok=True)
    clip_jax.save(small(dataclasses.replace(SMALL_VIT, embed_dim=DIM)), model)
    source.write_text("\ntext\n")
    # Its job.json, by a job that stops at its first row, which is blank.
    with contextlib.suppress(ValueError):
        embed(source, model, out, dtype="float16", progress=False, max_errors=0)
    target = parts_of(str(out), json.loads((out / "job.json").read_text()))
    drawn = Drawn()
    for chunk in divide(0, count, 8192):
        _write(target, pa, Part, drawn, chunk, count)
    (folder / f"{out.name}.done").touch()
    return out


def _write(target: Any, pa: Any, part: Any, drawn: Drawn, chunk: Chunk, count: int) -> None:
    matrix = drawn.rows(chunk.number, len(chunk)).astype(np.float16)
    numbers = range(chunk.begin, chunk.end)
    table = pa.table(
        {
            "key": [f"texts.txt:{i + 1}" for i in numbers],
            "caption": [f"text {i}" for i in numbers],
        }
    )
    target.write(chunk, count, part(table, {"embedding": matrix}), [])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
