"""What is said of pictures of many bits names what helps, where they are read."""

import numpy as np
import pytest
from PIL import Image

from clip_jax.channels import Losses
from clip_jax.preprocess import Preprocess
from clip_jax.train.config import AugmentConfig
from clip_jax.train.data import _losses_of

REAL = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
DEEP = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999)


def said(kinds, **options) -> str:
    losses = Losses()
    losses.add(kinds, "x.tif")
    return "".join(losses.sentences(**options))


@pytest.mark.parametrize("scales", [False, True])
def test_of_real_numbers_no_option_is_advised_that_leaves_them(scales):
    for kinds in (
        Preprocess(8, scale_16_bit=scales).losses(REAL),
        _losses_of(REAL, AugmentConfig(scale_16_bit=scales)),
    ):
        sentence = said(kinds)
        assert sentence.startswith("1 picture has real numbers") and "x.tif" in sentence
        assert "scale-16-bit" not in sentence


def test_of_16_bits_the_option_is_advised_that_the_reader_has():
    assert "--scale-16-bit (scale_16_bit) keeps" in said(Preprocess(8).losses(DEEP))
    kinds = _losses_of(DEEP, AugmentConfig())
    assert "scale_16_bit = true in [augment] keeps" in said(
        kinds, scaling="scale_16_bit = true in [augment]"
    )
    assert not Preprocess(8, scale_16_bit=True).losses(DEEP)
    assert not _losses_of(DEEP, AugmentConfig(scale_16_bit=True))
