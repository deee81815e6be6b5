"""What becomes of a chunk, whichever engine runs it: one program embeds it, and it is committed."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax.embed.counts import Counts
from clip_jax.embed.part_builder import PartBuilder
from clip_jax.embed.parts import Parts
from clip_jax.encoder import Encoder
from clip_jax.nn import CLIP


def encoder_of(model: CLIP, batch_size: int | None) -> Encoder:
    """Returns an encoder over all devices of this process; the same program runs for each row."""
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ("batch",)) if len(devices) > 1 else None
    return Encoder(
        model,
        batch_size=batch_size,
        parallel="mesh" if mesh else "jit",
        mesh=mesh,
        normalize=True,
        whole_batches=True,
    )


def commit(
    builder: PartBuilder, parts: Parts, counts: Counts, check_ours: Callable[[], None]
) -> None:
    """Waits for the embeddings of a chunk, all of whose rows have been added; writes its part.

    Args:
        builder: the chunk, after `embed_rest`.
        parts: the output.
        counts: receives the part and the time.
        check_ours: raises an error if the output isn't this job's any more.

    Raises:
        OSError: the part can't be written; the part from an earlier run stays.
        ValueError: as `check_ours`.
    """
    builder.finish()
    with counts.timing("writing"):
        check_ours()
        builder.save(parts)
