"""Formats in which an empty picture takes some bytes whatever its size."""

import io

import pytest
from PIL import Image

from clip_jax.preprocess import decode_image


def saved(format: str, image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_a_large_webp_of_one_colour_is_refused_before_it_is_decoded():
    data = saved("WEBP", Image.new("RGB", (8000, 8000), 77), lossless=True, method=0)
    assert len(data) < 4000
    with pytest.raises(ValueError, match="64,000,000 pixels in .* bytes, expected a picture of"):
        decode_image(data)


def test_an_empty_webp_of_a_usual_size_is_read():
    data = saved("WEBP", Image.new("RGB", (4000, 3000), "white"), lossless=True, method=0)
    assert decode_image(data).size == (4000, 3000)
