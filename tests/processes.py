"""Two processes that encode, train or embed together, and what each of them does.

Run as `python -m tests.processes PORT COUNT INDEX OUT JOB`, one of them writes OUT/INDEX.npz with
what came of its rows, by name.
"""

import contextlib
import dataclasses
import faulthandler
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clip_jax import Encoder
from clip_jax.embed import embed
from clip_jax.train import OptimizerConfig, StepConfig, init_state, make_step, read_config
from clip_jax.train import train as run_training
from tests import quickly
from tests.models import SMALL_VIT, random_images, random_tokens, small

BATCH_SIZE = 4
# Rows of each process, call by call: more than a batch beside less, none beside some.
IMAGES = ((9, 3), (5, 0), (0, 4))
TEXTS = ((6, 2), (0, 3))
# Columns of each process's texts: neither needs all the programs that the other needs.
COLUMNS = (8, 12)
# Rows of a batch of training, over all processes.
TRAIN_ROWS = 16


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


def _encode(me: int, out: Path) -> dict[str, np.ndarray]:
    model, devices = small(SMALL_VIT), np.array(jax.devices())
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
    return results


def train(mesh: Mesh, index: int, count: int) -> dict[str, np.ndarray]:
    """The parameters after some steps over a mesh, of which `index` of `count` gives its rows."""
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=1, total_steps=4)
    how = StepConfig(micro_batches=2, precision="highest")
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    state = init_state(small(SMALL_VIT), config)
    state = jax.device_put(jax.tree.map(np.asarray, state), NamedSharding(mesh, PartitionSpec()))
    step = quickly.jit(make_step(SMALL_VIT, config, how, mesh=mesh))
    share = TRAIN_ROWS // count
    mine = slice(index * share, (index + 1) * share)
    metrics: dict[str, np.ndarray] = {}
    for i in range(3):
        batch = {
            "images": random_images(TRAIN_ROWS, 32, seed=i)[mine],
            "tokens": random_tokens(TRAIN_ROWS, 16, seed=i)[mine],
        }
        batch = {k: jax.make_array_from_process_local_data(rows, v) for k, v in batch.items()}
        state, measured = step(state, batch, jax.random.key(i))
        metrics |= {f"{name} {i}": np.asarray(value) for name, value in measured.items()}
    return metrics | {path: np.asarray(array) for path, array in state.parameters.items()}


def _train(me: int, out: Path) -> dict[str, np.ndarray]:
    mesh = Mesh(np.array(jax.devices()), "x", axis_types=(AxisType.Auto,))
    return train(mesh, me, jax.process_count())


def _run(me: int, out: Path) -> dict[str, np.ndarray]:
    """A whole run, of OUT/run.toml; both write into its folder."""
    folder = run_training(read_config(out / "run.toml"), progress=False)
    return {"folder": np.array(str(folder))}


def _embed(me: int, out: Path) -> dict[str, np.ndarray]:
    source, model = ((out / name).resolve() for name in ("pictures", "model"))
    summary = embed(source, model, out / "out", rows_per_part=2, batch_size=2)
    return {name: np.array(value) for name, value in dataclasses.asdict(summary).items()}


def _main(port: str, count: str, index: str, out: str, job: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(index))
    faulthandler.dump_traceback_later(100)  # says where it hangs
    jobs = {"encode": _encode, "train": _train, "run": _run, "embed": _embed}
    results = jobs[job](int(index), Path(out))
    np.savez(Path(out) / f"{index}.npz", **results)
    jax.distributed.shutdown()


def run_two(out: Path, job: str) -> list[dict[str, np.ndarray]]:
    """What two processes of two devices each have written, of that job."""
    with started(out, job) as running:
        try:
            codes = [process.wait(timeout=120) for process in running]
        except subprocess.TimeoutExpired:
            codes = ["hangs"]
    logs = [(out / f"{index}.log").read_text()[-4000:] for index in range(2)]
    assert codes == [0, 0], "\n".join(logs)
    results = []
    for index in range(2):
        with np.load(out / f"{index}.npz") as file:
            results.append(dict(file))
    return results


def kill_two(out: Path, job: str, is_time: Callable[[], bool]) -> None:
    """Starts the two, and kills both as soon as it is time."""
    with started(out, job) as running:
        deadline = time.monotonic() + 100
        while not is_time():
            logs = [(out / f"{index}.log").read_text()[-4000:] for index in range(2)]
            assert all(process.poll() is None for process in running), "\n".join(logs)
            assert time.monotonic() < deadline
            time.sleep(0.01)


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Waits for what another process or thread does; fails after that many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def started(out: Path, job: str) -> Iterator[list[subprocess.Popen]]:
    """Two processes of two devices each, at that job; killed as the block ends."""
    port = str(free_port())
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    if job == "run":
        environment |= quickly.ENVIRONMENT
    running = []
    try:
        for index in range(2):
            command = [sys.executable, "-m", "tests.processes", port, "2", str(index), str(out)]
            with (out / f"{index}.log").open("w") as file:
                running.append(
                    subprocess.Popen(
                        [*command, job],
                        env=environment,
                        cwd=Path(__file__).parents[1],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )
        yield running
    finally:
        for process in running:
            process.kill()  # not terminate: JAX's runtime takes that signal for a preemption
            process.wait()


if __name__ == "__main__":
    _main(*sys.argv[1:])
