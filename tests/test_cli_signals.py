"""Ctrl-C and SIGTERM at any moment of a command, the first second included."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.cli import program
from tests import quickly
from tests.models import SMALL_VIT, small

pytestmark = pytest.mark.long

SCRIPT = Path(sys.executable).with_name("clip-jax")
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A model and pictures."""
    root = tmp_path_factory.mktemp("signals")
    clip_jax.save(small(SMALL_VIT), root / "model")
    (root / "in").mkdir()
    for i in range(60):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(root / "in" / f"{i}.png")
    return root


def started(command: list[object], root: Path) -> subprocess.Popen:
    """A process which has got to our code: before that, a signal is Python's."""
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | quickly.ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": "1"},
    )
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        caught = next(line for line in status.read_text().splitlines() if "SigCgt" in line)
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return process
        time.sleep(0.001)
    raise AssertionError(process.communicate())


def stop_at_random(root: Path, out: Path, seed: int, seconds: float) -> None:
    """Starts a command, sends it a signal within `seconds`, and looks how it ends."""
    rng = random.Random(seed)
    embed = ["embed", "in", "--out", out, "--model", "model", "--rows-per-part", "4"]
    classify = ["classify", "in/0.png", "--labels", "x", "y", "--model", "model"]
    head = rng.choice([[SCRIPT], [sys.executable, "-m", "clip_jax"]])
    number = rng.choice([signal.SIGINT, signal.SIGTERM])
    moment = rng.uniform(0, seconds)
    process = started([*head, *rng.choice([embed, classify])], root)
    time.sleep(moment)
    process.send_signal(number)
    printed, said = process.communicate(timeout=60)
    case = f"seed {seed}: {WORDS[number]} after {moment:.3f} s: {said}"
    if process.returncode:
        assert process.returncode == 128 + number, case
        (line,) = said.splitlines()
        assert line.startswith(f"clip-jax: {WORDS[number]}"), case
    else:
        assert printed, case


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("seed", range(4))
def test_a_command_ends_in_one_line_whenever_it_is_stopped(root, tmp_path, seed):
    stop_at_random(root, tmp_path / "out", seed, 1.5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("seed", range(100, 200))
def test_a_command_ends_in_one_line_at_a_hundred_moments(root, tmp_path, seed):
    stop_at_random(root, tmp_path / "out", seed, 3.0)


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


# A command that does what its body says; SLOW is a module whose import sends a signal.
COMMAND = """
    import os, signal, sys, time, types
    from clip_jax.cli import dispatch, program

    def send():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep({pause})

    class Loader:
        def find_spec(self, name, path=None, target=None):
            if name == "slow":
                from importlib.machinery import ModuleSpec
                return ModuleSpec(name, self)
        def create_module(self, spec):
            return None
        def exec_module(self, module):
            try:
                send()
            except BaseException:
                print("raised in an import", flush=True)
            module.is_whole = True

    sys.meta_path.append(Loader())

    def work(arguments):
        {body}
        return 0

    dispatch._parser = lambda: types.SimpleNamespace(
        parse_args=lambda argv: types.SimpleNamespace(run=lambda _: work(_)))
    program()
"""


def test_a_signal_during_an_import_is_raised_when_the_import_is_over():
    body = """
        try:
            import slow
            time.sleep(20)
        except KeyboardInterrupt as stop:
            stop.add_note(f"whole: {sys.modules['slow'].is_whole}")
            raise
    """
    done = run(COMMAND.format(body=body.strip(), pause=0.1))
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "clip-jax: interrupted; whole: True\n"


def test_a_long_import_does_not_hold_up_the_end():
    begin = time.monotonic()
    done = run(COMMAND.format(body="import slow", pause=20))
    assert time.monotonic() - begin < 10
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "clip-jax: interrupted\n")


def test_a_signal_that_a_finalizer_loses_is_raised_again():
    body = """
        class Lossy:
            def __del__(self):
                send()
        lossy = Lossy()
        del lossy
        time.sleep(20)
    """
    begin = time.monotonic()
    done = run(COMMAND.format(body=body.strip(), pause=0.1))
    assert time.monotonic() - begin < 6
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "clip-jax: interrupted\n")


def test_a_signal_that_does_not_interrupt_the_main_thread_ends_the_command_all_the_same():
    # The system gives it to another thread, or it comes just before the main thread sleeps.
    body = """
        import threading
        def to_this_thread():
            time.sleep(0.2)
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            time.sleep(20)
        threading.Thread(target=to_this_thread, daemon=True).start()
        time.sleep(20)
    """
    begin = time.monotonic()
    done = run(COMMAND.format(body=body.strip(), pause=0))
    assert time.monotonic() - begin < 6
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "clip-jax: interrupted\n")


def test_an_error_that_a_signal_was_made_into_is_still_a_signal():
    body = """
        try:
            send()
        except KeyboardInterrupt as stop:
            raise RuntimeError("an extension's own words") from stop
    """
    done = run(COMMAND.format(body=body.strip(), pause=5))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "clip-jax: interrupted\n")


def test_a_signal_before_the_command_runs_ends_the_process_at_once():
    script = """
        import os, signal, sys
        import clip_jax.cli
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "clip_jax.cli.dispatch":
                    os.kill(os.getpid(), signal.SIGTERM)
        sys.meta_path.insert(0, Finder())
        clip_jax.cli.program()
    """
    done = run(script)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "clip-jax: terminated\n")


def test_a_signal_after_the_command_changes_nothing():
    """As Python takes its modules apart it has no handlers: the process would be killed."""
    body = """
        class Late:
            def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGINT):
                kill(me, number)
        sys.late = Late()
        print("done")
    """
    done = run(COMMAND.format(body=body.strip(), pause=0))
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_importing_the_command_line_leaves_signals_alone():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert callable(program)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
