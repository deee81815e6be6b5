"""Changed checkpoints load or are refused with one error, at once; and what changes them."""

import json
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from clip_jax.cli import main as cli
from clip_jax.config import CLIPConfig, TextConfig, ViTConfig
from clip_jax.convert import unpickle
from clip_jax.convert.reader import read_checkpoint
from clip_jax.errors import CheckpointError
from clip_jax.shapes import parameter_shapes
from clip_jax.weights import load
from tests import checkpoint_mutations as mutations
from tests import fuzz_checkpoints
from tests.pickles import FIVE, W, encode, write, zipped


@pytest.mark.filterwarnings("ignore")  # torch's, as it writes TorchScript
@pytest.mark.parametrize("kind", ["torchscript", "torch", "legacy", "safetensors"])
def test_what_the_mutants_are_made_of_loads(tmp_path, kind):
    for seed in mutations._seeds(kind):
        path = tmp_path / "model"
        path.write_bytes(zipped(seed) if isinstance(seed, list) else seed)
        fuzz_checkpoints.load_any(path)


@pytest.mark.filterwarnings("ignore:.*heads of 64 are assumed")  # of training checkpoints
@pytest.mark.parametrize("kind", mutations.KINDS)
def test_mutants_load_or_are_refused(tmp_path, kind):
    counts, failures = fuzz_checkpoints.fuzz(kind, 1, tmp_path, range(150))
    assert failures == {} and counts["refused"] > 50
    assert counts["loaded"] > 0


def test_a_mutant_is_made_again_by_its_number(tmp_path):
    for kind in ("torch", "safetensors"):
        one, other = (
            mutations.write_mutant(kind, random.Random(7), tmp_path).read_bytes() for _ in range(2)
        )
        assert one == other


def test_any_other_exception_is_a_failure_with_its_number(tmp_path):
    def read(path: Path) -> None:
        raise KeyError("a defect")

    counts, failures = fuzz_checkpoints.fuzz("legacy", 1, tmp_path, range(3), read=read)
    assert counts == {"refused": 0, "loaded": 0, "failed": 3}
    ((place, what),) = failures.items()
    assert place.startswith("KeyError at") and what == "0: 'a defect'"


@pytest.mark.long
@pytest.mark.parametrize("what", ["while True: pass", "bytearray(3 << 30)"])
def test_a_worker_ends_what_takes_too_long_or_too_much(tmp_path, what):
    program = f"""
import functools, signal, sys
from tests import fuzz_checkpoints
def read(path):
    if signal.getitimer(signal.ITIMER_PROF)[0]:  # else it is warming up
        {what}
fuzz_checkpoints.fuzz = functools.partial(fuzz_checkpoints.fuzz, read=read)
fuzz_checkpoints.main(sys.argv[1:])
"""
    options = ["--first", "5", "--count", "1", "--seconds-each", "0.1", "--worker", str(tmp_path)]
    command = [sys.executable, "-c", program, "legacy", *options]
    status = subprocess.run(command, cwd=Path(__file__).parents[1], timeout=100).returncode
    assert json.loads((tmp_path / "state.json").read_text())["number"] == 5
    if what.startswith("while"):
        assert status == -signal.SIGPROF
        assert "in read" in (tmp_path / "stacks.txt").read_text()
    else:
        assert status == 0
        (place,) = json.loads((tmp_path / "end.json").read_text())[1]
        assert place.startswith("MemoryError")


def test_what_a_worker_dies_of_is_told_and_another_goes_on(capsys, monkeypatch):
    firsts = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        folder = Path(command[command.index("--worker") + 1])
        firsts.append(command[command.index("--first") + 1])
        counts = {"refused": 3, "loaded": 1, "failed": 0}
        (folder / "state.json").write_text(json.dumps({"number": 4, "counts": counts}))
        (folder / "stacks.txt").write_text("where it was")
        (folder / "end.json").write_text(json.dumps([counts, {}, 7 << 20]))
        return subprocess.CompletedProcess(command, -27 if len(firsts) == 1 else 0, "", "")

    monkeypatch.setattr(fuzz_checkpoints.subprocess, "run", run)
    assert fuzz_checkpoints.main(["torch", "--seconds", "9"]) == 1
    first, *others = capsys.readouterr().out.splitlines()
    assert firsts == ["0", "5"] and others == ["4: status -27", "  where it was"]
    given = json.loads(first)
    assert (given["refused"], given["loaded"], given["killed"], given["grown_mb"]) == (6, 2, 1, 7)


# ---- bounds that came of it ---------------------------------------------------------------------


def table_of_contents(count: int) -> bytes:
    """An archive whose table of contents names so many entries that aren't there."""
    entries = b"".join(
        struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", *(20, 20, 0, 0, 0, 33, 0, 0, 0), 7, *(0,) * 6)
        + b"x/%05x" % i
        for i in range(count)
    )
    shown = min(count, 0xFFFF)
    end = struct.pack("<HHHHIIH", 0, 0, shown, shown, len(entries), 4, 0)
    return b"PK\3\4" + entries + b"PK\5\6" + end


def test_a_table_of_contents_of_any_length_is_not_read(tmp_path, monkeypatch):
    def infolist(self):
        raise AssertionError("it was read")

    monkeypatch.setattr("zipfile.ZipFile.infolist", infolist)
    path = tmp_path / "model.pt"
    path.write_bytes(table_of_contents(80_000))
    with pytest.raises(CheckpointError, match="table of contents of more than 4,194,304 bytes"):
        read_checkpoint(path)


def test_a_pickle_of_endless_instructions_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_INSTRUCTIONS", 1_000)
    for body in (b"]" * 1_000, b"(" * 1_000):
        path = write(tmp_path / "model.pt", b"\x80\x02" + body + b".")
        with pytest.raises(CheckpointError, match="more than 1,000 instructions in its pickle"):
            read_checkpoint(path)
    read_checkpoint(write(tmp_path / "model.pt", {f"{i}": W for i in range(20)}, FIVE))


@pytest.mark.parametrize("kind", ["pickle", "safetensors"])
def test_a_hundred_thousand_names_are_no_checkpoint(tmp_path, kind):
    count, path = 100_001, tmp_path / "model"
    if kind == "pickle":
        names = b"".join(encode(f"{i:x}") + b"h\x00" for i in range(count))
        write(path, b"\x80\x02}(" + encode("t") + W + b"q\x00" + names + b"u.", FIVE)
    else:
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        text = json.dumps({f"{i:x}": entry for i in range(count)}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match="more than 100,000 names, expected a model's few"):
        read_checkpoint(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    path = mutations.write_mutant("config", random.Random(0), tmp_path)
    for name in ("config.json", "model.safetensors"):
        (path / name).write_bytes((tmp_path / "vit" / name).read_bytes())
    load(path)
    return path


@pytest.mark.parametrize("number", [2**31, 10**400], ids=["large", "huge"])
@pytest.mark.parametrize("field", ["width", "image_size", "num_layers"])
def test_numbers_that_no_arithmetic_stands_are_refused(folder, field, number):
    document = json.loads((folder / "config.json").read_text())
    document["vision"] |= {field: number, "num_heads": 1, "patch_size": 1}
    (folder / "config.json").write_text(json.dumps(document))
    most = "below 65,536" if field == "image_size" else "at most 2,147,483,647"
    with pytest.raises(CheckpointError, match=rf"{field} must be [^.]*{most}"):
        load(folder)


def test_a_configuration_of_any_size_is_not_read(folder):
    with open(folder / "config.json", "w") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="bytes, expected at most 1,048,576 of JSON"):
        load(folder)


def test_what_a_configuration_says_is_quoted_in_a_line(folder, capsys):
    document = json.loads((folder / "config.json").read_text())
    for text in ("x" * 70_000, "\x1b[2J\n", "\ud800"):
        document["vision"]["type"] = text
        (folder / "config.json").write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match=r"vision.type must be one of") as caught:
            load(folder)
        assert len(str(caught.value)) < 1_500
        assert cli(["convert", str(folder), str(folder.parent / "out.pt")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.isprintable()


def test_the_largest_configuration_costs_nothing():
    side, pixels = 2**31 - 1, 2**16 - 1
    config = CLIPConfig(side, ViTConfig(pixels, 1, side, 2, 1), TextConfig(side, 2, 1, side, side))
    assert parameter_shapes(config)["visual/positional_embedding"] == (pixels**2 + 1, side)
