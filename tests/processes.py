"""One of several processes that encode together; `test_encoder.py` starts them.

Run as `python -m tests.processes PORT COUNT INDEX OUT`: writes OUT/INDEX.npz with the embeddings of
this process's rows, by the name of the call.
"""

import faulthandler
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from clip_jax import Encoder
from tests.models import SMALL_VIT, random_images, random_tokens, small

BATCH_SIZE = 4
# Rows of each process, call by call: more than a batch beside less, none beside some.
IMAGES = ((9, 3), (5, 0), (0, 4))
TEXTS = ((6, 2), (0, 3))
# Columns of each process's texts: neither needs all the programs that the other needs.
COLUMNS = (8, 12)


def images(call: int, index: int) -> np.ndarray:
    """What process `index` gives in that call."""
    return random_images(IMAGES[call][index], 32, seed=10 * call + index)


def texts(call: int, index: int) -> np.ndarray:
    """What process `index` gives in that call."""
    return random_tokens(TEXTS[call][index], COLUMNS[index], seed=10 * call + index)


def _refusal(**options) -> np.ndarray:
    try:
        Encoder(small(SMALL_VIT), **options)
    except ValueError as error:
        return np.array(str(error))
    return np.array("none")


def _main(port: str, count: str, index: str, out: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(index))
    faulthandler.dump_traceback_later(100)  # says where it hangs
    me, model = int(index), small(SMALL_VIT)
    devices = np.array(jax.devices())
    results: dict[str, np.ndarray] = {
        "devices": np.array([jax.local_device_count(), len(devices)]),
        "pmap": _refusal(parallel="pmap"),
        "uneven": _refusal(parallel="mesh", mesh=Mesh(devices[1:], "x")),
        "elsewhere": _refusal(parallel="mesh", mesh=Mesh(devices[2 * (1 - me) :][:2], "x")),
    }

    together = Encoder(model, parallel="mesh", batch_size=BATCH_SIZE)
    for call in range(len(IMAGES)):
        results[f"mesh images {call}"] = together.images(images(call, me))
    for call in range(len(TEXTS)):
        results[f"mesh texts {call}"] = together.texts(texts(call, me))
    results["compilations"] = np.array(together.num_compilations)

    with jax.set_mesh(Mesh(devices, "x", axis_types=(AxisType.Explicit,))):
        results["callers mesh"] = together.images(images(0, me))

    interleaved = Mesh(devices[[0, 2, 1, 3]].reshape(2, 2), ("x", "y"))
    encoder = Encoder(model, parallel="mesh", mesh=interleaved, batch_size=BATCH_SIZE)
    results["interleaved"] = encoder.images(images(0, me))

    # From here on each for itself, which nobody waits for.
    alone = Encoder(model, batch_size=BATCH_SIZE)
    local = Mesh(np.array(jax.local_devices()), "x")
    own = Encoder(model, parallel="mesh", mesh=local, batch_size=BATCH_SIZE)
    if me == 0:
        results["jit"] = alone.images(images(0, me))
        results["local mesh"] = own.images(images(0, me))
    np.savez(Path(out) / f"{me}.npz", **results)
    jax.distributed.shutdown()


if __name__ == "__main__":
    _main(*sys.argv[1:])
