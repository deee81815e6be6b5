"""What every node of a cluster must have: the same versions, and paths that all share."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata

# Of what decides how pictures become pixels, and pixels embeddings.
PACKAGES = ("clip-jax-flax", "jax", "jaxlib", "numpy", "pillow", "ray")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that must be alike."""
    return {"Python": platform.python_version()} | {
        name: metadata.version(name) for name in PACKAGES
    }


def unlike(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """Describes the differences of two sets of versions; empty if there are none.

    Python may differ in its last number.
    """
    both = [
        (name, theirs.get(name, "missing"), version)
        for name, version in ours.items()
        if _compared(name, theirs.get(name, "")) != _compared(name, version)
    ]
    there = ", ".join(f"{name} {version}" for name, version, _ in both)
    here = ", ".join(f"{name} {version}" for name, _, version in both)
    return f"{there} there, {here} here" if both else ""


def _compared(name: str, version: str) -> str:
    return version.rpartition(".")[0] if name == "Python" else version


def check_here(folder: str, paths: Sequence[str], ours: Mapping[str, str]) -> None:
    """Checks this node, and goes to the working folder of whoever started the job.

    Raises:
        ValueError: it has other versions, or lacks a path.
    """
    node = platform.node()
    if other := unlike(versions(), ours):
        raise ValueError(f"the node {node} has other versions: {other}. Install the same there")
    if missing := [path for path in paths if not os.path.exists(path)]:
        raise ValueError(
            f"the node {node} has no {missing[0]}: give paths that all nodes share, or addresses "
            "such as s3://"
        )
    if os.path.isdir(folder):  # relative paths of the input are from there
        os.chdir(folder)
