"""Long-CLIP's two tables of positions, as one (Zhang et al. 2024).

Its text tower keeps CLIP's first 20 positions as they were trained, and learns the others anew in a
second table of the same shape: a position is read from one table or from the other. Together they
are one table, and the model is a CLIP model with a longer context.
"""

from collections.abc import Mapping

import numpy as np

from clip_jax.errors import CheckpointError

# Positions whose rows are the first table's; of all others the second's.
KEPT = 20
# The first table's name by the second's, in OpenAI's, OpenCLIP's and Hugging Face's files.
TABLES = {
    "positional_embedding_res": "positional_embedding",
    "text.positional_embedding_res": "text.positional_embedding",
    "text_model.embeddings.position_embedding_res.weight": (
        "text_model.embeddings.position_embedding.weight"
    ),
}


def with_one_table(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays with one table of positions; those of other models as they are.

    Raises:
        CheckpointError: the two tables don't belong together.
    """
    arrays = dict(arrays)
    for second, first in TABLES.items():
        if second not in arrays:
            continue
        rest = arrays.pop(second)
        kept = arrays.get(first)
        if kept is None or kept.ndim != 2 or (kept.shape, kept.dtype) != (rest.shape, rest.dtype):
            found = "none" if kept is None else f"{kept.dtype} {kept.shape}"
            raise CheckpointError(
                f"{second}: expected {first} of the same shape and dtype, {rest.dtype} "
                f"{rest.shape}, as in Long-CLIP. Got {found}"
            )
        arrays[first] = np.concatenate([kept[:KEPT], rest[KEPT:]])
    return arrays
