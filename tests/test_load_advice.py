"""What a newcomer is told when a checkpoint is unclear, incomplete or named wrongly."""

import copy
import json

import pytest

from clip_jax.convert.open_clip_config import from_document
from clip_jax.errors import CheckpointError
from clip_jax.open_clip_catalog import lookup_tag
from clip_jax.weights.tokenizers import load_tokenizer


def described(**text):
    """OpenCLIP's configuration of ViT-B-32 with these changes of the text tower."""
    tag = lookup_tag("ViT-B-32/openai")
    assert tag is not None
    document = copy.deepcopy(tag.open_clip_config())
    document["model_cfg"]["text_cfg"] |= text
    return document


@pytest.mark.parametrize(
    "options", [{"clean": "canonicalize"}, {"clean": "whitespace"}, {"strip_sep_token": True}]
)
def test_options_that_change_openclips_ids_are_another_tokenizer(options, tmp_path):
    document = described(tokenizer_kwargs=options)
    text = from_document(document).text
    with pytest.raises(ValueError, match=f"tokenizer of open_clip with .*{next(iter(options))}"):
        text.check_strings()
    (tmp_path / "open_clip_config.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"tokenizer open_clip with .*, which isn't at hand"):
        load_tokenizer(tmp_path)("a photo")


@pytest.mark.parametrize("options", [None, {}, {"clean": "lower"}, {"context_length": 77}])
def test_options_that_change_no_ids_leave_openclips_tokenizer(options):
    text = from_document(described(tokenizer_kwargs=options)).text
    assert text.tokenizer is None
    text.check_strings()


def test_options_of_a_tokenizer_must_be_an_object():
    with pytest.raises(CheckpointError, match="tokenizer_kwargs: expected an object"):
        from_document(described(tokenizer_kwargs="canonicalize"))
