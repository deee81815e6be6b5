"""What a terminal shows: what is compiled, what a model knows, what is kept, and what is asked."""

import argparse
import io
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip_jax.cli import main
from clip_jax.cli.advice import in_options
from tests.embedding_jobs import some, write_input

PICTURES = Path(__file__).parents[1] / "examples/emoji/pictures"


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Runs a command; returns its exit status and what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        status = main(list(map(str, words)))
        return status, *capsys.readouterr()

    return run


def at_a_terminal(monkeypatch, answer: str) -> None:
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_a_folder_is_classified_and_a_line_says_what_the_model_knows(command, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("pear.png", "aries.png"):
        shutil.copy(PICTURES / name, folder)
    (folder / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    status, out, err = command(
        "classify", "in", PICTURES / "pear.png", "--labels", "pear", "beetle", "--model", "emoji"
    )
    heads = [line for line in out.splitlines() if line and not line.startswith(" ")]
    assert heads == ["in/aries.png", "in/pear.png", str(PICTURES / "pear.png")]
    assert status == 0 and "left out of in: 1 file not named as pictures are: 1 .txt" in err
    assert any(x.startswith("clip-jax: the model emoji knows ") for x in err.splitlines())
    assert "confidently wrong" in err and "--model ViT-B/32" in err
    status, out, err = command("classify", "empty", "in", "--labels", "a", "b", "--model", "emoji")
    assert status == 1 and "in/pear.png" in out and "empty: no pictures" in err


def test_names_are_converted_to_any_format(command, tmp_path):
    pytest.importorskip("torch")
    assert command("convert", "emoji", "native")[0] == 0
    assert command("convert", "emoji", "e.pt")[0] == 0
    status, out, _ = command("convert", "native", "again.pt")
    assert status == 0 and "D 128" in out
    assert (tmp_path / "e.pt").stat().st_size == (tmp_path / "again.pt").stat().st_size
    status, _, err = command("convert", "emoij", "native2")
    assert status == 1 and err == (
        "clip-jax: emoij: no such file or folder, nor a model's name (clip-jax models)\n"
    )
    status, _, err = command("convert", "emoji", "native2", "--activation", "gelu")
    assert status == 2 and err.endswith("; see clip-jax convert --help\n")


def test_programs_that_are_compiled_are_announced_at_a_terminal(command, monkeypatch):
    words = ("classify", PICTURES / "pear.png", "--model", "emoji", "--labels")
    assert "compiling" not in command(*words, "one", "two")[2]
    at_a_terminal(monkeypatch, "")
    err = command(*words, "three", "four")[2]
    assert re.search(r"compiling for \d pictures? \.\.\.\n", err)


def test_a_job_says_that_it_compiles_before_its_bar_moves(command, monkeypatch, tmp_path):
    pytest.importorskip("pyarrow")
    write_input(tmp_path / "in", some(2))
    at_a_terminal(monkeypatch, "")
    status, _, err = command("embed", "in", "--out", "out", "--model", "emoji")
    assert status == 0
    assert re.search(r"compiling for \d+ pictures \.\.\.\n.*2/2", err, re.DOTALL)


@pytest.mark.parametrize("answer", ["y", "n", ""])
def test_a_folder_full_of_other_things_is_asked_about(command, tmp_path, monkeypatch, answer):
    pytest.importorskip("pyarrow")
    write_input(tmp_path / "in", some(2))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    at_a_terminal(monkeypatch, f"{answer}\n")
    status, _, err = command("embed", "in", "--out", "home", "--model", "emoji")
    assert "home holds 1 other file already. Write beside them? [y/N]" in err
    assert (status == 0) == (answer == "y") == (tmp_path / "home" / "job.json").exists()
    if answer == "y":
        assert "[y/N]" not in command("embed", "in", "--out", "home", "--model", "emoji")[2]


def test_where_nobody_can_be_asked_a_folder_full_of_other_things_is_told(command, tmp_path):
    pytest.importorskip("pyarrow")
    write_input(tmp_path / "in", some(2))
    (tmp_path / "other").touch()
    status, _, err = command("embed", "in", "--out", ".", "--model", "emoji")
    assert status == 0 and "warning: . holds 2 other files already" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("classify", PICTURES / "pear.png", "--labels", "pear " * 99),
            "context length of 77: make it shorter",
        ),
        (("embed", "t.csv", "--out", "o"), "--image-column, --caption-column, --key-column,"),
        (("embed", PICTURES, "--out", "o", "--what", "texts"), "has no texts; --what texts needs"),
    ],
)
def test_advice_names_options(command, tmp_path, words, said):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    status, _, err = command(*words, "--model", "emoji")
    assert status == 1 and said in err


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("more than max_errors=3; the last", "more than --max-errors 3; the last"),
        ("what='texts' needs some", "--what texts needs some"),
        ('give activation="gelu" or activation=', "give --activation gelu or --activation"),
        ("with --max-errors 3", "with --max-errors 3"),
        ("pass verify=True.", "pass --verify."),
        ("'what=x.jpg' and /a/what=b/c.png", "'what=x.jpg' and /a/what=b/c.png"),
        ("no column 'max_errors'; what it has", "no column 'max_errors'; what it has"),
        ("unknown=3", "unknown=3"),
    ],
)
def test_arguments_of_functions_become_options_and_names_of_files_stay(message, expected):
    parser = argparse.ArgumentParser()
    for option in ("--max-errors", "--what", "--activation"):
        parser.add_argument(option)
    parser.add_argument("--verify", action="store_true")
    assert in_options(message, parser) == expected


def test_ctrl_c_outside_of_python_is_answered_within_a_second_and_says_what_is_kept():
    # As XLA compiles: a call that Python's handlers wait for, and other threads don't.
    script = """
import hashlib, types
from clip_jax.cli import dispatch, program
def work(_):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
arguments = types.SimpleNamespace(run=work, kept="3 parts are kept")
dispatch._parser = lambda: types.SimpleNamespace(parse_args=lambda argv: arguments)
program()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - begin < 4  # 0.9 on an idle machine
    assert process.returncode == 130
    assert said == "clip-jax: interrupted; 3 parts are kept\n"


@pytest.mark.parametrize("folder", ["clip_jax", "convert", "docs", "examples"])
def test_extras_are_quoted_for_shells_that_expand_brackets(folder):
    root = Path(__file__).parents[1] / folder
    files = [path for kind in ("py", "md") for path in root.rglob(f"*.{kind}")]
    assert files
    bare = re.compile(r"pip install (?:-\S+ )*[\w.-]+\[")
    assert not [str(path) for path in files if bare.search(path.read_text())]


def test_what_threads_compute_with_is_there_until_the_process_of_a_stopped_command_is_gone():
    script = """
import types
from clip_jax.cli import dispatch, program
class Arrays:
    def __del__(self):
        print("freed", flush=True)
def work(_):
    arrays = Arrays()
    raise KeyboardInterrupt
arguments = types.SimpleNamespace(run=work)
dispatch._parser = lambda: types.SimpleNamespace(parse_args=lambda argv: arguments)
program()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
