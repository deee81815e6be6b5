"""Names that are nearly right are answered with the right one."""

import pytest

import clip_jax
from tests.calls import runner


@pytest.mark.parametrize(("name", "right"), [("vit-b/32", "ViT-B/32"), ("rn50X4", "RN50x4")])
def test_an_official_name_in_other_letters_is_no_repository(name, right):
    with pytest.raises(ValueError, match=f"did you mean '{right}'"):
        clip_jax.load(name)


def test_an_address_given_to_classify_is_to_be_downloaded(capsys):
    argv = ("classify", "https://example.com/a.png", "--labels", "a", "b", "--model", "emoji")
    status, _, said = runner(capsys)(*argv)
    assert status == 1
    assert any("no such file; download it first, and give the file" in line for line in said)
