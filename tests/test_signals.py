"""SIGTERM and Ctrl-C: real signals to real processes, whatever these are doing."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import clip_jax
from clip_jax.signals import Terminated, deferred, exit_status
from tests import quickly
from tests.embedding_jobs import contents
from tests.models import SMALL_VIT, small
from tests.pictures import noise

pytestmark = pytest.mark.long

# A command that does what `body` says, with what the command line does about signals.
COMMAND = """
import sys, time, threading
from clip_jax import signals
from clip_jax.cli import dispatch

{set_up}

class Command:
    def run(self, arguments):
{body}
        return 0

class Parser:
    def parse_args(self, argv):
        return Command()

dispatch._parser = Parser
sys.exit(dispatch.main([]))
"""
READY = "print('ready', flush=True)"


def start(body: str, set_up: str = "") -> subprocess.Popen:
    """A process that has got to the line READY of its body."""
    program = COMMAND.format(body=textwrap.indent(textwrap.dedent(body), " " * 8), set_up=set_up)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen, *numbers: int) -> tuple[int, str, float]:
    """Its exit status after these signals, what it says, and how many seconds it took."""
    begin = time.monotonic()
    for number in numbers:
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said, time.monotonic() - begin


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_command_says_what_is_kept_and_ends_with_128_and_the_signal(number, status, word):
    body = f"""
    try:
        {READY}
        time.sleep(50)
    except KeyboardInterrupt as stop:
        stop.add_note("3 parts are kept")
        raise
    """
    code, said, _ = end(start(body), number)
    assert (code, said) == (status, f"clip-jax: {word}; 3 parts are kept\n")


def test_a_command_that_waits_outside_of_python_ends_all_the_same():
    # As for a device: no exception can be raised until the call returns. What is called says that
    # it is ready: a signal that comes before the call is another case.
    body = """
    import ctypes
    ctypes.CDLL(None).system(b"echo ready; exec sleep 12 > /dev/null 2>&1")
    """
    code, said, seconds = end(start(body, "signals.GRACE = 1.0"), signal.SIGTERM)
    assert code == 143 and seconds < 6
    assert said.startswith("clip-jax: terminated; what was finished is kept, and the same command")


def test_a_thread_that_goes_on_does_not_hold_up_the_end():
    body = f"""
    threading.Thread(target=time.sleep, args=(40,)).start()
    {READY}
    time.sleep(50)
    """
    code, said, seconds = end(start(body, "signals.GRACE = 1.0"), signal.SIGTERM)
    assert (code, said) == (143, "clip-jax: terminated\n") and seconds < 6


def test_a_second_ctrl_c_ends_at_once():
    body = f"""
    threading.Thread(target=time.sleep, args=(40,)).start()
    {READY}
    time.sleep(50)
    """
    process = start(body, "signals.TWICE = 0.2")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    code, _, seconds = end(process, signal.SIGINT)
    assert code == 130 and seconds < 6


def test_a_deferred_signal_lets_the_block_finish_what_it_began():
    body = f"""
    with signals.deferred(grace=20) as stop_asked:
        {READY}
        for step in range(500):
            time.sleep(0.1)
            if stop := stop_asked():
                time.sleep(2)  # longer than a command that defers nothing is given
                stop.add_note("a checkpoint is written")
                raise stop
    """
    process = start(body, "signals.GRACE = 0.5")
    # Twice, as `timeout` sends it to a process and to its group.
    code, said, seconds = end(process, signal.SIGTERM, signal.SIGTERM)
    assert (code, said) == (143, "clip-jax: terminated; a checkpoint is written\n")
    assert seconds >= 2


def test_a_deferred_signal_that_nobody_asks_for_is_raised_as_the_block_ends():
    body = f"""
    with signals.deferred():
        {READY}
        time.sleep(1)
        print("finished", file=sys.stderr)
    time.sleep(50)
    """
    code, said, _ = end(start(body), signal.SIGTERM)
    assert (code, said) == (143, "finished\nclip-jax: terminated\n")


def test_what_was_ignored_as_the_command_began_stays_ignored():
    body = f"""
    {READY}
    time.sleep(1)
    print("undisturbed", file=sys.stderr)
    """
    set_up = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    assert end(start(body, set_up), signal.SIGINT)[:2] == (0, "undisturbed\n")


def test_a_program_of_somebody_else_keeps_its_signals():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with deferred() as stop_asked:
        assert stop_asked() is None
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert exit_status(Terminated()) == 143 and exit_status(KeyboardInterrupt()) == 130


def test_main_puts_the_callers_handlers_back(capsys):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    from clip_jax.cli import main

    assert main(["models"]) == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_stopped_embedding_job_keeps_its_parts_and_goes_on(tmp_path):
    pytest.importorskip("pyarrow")
    clip_jax.save(small(SMALL_VIT), tmp_path / "model")
    (tmp_path / "in").mkdir()
    for i in range(200):
        (tmp_path / "in" / f"{i:03d}.png").write_bytes(noise(i))

    def embed(out: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "clip_jax", "embed", str(tmp_path / "in"), "--out", out]
        return subprocess.Popen(
            [*command, "--model", tmp_path / "model", "--rows-per-part", "2", "--batch-size", "2"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | quickly.ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": "1"},
        )

    assert end(embed(tmp_path / "undisturbed"))[0] == 0
    whole, out, before = contents(tmp_path / "undisturbed"), tmp_path / "out", 0
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process, deadline = embed(out), time.monotonic() + 100
        while len(list(out.glob("part-*"))) < before + 5:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.002)
        code, said, seconds = end(process, number)
        there = contents(out)
        parts = sum(name.startswith("part-") for name in there)
        assert code == status and seconds < 10
        assert f"{parts - before} parts written now and {before} written before are kept" in said
        assert all(whole[name] == content for name, content in there.items())  # nothing half
        before = parts
    assert end(embed(out))[0] == 0
    assert contents(out) == whole


def test_a_signal_that_something_has_swallowed_ends_the_command_all_the_same():
    """As Python's callbacks of its garbage collector do with what is raised in them."""
    script = """
        import os, signal, sys, time
        from clip_jax.signals import exit_status, handled
        try:
            with handled(print):
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(5)
                except KeyboardInterrupt:
                    pass
        except KeyboardInterrupt as stop:
            os._exit(exit_status(stop))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    assert subprocess.run(command, timeout=60).returncode == 130
