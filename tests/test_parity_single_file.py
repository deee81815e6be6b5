"""`clip-jax parity` on single files of Stable Diffusion, and on folders within folders."""

import json

import pytest

from clip_jax.cli import main
from clip_jax.convert.rules import HUGGING_FACE, OPEN_CLIP
from tests.peers import build_huggingface, peer, saved
from tests.single_files import named, tower, write

pytestmark = pytest.mark.torch


def parity(capsys, *arguments):
    capsys.readouterr()
    status = main(["parity", *map(str, arguments), "--json"])
    given = capsys.readouterr()
    return status, json.loads(given.out) if status == 0 else given.err


@pytest.mark.filterwarnings("always:the model's vocabulary")  # the towers have few words
@pytest.mark.parametrize(
    ("arrays", "table", "prefix"),
    [
        ((768, 12, 1, None), HUGGING_FACE, "cond_stage_model.transformer."),
        ((1024, 16, 2, 1024), OPEN_CLIP, "cond_stage_model.model."),
    ],
    ids=["Stable Diffusion 1", "Stable Diffusion 2"],
)
def test_the_tower_of_a_single_file_is_compared_with_transformers(
    arrays, table, prefix, tmp_path, capsys
):
    peer("transformers")
    path = write(tmp_path, named(tower(*arrays), table, prefix))
    status, document = parity(capsys, path)
    assert status == 0 and document["peer"] == "transformers" and document["ok"]
    stages = [row["stage"] for row in document["rows"]]
    assert stages == ["text transformer.resblocks.0", "text ln_final", "text features"]


@pytest.mark.filterwarnings("always:the model's vocabulary")
def test_one_of_two_towers_is_chosen_by_its_name(tmp_path, capsys):
    peer("transformers")
    first = named(tower(768, 12, 1), HUGGING_FACE, "conditioner.embedders.0.transformer.")
    second = named(tower(1280, 20, 1, 1280), OPEN_CLIP, "conditioner.embedders.1.model.")
    path = write(tmp_path, first, second)
    status, said = parity(capsys, path)
    assert status == 1 and "two text towers: give --subfolder text_encoder or" in said
    assert "Traceback" not in said
    assert parity(capsys, path, "--subfolder", "text_encoder_2")[0] == 0


@pytest.mark.filterwarnings("always:the model's vocabulary")
def test_a_model_in_a_folder_within_a_folder_is_compared(tmp_path, capsys):
    saved(build_huggingface(), tmp_path / "outer" / "inner")
    status, document = parity(capsys, tmp_path / "outer", "--subfolder", "inner")
    assert status == 0 and document["ok"]
    assert parity(capsys, "ViT-B/32", "--subfolder", "inner")[0] == 1
