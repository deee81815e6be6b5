"""`clip-jax` answers at once: what needs no model imports no jax, and the public names are lazy."""

import ast
import os
import pickle
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import clip_jax
from clip_jax import weights
from clip_jax.convert import read_checkpoint

HEAVY = {"jax", "jaxlib", "flax", "numpy", "PIL", "pyarrow", "torch", "tqdm"}
# Seconds; about 0.1 on an idle machine, where importing jax takes more than one.
AT_ONCE = 1.0

# Runs the command and says on standard error what it has imported, whatever became of it.
MODULES = """
import sys
from clip_jax.cli import main
try:
    main()
finally:
    print("modules:", *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "argv",
    [
        ("--help",),
        ("--version",),
        ("models",),
        ("models", "--json"),
        *((name, "--help") for name in ("classify", "embed", "search", "convert", "train")),
        ("eval", "probe", "--help"),
        (),
        ("embed",),
        ("embed", "in", "--out", "out", "--shard", "2/2"),
        ("classify", "a.png", "--labels", "x", "x"),
        ("search", "out", "x", "-k", "0"),
        ("eval", "retrieval", "in", "--ks", "x"),
        ("convert", "nowhere", "out"),
        ("convert", "there", "copy.safetensors"),
    ],
    ids=" ".join,
)
def test_what_needs_no_model_is_answered_without_jax(tmp_path, argv):
    (tmp_path / "there").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", MODULES, *argv], cwd=tmp_path, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr.replace("SystemExit", "")
    imported = set(done.stderr.rpartition("modules:")[2].split())
    assert "argparse" in imported
    assert not imported & HEAVY


def test_help_is_there_at_once(tmp_path):
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "clip_jax", "--help"], check=True, cwd=tmp_path)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < AT_ONCE


def test_importing_the_package_imports_no_jax():
    script = (
        "import sys, clip_jax, clip_jax.catalog\n"
        "names = dir(clip_jax), clip_jax.available_models(), hasattr(clip_jax, 'nothing')\n"
        "assert {'load', 'embed'} <= set(names[0]) and 'emoji' in names[1] and not names[2]\n"
        "assert not {'jax', 'numpy'} & set(sys.modules)\n"
        "assert callable(clip_jax.embed.embed) and callable(clip_jax.search.search)\n"
        "assert clip_jax.load is clip_jax.weights.load and 'jax' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def declared(package: str) -> tuple[set[str], dict[str, str]]:
    """The modules and the names that a package shows to tools, as its source has them."""
    path = Path(clip_jax.__file__).with_name("__init__.py")
    if package != "clip_jax":
        path = path.parent / package.rpartition(".")[2] / "__init__.py"
    (block,) = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If))
    modules, names = set(), {}
    for line in block.body:
        assert isinstance(line, ast.ImportFrom) and line.module is not None
        for alias in line.names:
            assert alias.name == alias.asname  # else it is no public name
            if line.module == package:
                modules.add(alias.name)
            else:
                names[alias.name] = line.module.removeprefix(f"{package}.")
    return modules, names


@pytest.mark.parametrize("package", [clip_jax, weights], ids=lambda package: package.__name__)
def test_what_tools_see_is_what_is_there(package):
    modules, names = declared(package.__name__)
    assert names == package._NAMES
    assert modules == set(getattr(package, "_MODULES", ()))
    for name in (*modules, *names):
        assert name in dir(package)
        assert getattr(package, name) is getattr(package, name)


def test_every_room_is_an_attribute_of_the_package():
    found = {module.name for module in pkgutil.iter_modules(clip_jax.__path__) if module.ispkg}
    assert found - {"cli", "data"} <= set(clip_jax._MODULES)


def test_public_names_are_there():
    assert set(dir(clip_jax)) >= {
        *("available_models", "load", "save", "tokenize", "open_image", "Preprocess", "Encoder"),
        *("CLIP", "CLIPConfig", "parameters", "from_parameters", "convert", "__version__"),
        *("CheckpointError", "DownloadError", "compile_cache"),
    }
    assert clip_jax.convert.read_checkpoint is read_checkpoint


def test_star_import_has_the_public_names():
    names: dict[str, object] = {}
    exec("from clip_jax import *", names)
    assert names["load"] is clip_jax.load and names["convert"] is clip_jax.convert
    assert set(clip_jax.__all__) <= set(names)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'clip_jax' has no attribute 'nothing'"):
        clip_jax.nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from clip_jax import nothing  # noqa: F401


def test_public_classes_and_functions_survive_pickling():
    for thing in (clip_jax.CLIPConfig, clip_jax.load, clip_jax.CheckpointError):
        assert pickle.loads(pickle.dumps(thing)) is thing


def test_a_room_whose_own_import_fails_says_why(tmp_path):
    """Rather than that there is no such attribute."""
    (tmp_path / "jax.py").write_text("raise RuntimeError('this jax is broken')")
    script = "import clip_jax; clip_jax.nn"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "this jax is broken" in done.stderr
