"""Imports the libraries in PyTorch with which `clip-jax parity` and the tests compare.

OpenAI's models are compared with the reference, PyPI's `clip-anytorch`, run as a black box. Without
CUDA and with current setuptools it can't be imported without the workarounds here. Nothing else in
this package needs PyTorch.
"""

import contextlib
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from clip_jax.errors import CheckpointError, is_exhausted

INSTALL = "pip install torch==2.13.0 torchvision==0.28.0 clip-anytorch"

# What else can be imported, with the names of its packages.
PACKAGES = {
    "torch": "torch torchvision",
    "open_clip": "torch torchvision open_clip_torch",
    "transformers": "torch torchvision transformers",
}

_kept_alive: list[Any] = []  # torch drops operators when the Library that defined them is collected


def import_reference() -> ModuleType:
    """Imports and returns the reference's `clip` module, and imports its `torch`.

    Raises:
        ModuleNotFoundError: PyTorch, torchvision or the reference is missing; the message says how
            to install them.
    """
    with quiet():
        try:
            importlib.import_module("torch")
            _import_torchvision()
            with _pkg_resources():
                return importlib.import_module("clip")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the PyTorch reference is not installed (no module {error.name}): {INSTALL}",
                name=error.name,
            ) from None


def import_library(name: Literal["torch", "open_clip", "transformers"]) -> ModuleType:
    """Imports and returns PyTorch, OpenCLIP or transformers.

    Raises:
        ModuleNotFoundError: it or PyTorch is missing; the message says how to install them.
    """
    with quiet():
        try:
            importlib.import_module("torch")
            _import_torchvision()
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{name}, which this model is compared with, is not installed (no module "
                f"{error.name}): pip install 'clip-jax-flax[reference]', or {PACKAGES[name]}",
                name=error.name,
            ) from None


@contextlib.contextmanager
def loading(library: str, path: Path) -> Iterator[None]:
    """Keeps a library from writing to the screen while it loads a model.

    Raises:
        CheckpointError: it can't load the model, for whatever reason.
    """
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    bars = _progress_bars(library)
    try:
        with quiet():
            yield
    except Exception as error:
        if isinstance(error, CheckpointError) or is_exhausted(error):
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{library} can't load {path}: {reason}") from error
    finally:
        logging.disable(level)
        if bars is not None:
            bars.enable_progress_bar()


def _progress_bars(library: str) -> Any | None:
    """Turns the library's progress bars off; returns what turns them on again, if they were."""
    if library != "transformers":
        return None
    bars = importlib.import_module("transformers.utils.logging")
    if not bars.is_progress_bar_enabled():
        return None
    bars.disable_progress_bar()
    return bars


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignores warnings: PyTorch deprecates parts of itself that the reference uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        # PyPI's torchvision is built for CUDA and can't load its operators with a CPU torch, but on
        # import it registers shapes for these two: they must exist, but needn't work.
        library = importlib.import_module("torch").library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)
        importlib.import_module("torchvision")


@contextlib.contextmanager
def _pkg_resources() -> Iterator[None]:
    # The reference imports `packaging` from pkg_resources, which setuptools no longer has.
    stand_in = ModuleType("pkg_resources")
    importlib.import_module("packaging.version")
    stand_in.__dict__["packaging"] = importlib.import_module("packaging")
    installed = sys.modules.get("pkg_resources")
    sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]
        if installed is not None:
            sys.modules["pkg_resources"] = installed
