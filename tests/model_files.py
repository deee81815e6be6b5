"""Models of few words, which make small files, and the folders that hold them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from clip_jax.config import CLIPConfig
from clip_jax.nn import flatten
from clip_jax.weights import save_parameters
from tests.models import SMALL_RESNET, SMALL_VIT, random_parameters


def with_few_words(config: CLIPConfig) -> CLIPConfig:
    """A configuration with a vocabulary of few words, so that its files are small."""
    return dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=61))


VIT, RESNET = with_few_words(SMALL_VIT), with_few_words(SMALL_RESNET)


def same(given, expected) -> bool:
    """Whether two trees have the same paths and bits."""
    given, expected = flatten(given), flatten(expected)
    return given.keys() == expected.keys() and all(
        np.array_equal(np.asarray(given[path]), np.asarray(expected[path])) for path in expected
    )


def names_below(folder: Path) -> list[str]:
    """What is in a folder and those in it, by its path from there."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def model_folder(tmp_path) -> Path:
    """A model in the native format."""
    save_parameters(VIT, random_parameters(VIT), tmp_path / "model")
    return tmp_path / "model"
