"""Programs are the same from wherever they are exported."""

import os
import subprocess
import sys
from pathlib import Path

import jax

import clip_jax
from clip_jax import export

SCRIPT = """
import jax, sys
jax.config.update("jax_platforms", "cpu")
from clip_jax import export
from tests.models import TINY_VIT, small
export.export(small(TINY_VIT), sys.argv[1], platforms=["cpu"])
"""
PROGRAMS = ("image.stablehlo", "text.stablehlo")


def test_no_folder_of_this_machine_is_in_a_program(model, tmp_path):
    name = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, name)
    export.export(model, tmp_path / "out", platforms=["cpu"])
    assert getattr(jax.config, name) == before
    root = Path(clip_jax.__file__).parent
    for program in PROGRAMS:
        content = (tmp_path / "out" / program).read_bytes()
        assert b"layers.py" in content  # the lines are still told
        for folder in (str(root), str(Path(jax.__file__).parent), sys.prefix, os.getcwd()):
            assert folder.encode() not in content


def test_two_places_write_the_same_bytes(tmp_path):
    for place in ("here", "there/deep"):
        script = tmp_path / place / "script.py"
        script.parent.mkdir(parents=True)
        script.write_text(SCRIPT)
        path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
        environment = {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, str(script), "out"]
        subprocess.run(command, cwd=script.parent, env=environment, check=True, timeout=300)
    for program in PROGRAMS:
        one, other = (tmp_path / place / "out" / program for place in ("here", "there/deep"))
        assert one.read_bytes() == other.read_bytes()
