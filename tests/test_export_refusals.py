"""What export lacks is named before anything is written or loaded."""

import subprocess
import sys

import pytest

from tests.models import SMALL_VIT, small


@pytest.mark.parametrize("module", ["jax2onnx", "onnx"])
def test_without_what_writes_onnx_the_extra_is_named(module, tmp_path, monkeypatch):
    from clip_jax import export

    monkeypatch.setitem(sys.modules, module, None)
    if module == "onnx":
        pytest.importorskip("jax2onnx")
    with pytest.raises(ModuleNotFoundError, match=r"needs .*: pip install 'clip-jax-flax\[onnx\]'"):
        export.export_onnx(small(SMALL_VIT), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def command(*options: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; sys.modules['jax2onnx'] = None\n"
        "from clip_jax.cli import main\n"
        f"sys.exit(main(['export', 'no-such-model', *{options}]))"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--to", "onnx"], 1, "pip install 'clip-jax-flax[onnx]'"),
        (["--to", "onnx", "--platforms", "cpu"], 2, "--platforms is for --to stablehlo only"),
        (["--to", "onnx", "--frames", "4x4"], 2, "--frames is for --to stablehlo only"),
        (["--layout", "nchw"], 2, "--layout is for --to onnx only"),
    ],
)
def test_the_command_says_it_in_one_line_before_it_looks_for_the_model(
    tmp_path, options, code, message
):
    done = command(str(tmp_path / "out"), *options)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert message in line
