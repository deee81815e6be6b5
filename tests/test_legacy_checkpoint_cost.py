"""A small checkpoint of the format before PyTorch 1.6 whose message would take hours to print."""

import pickle
import time

import pytest

from clip_jax.convert.legacy import _MAGIC
from clip_jax.convert.reader import read_checkpoint
from clip_jax.errors import CheckpointError


def nested(depth: int) -> list:
    """A list of two lists, each of which is the same one of two lists, and so on."""
    found: list = []
    for _ in range(depth):
        found = [found, found]
    return found


DEEP = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (10**5000, r"has version 2\^16610"),
        (nested(60), "has version a list"),
        (DEEP, "has version a list"),
        (1002, r"has version 1002"),
    ],
    ids=["of thousands of digits", "of 2^60 lists", "of 100,000 levels", "of tomorrow"],
)
def test_a_version_that_is_none_is_told_in_no_time(tmp_path, version, told):
    path = tmp_path / "a.pt"
    parts = [_MAGIC, version, {"little_endian": True}, {}, []]
    path.write_bytes(b"".join(p if isinstance(p, bytes) else pickle.dumps(p, 2) for p in parts))
    begin = time.process_time()
    with pytest.raises(CheckpointError, match=told):
        read_checkpoint(path)
    assert time.process_time() - begin < 5
