"""`--distributed` of the installed commands: two processes, named by Slurm or by variables."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import clip_jax
from clip_jax.cli import main
from clip_jax.embed import read_embeddings
from tests.processes import free_port
from tests.training_runs import read_metrics

EXAMPLES = Path(__file__).parent.parent / "examples/emoji"
COMMAND = Path(sys.executable).parent / "clip-jax"


def slurm(index: int, port: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "SLURM_STEP_NUM_NODES": "1",
        "JAX_COORDINATOR_PORT": str(port),
    }


def variables(index: int, port: int) -> dict[str, str]:
    return {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }


TRAINING = """
out = "run"
[model]
embed_dim = 16
text = { width = 64, num_layers = 1, num_heads = 1 }
vision = { type = "vit", image_size = 32, patch_size = 8, width = 64, num_layers = 1, num_heads = 1}
[data]
train = "CAPTIONS"
text_length = 8
[optimizer]
learning_rate = 1e-3
warmup_steps = 1
total_steps = 3
[run]
batch_size = 8
log_every = 1
"""


def run_two(words: list, environment, folder: Path) -> list[str]:
    """What the command has printed in two processes of two devices, told of each other so."""
    port = free_port()
    together = [
        subprocess.Popen(
            [COMMAND, *words, "--distributed"],
            cwd=folder,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "2", **environment(index, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    ends = [process.communicate(timeout=300) for process in together]
    assert [process.returncode for process in together] == [0, 0], ends
    return [out for out, _ in ends]


def test_two_tasks_of_slurm_share_an_embedding_job(tmp_path):
    options = ["--out", "out", "--model", "emoji", "--rows-per-part", "4", "--batch-size", "4"]
    outs = run_two(["embed", EXAMPLES / "pictures", *options], slurm, tmp_path)
    # 27 pictures are 7 parts; each process has done some, and none was done twice.
    parts = [int(out.split(" rows in ")[1].split()[0]) for out in outs]
    assert sum(parts) == 7 and min(parts) >= 3
    keys = read_embeddings(str(tmp_path / "out")).to_table(columns=["key"])["key"].to_pylist()
    assert sorted(keys) == sorted(path.name for path in (EXAMPLES / "pictures").glob("*.png"))


def test_two_processes_named_by_variables_train_one_model(tmp_path):
    toml = TRAINING.replace("CAPTIONS", str(EXAMPLES / "captions.csv"))
    (tmp_path / "small.toml").write_text(toml)
    outs = run_two(["train", "small.toml"], variables, tmp_path)
    # Before it gloo says there that it has connected.
    assert all(out.endswith("run/model\n") for out in outs)
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [1, 2, 3]
    model, _ = clip_jax.load(tmp_path / "run/model")
    assert model.config.vision.image_size == 32


@pytest.mark.parametrize("name", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_variables_that_are_no_numbers_are_told(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(name, "two")
    out = str(tmp_path / "out")
    assert main(["embed", str(EXAMPLES / "pictures"), "--out", out, "--distributed"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} must be a whole number from 0 on. Got 'two'" in line
    assert not list(tmp_path.iterdir())
