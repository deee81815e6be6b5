"""What a job needs besides the core: where it is missing, one line says which extra has it."""

import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())


def without(script: str, *modules: str) -> subprocess.CompletedProcess[str]:
    """A program on a machine that lacks some modules."""
    program = f"import sys; sys.modules |= dict.fromkeys({modules})\n{script}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_training_without_optax_names_its_extra(tmp_path):
    script = f"from clip_jax.cli import main; sys.exit(main(['train', '{tmp_path}/x.toml']))"
    done = without(script, "optax")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("clip-jax: training") and "pip install 'clip-jax-flax[train]'" in line


def test_the_probe_without_optax_names_its_extra():
    # Flax imports it, too: it is taken away after that.
    script = (
        "import numpy as np; from clip_jax.evaluate import LinearProbe\n"
        "sys.modules['optax'] = None\n"
        "LinearProbe().fit(np.eye(2), [0, 1])"
    )
    done = without(script)
    assert done.returncode == 1 and "pip install 'clip-jax-flax[evaluate]'" in done.stderr


def test_parity_without_safetensors_names_its_extra():
    script = "from clip_jax.parity.pytorch import _safetensors; _safetensors()"
    done = without(script, "safetensors")
    assert done.returncode == 1 and "pip install 'clip-jax-flax[torch]'" in done.stderr


def test_the_core_does_without_what_the_extras_have():
    names = {d.split(">")[0].split("=")[0] for d in PYPROJECT["project"]["dependencies"]}
    extras = {"optax", "safetensors", "torch", "pyarrow", "grain", "matplotlib", "scipy", "fsspec"}
    extras |= {"huggingface_hub", "sentencepiece", "tokenizers"}
    assert not names & extras
    script = (
        "import clip_jax, clip_jax.convert.reader, clip_jax.weights.native_format\n"
        "import clip_jax.encoder, clip_jax.evaluate, clip_jax.parity, clip_jax.search\n"
        "clip_jax.load('emoji')"
    )
    # Flax has Optax among its own dependencies, and imports it: our use of it is what is barred.
    done = without(script, *extras - {"optax"}, "clip_jax.train")
    assert (done.returncode, done.stderr) == (0, "")
