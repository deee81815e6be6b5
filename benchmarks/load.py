"""Start-up: loading archives and folders, the second load, memory, import time.

Archives are in the official format (TorchScript, partly float16) with random weights; a folder is
Hugging Face's (safetensors, float32). Every measurement runs in a process of its own; contenders
alternate, medians are printed.

    python -m benchmarks.load --out benchmarks/results/load.md
"""

import argparse
import dataclasses
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report

ROUNDS = 5
COLUMNS = ("what", "measured")
TITLES = {
    "official": "# Loading",
    "folders": "# Loading a folder of Hugging Face",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="*", default=list(TITLES), choices=TITLES)
    parser.add_argument("--out", help="a Markdown file, in which the tables are put or replaced")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, *paths = arguments.measure
        print(json.dumps(MEASURES[name](*map(Path, paths))))
        return 0
    found = [_table(name, arguments.out) for name in arguments.tables]
    return 1 if any(row[-1] for rows in found for row in rows) else 0


def _table(name: str, out: str | None) -> list[tuple[str, ...]]:
    """Measures, prints and writes one table; returns its rows."""
    times = (
        f"Times are seconds of the call alone in a fresh process, imports excluded, medians of "
        f"{ROUNDS} alternating rounds."
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if name == "official":
            rows = [*_loading(place), *_memory(place), *_importing()]
            notes = (
                f"{times} The first load of a name begins with the archive in place of a download."
            )
        else:
            rows = list(_folders(place))
            notes = (
                f"{times} The files are in the page cache. transformers maps them, and reads "
                f"weights when they are first used; ours are read and transposed by the call."
            )
    table = report.table([row[:2] for row in rows], COLUMNS)
    report.write_section(out, "\n\n".join([TITLES[name], report.header(), notes, table]))
    for row in rows:
        print(*row, sep="\t", file=sys.stderr)
    return rows


def _loading(folder: Path):
    archive = folder / "ViT-B-32.pt"
    _measured("make_archive", archive, "ViT-B/32")
    ours, theirs, first, second = [], [], [], []
    for i in range(ROUNDS):
        theirs.append(_measured("load_reference", archive))
        ours.append(_measured("load_path", archive))
        cache = folder / f"cache{i}"
        first.append(_measured("load_name", archive, cache))
        second.append(_measured("load_name", archive, cache))
    ours, theirs, first, second = map(statistics.median, (ours, theirs, first, second))
    yield _row(
        "load of a ViT-B/32 archive, against the reference's on CPU",
        f"{ours:.2f} s against {theirs:.2f} s: {ours / theirs:.2f}",
        "at most 0.50",
        ours / theirs <= 0.5,
    )
    yield _row(
        "second load of a name, against the first",
        f"{second:.2f} s against {first:.2f} s: {second / first:.2f}",
        "at most 0.33",
        second / first <= 1 / 3,
    )


def _memory(folder: Path):
    archive = folder / "ViT-L-14.pt"
    parameters = 4 * 427_616_513 / 1e6
    limit = 1.25 * parameters + 400
    _measured("make_archive", archive, "ViT-L/14")
    for name, what in (
        ("convert_memory", "peak memory, a ViT-L/14 archive to a float32 native folder"),
        ("load_memory", "peak memory, a ViT-L/14 archive to a float32 model"),
    ):
        peak = _measured(name, archive)
        yield _row(what, f"{peak:,.0f} MB", f"at most {limit:,.0f} MB", peak <= limit)


def _folders(folder: Path):
    place = folder / "clip-vit-large-patch14"
    _measured("make_huggingface", place)
    ours, theirs, read = [], [], []
    for _ in range(ROUNDS):
        theirs.append(_measured("load_transformers", place))
        ours.append(_measured("load_path", place))
        read.append(_measured("load_transformers", place, "read"))
    ours, theirs, read = map(statistics.median, (ours, theirs, read))
    what = "load of a ViT-L/14 folder of Hugging Face, against `CLIPModel.from_pretrained` on CPU"
    for peer, seconds in (("", theirs), (" and a sum over its weights", read)):
        yield _row(
            what + peer,
            f"{ours:.2f} s against {seconds:.2f} s: {ours / seconds:.2f}",
            "at most 1.00",
            ours <= seconds,
        )


def _importing():
    times = [_measured("import_time") for _ in range(ROUNDS)]
    seconds = statistics.median(times)
    yield _row(
        "`import clip_jax` beyond jax and flax", f"{seconds:.3f} s", "at most 0.2 s", seconds <= 0.2
    )


def _row(what: str, measured: str, limit: str, is_within: bool) -> tuple[str, ...]:
    """A row of the table, and what the exit status and standard error say of it."""
    return what, measured, limit, "" if is_within else "beyond the limit"


def _measured(name: str, *arguments: object) -> float:
    command = [sys.executable, "-m", "benchmarks.load", "--measure", name, *map(str, arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


# --- what runs in the processes


def _read(path: Path) -> None:
    """Reads files, so that they are in the page cache."""
    for file in path.iterdir() if path.is_dir() else [path]:
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass


def make_archive(path: Path, name: Path) -> float:
    from clip_jax.catalog import lookup
    from tests import reference
    from tests.models import reference_numbers

    model = reference.build(reference_numbers(lookup(str(name)).config))
    reference.save_torchscript(reference.randomize(model, seed=0), path)
    return 0.0


def load_reference(path: Path) -> float:
    from tests import reference

    reference.clip()
    begin = time.perf_counter()
    reference.load(path)
    return time.perf_counter() - begin


def make_huggingface(path: Path) -> float:
    from benchmarks.parity_families import save_huggingface
    from clip_jax.parity.reference import quiet
    from tests import reference

    reference.clip()  # also puts torchvision on its feet
    with quiet(), reference.torch().inference_mode():
        save_huggingface("openai/clip-vit-large-patch14", path)
    return 0.0


def load_transformers(path: Path, read: Path | None = None) -> float:
    """The call maps the file, so that weights are read when they are first used."""
    from clip_jax.parity.reference import import_library, loading

    transformers = import_library("transformers")
    kind = transformers.CLIPModel
    _read(path)
    with loading("transformers", path):
        begin = time.perf_counter()
        model = kind.from_pretrained(path)
        if read is not None:
            sum(float(parameter.detach().sum()) for parameter in model.parameters())
        return time.perf_counter() - begin


def _unsaid(path: Path) -> dict:
    """What the archive of ViT-B/32 with random weights doesn't say."""
    return {"activation": "quick_gelu", "num_heads": (12, 8)} if path.is_file() else {}


def load_path(path: Path) -> float:
    import jax

    import clip_jax

    jax.devices()
    load = clip_jax.load  # imported when it is first named
    _read(path)
    begin = time.perf_counter()
    jax.block_until_ready(jax.tree.leaves(load(path, **_unsaid(path))[0]))
    return time.perf_counter() - begin


def load_name(path: Path, cache: Path) -> float:
    import jax

    import clip_jax
    from clip_jax.catalog import CATALOG

    # The archive with random weights in the place of the official one.
    if not cache.exists():
        cache.mkdir()
        os.link(path, cache / path.name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    CATALOG["ViT-B/32"] = dataclasses.replace(CATALOG["ViT-B/32"], sha256=digest)
    jax.devices()
    load = clip_jax.load  # imported when it is first named
    begin = time.perf_counter()
    model, _ = load("ViT-B/32", download_root=cache)
    jax.block_until_ready(jax.tree.leaves(model))
    return time.perf_counter() - begin


def convert_memory(path: Path) -> float:
    import numpy as np

    from clip_jax.convert import from_pytorch, read_checkpoint
    from clip_jax.weights import save_parameters

    with tempfile.TemporaryDirectory() as folder:
        config, params = from_pytorch(read_checkpoint(path))
        save_parameters(config, params, Path(folder) / "native", dtype=np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def load_memory(path: Path) -> float:
    import jax

    import clip_jax

    jax.block_until_ready(jax.tree.leaves(clip_jax.load(path, **_unsaid(path))[0]))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def import_time() -> float:
    import jax  # noqa: F401
    from flax import nnx  # noqa: F401

    begin = time.perf_counter()
    import clip_jax  # noqa: F401

    return time.perf_counter() - begin


MEASURES = {
    f.__name__: f
    for f in (
        make_archive,
        make_huggingface,
        load_reference,
        load_transformers,
        load_path,
        load_name,
        convert_memory,
        load_memory,
        import_time,
    )
}

if __name__ == "__main__":
    sys.exit(main())
