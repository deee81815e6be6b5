"""Memory and time of loading the text tower alone out of a ViT-bigG-14 checkpoint of 10 GB.

The checkpoint is a file with holes: its arrays are zeros that take no disk, but every page that is
read counts as memory, as of any file.

Run: python -m benchmarks.text_tower --out benchmarks/results/text_tower.md
Expect: at most 1.25 times the tower in float32, plus 400 MB.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report

NAME = "ViT-bigG-14/laion2b_s39b_b160k"
SHARDS = 3


def write_open_clip(folder: Path) -> None:
    """OpenCLIP's folder: one file of safetensors."""
    from clip_jax.convert.rules import OPEN_CLIP

    document, config = _described()
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    _write_holes(folder / "open_clip_model.safetensors", _shapes(config, OPEN_CLIP))


def write_hugging_face(folder: Path) -> None:
    """A folder of transformers: safetensors in shards."""
    from clip_jax.convert.huggingface_config import to_document
    from clip_jax.convert.rules import HUGGING_FACE

    _, config = _described()
    (folder / "config.json").write_text(json.dumps(to_document(config)))
    shapes = list(_shapes(config, HUGGING_FACE).items())
    places = {}
    for number in range(SHARDS):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        shard = dict(shapes[number::SHARDS])  # as unsorted as it can be
        _write_holes(folder / name, shard)
        places |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


KINDS = {
    "OpenCLIP, one file": write_open_clip,
    f"transformers, {SHARDS} shards": write_hugging_face,
}


def _described() -> tuple[dict[str, Any], Any]:
    from clip_jax.convert.open_clip_config import from_document
    from clip_jax.open_clip_catalog import lookup_tag

    tag = lookup_tag(NAME)
    assert tag is not None
    return tag.open_clip_config(), from_document(tag.open_clip_config())


def _shapes(config: Any, table: Any) -> dict[str, tuple[int, ...]]:
    from clip_jax.convert.rules import spelled, target_to_source
    from clip_jax.shapes import parameter_shapes

    found = {}
    for path, shape in parameter_shapes(config).items():
        match = target_to_source(path, table)
        assert match is not None
        rule, name = match
        found |= dict.fromkeys(spelled(name), rule.shape_to_theirs(shape))
    return found


def _write_holes(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def measure(folder: str) -> None:
    """Prints the bytes of the tower in float32, the peak of memory, and the seconds of the load."""
    import jax
    from flax import nnx

    import clip_jax

    begin = time.perf_counter()
    model, _ = clip_jax.load_text_model(folder)
    taken = time.perf_counter() - begin
    size = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(json.dumps([size, peak, taken]))


def main() -> int:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return 0
    rows, is_within = [], True
    for kind, write in KINDS.items():
        with tempfile.TemporaryDirectory() as name:
            write(Path(name))
            whole = sum(path.stat().st_size for path in Path(name).iterdir())
            command = [sys.executable, "-m", "benchmarks.text_tower", "--measure", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        size, peak, taken = json.loads(done.stdout.splitlines()[-1])
        is_within &= peak <= 1.25 * size + 400e6
        ratio = f"{peak / size:.2f}"
        cells = (f"{number / 1e6:,.0f} MB" for number in (whole, size, peak))
        rows.append((kind, *cells, ratio, f"{taken:.1f} s"))
    columns = ["folder", "weights", "text tower", "peak memory", "peak / tower", "load"]
    report.write(
        options.out,
        f"""# The text tower out of a ViT-bigG-14

{report.header("CPU")}

`clip_jax.load_text_model` in a process of its own, Python and JAX included in its memory. The files
have holes for their arrays, so that no disk is waited for.

{report.table(rows, columns)}
""",
    )
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
