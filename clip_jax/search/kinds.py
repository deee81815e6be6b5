"""Kinds of approximate indexes, all of inverted lists, and which one suits how many rows.

The embeddings are divided into lists by the centroid that is nearest; a search reads a few of them.
In a list a row is kept as its floats (`flat`, one list: nothing is approximated), as float16
(`ivf`), in 8 bits a dimension (`sq8`), or in 8 bits for every 8 dimensions (`pq`).
"""

import dataclasses
import math
from typing import Any, Literal, get_args

Kind = Literal["flat", "ivf", "sq8", "pq"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# The most rows for which a kind is chosen; beyond them it is `pq`.
MOST_ROWS: dict[Kind, int] = {"flat": 20_000, "ivf": 200_000}
# Rows that k-means needs for each centroid; faiss warns of fewer.
TRAIN_ROWS = 40
# The centroids of a product quantizer, for which as many rows are needed, and rows for each.
CODES, CODE_ROWS = 256, 64
# Of k-means.
ITERATIONS = 10
# Dimensions that a byte of `pq` stands for.
PER_BYTE = 8
# The number of a list is kept in 16 bits while the index is built.
MOST_LISTS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Design:
    """How an index is laid out.

    Attributes:
        kind: how rows are kept.
        lists: how many lists there are.
    """

    kind: Kind
    lists: int


def design(rows: int, most_sampled: int, kind: Kind | None = None) -> Design:
    """Returns the layout for a number of rows.

    Args:
        rows: how many rows there are.
        most_sampled: how many rows fit into the memory that training may take.
        kind: how rows are kept; by default as suits their number.

    Raises:
        ValueError: the kind needs more rows, or is none.
    """
    if kind is None:
        kind = usual_kind(rows)
    if kind not in KINDS:
        raise ValueError(f"the kind of an index is one of {', '.join(KINDS)}. Got {kind!r}.")
    if kind == "pq" and min(rows, most_sampled) < CODES:
        what = f"{rows:,}" if rows < CODES else f"memory for {most_sampled:,}"
        raise ValueError(f"an index of kind pq needs at least {CODES} rows. Got {what}.")
    if kind == "flat":
        return Design(kind, 1)
    # Of the centroids and the rows of a list, both read at a search, neither is many.
    lists = 1 << round(math.log2(max(rows, 1)) / 2)
    lists = max(min(lists, min(rows, most_sampled) // TRAIN_ROWS, MOST_LISTS), 1)
    return Design(kind, lists)


def usual_kind(rows: int) -> Kind:
    """Returns the kind that suits a number of rows."""
    for kind, most in MOST_ROWS.items():
        if rows <= most:
            return kind
    return "pq"


def sampled(layout: Design, rows: int) -> int:
    """Returns how many rows an index is trained on."""
    if layout.kind == "flat":
        return 1
    # What is kept of a row is learnt from many, also where there are few lists.
    return min(rows, max(TRAIN_ROWS * layout.lists, CODE_ROWS * CODES))


def untrained(layout: Design, dim: int) -> Any:
    """Returns an empty index of faiss, by inner product."""
    faiss = library()
    quantizer = faiss.IndexFlatIP(dim)
    options = (quantizer, dim, layout.lists)
    if layout.kind == "flat":
        index = faiss.IndexIVFFlat(*options, faiss.METRIC_INNER_PRODUCT)
    elif layout.kind == "pq":
        size = _code_bytes(dim)
        index = faiss.IndexIVFPQ(*options, size, 8, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.max_points_per_centroid = CODE_ROWS
        index.pq.cp.min_points_per_centroid = 1  # else it prints a warning
    else:
        numbers = faiss.ScalarQuantizer
        bits = numbers.QT_fp16 if layout.kind == "ivf" else numbers.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(*options, bits, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = 0
    index.cp.niter = ITERATIONS
    index.cp.min_points_per_centroid = 1
    return index


def _code_bytes(dim: int) -> int:
    """Returns the bytes of a row's code, which divide its dimensions evenly."""
    most = max(dim // PER_BYTE, 1)
    return next(size for size in range(most, 0, -1) if dim % size == 0)


def library() -> Any:
    """Returns the module faiss.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "an index is built and searched by faiss: pip install 'clip-jax-flax[index]'",
            name=error.name,
        ) from None
    return faiss
