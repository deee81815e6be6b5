"""A model's name in a path object, where no such file is."""

from pathlib import Path

import pytest

import clip_jax


@pytest.mark.parametrize("function", [clip_jax.load, clip_jax.config_of])
@pytest.mark.parametrize("name", ["emoji", "ViT-L/14"])
def test_a_path_spelled_as_a_models_name_is_told_to_be_a_string(function, name):
    with pytest.raises(ValueError, match=f"there is no file or folder '{name}': .* as a string"):
        function(Path(name))
