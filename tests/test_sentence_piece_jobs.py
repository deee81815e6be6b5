"""Jobs of a model with a SentencePiece tokenizer, which its folder carries."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.cli import main
from clip_jax.embed import embed, read_embeddings
from clip_jax.evaluate import retrieval, zeroshot
from clip_jax.nn import normalize
from clip_jax.search import search
from clip_jax.sentence_piece import SentencePieceTokenizer
from tests.models import SMALL_VIT, random_images, small
from tests.sentence_pieces import siglip_model

pytest.importorskip("sentencepiece")

QUIET = {"progress": False, "batch_size": 4}
LENGTH = 16
TEXT = dataclasses.replace(
    SMALL_VIT.text, context_length=LENGTH, vocab_size=400, pooling="last", is_causal=False
)
CAPTIONS = ["a small dog", "the red house", "a dog " * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with its tokenizer and without, and pictures with captions and in classes."""
    root = tmp_path_factory.mktemp("jobs")
    model = small(dataclasses.replace(SMALL_VIT, text=TEXT))
    tokenizer = SentencePieceTokenizer(LENGTH, "spiece.model", siglip_model(), "siglip", 1)
    clip_jax.save(model, root / "model", tokenizer=tokenizer)
    clip_jax.save(model, root / "bare")
    lines = ["image,caption"]
    for i, pixels in enumerate(random_images(3, 32)):
        (root / "classes" / f"dog {i % 2}").mkdir(parents=True, exist_ok=True)
        for path in (root / f"{i}.png", root / "classes" / f"dog {i % 2}" / f"{i}.png"):
            Image.fromarray(pixels).save(path)
        lines.append(f"{i}.png,{CAPTIONS[i]}")
    (root / "captions.csv").write_text("\n".join(lines) + "\n")
    embed(root / "captions.csv", root / "model", root / "out", what="both", **QUIET)
    return root


def test_a_job_embeds_texts_by_the_folders_tokenizer(folder):
    model = clip_jax.load(folder / "model")[0]
    tokens = clip_jax.load_tokenizer(folder / "model")(CAPTIONS, truncate=True)
    rows = read_embeddings(folder / "out").to_table().to_pydict()
    expected = normalize(model.encode_text(tokens))
    np.testing.assert_allclose(rows["text_embedding"], expected, atol=1e-5)


def test_the_tokenizer_is_part_of_the_jobs_identity(folder):
    identity = json.loads((folder / "out" / "job.json").read_text())["identity"]
    assert identity["tokenizer"] == {"sha256": clip_jax.load_tokenizer(folder / "model").digest}
    other = SentencePieceTokenizer(LENGTH, "spiece.model", siglip_model(), "open_clip", 1)
    clip_jax.save(clip_jax.load(folder / "model")[0], folder / "other", tokenizer=other)
    with pytest.raises(ValueError, match="- tokenizer: there"):
        embed(folder / "captions.csv", folder / "other", folder / "out", what="both", **QUIET)


def test_a_search_takes_its_ids_from_there(folder):
    assert search(folder / "out", None, "the red house", 3)
    assert search(folder / "out", folder / "model", "the red house", 3)
    with pytest.raises(ValueError, match="with the tokenizer of the model's folder: give"):
        search(folder / "out", clip_jax.load(folder / "model")[0], "the red house")


def test_evaluations_do_too(folder):
    result = retrieval(folder / "captions.csv", folder / "model", **QUIET)
    assert (result.num_images, result.num_texts) == (3, 3)
    assert zeroshot(folder / "classes", folder / "model", **QUIET).scores.count == 3


@pytest.mark.parametrize("job", ["embed", "search", "eval", "classify"])
def test_where_the_tokenizer_is_missing_strings_are_refused_in_a_line(
    folder, tmp_path, capsys, job
):
    bare = ["--model", str(folder / "bare")]
    table, out = str(folder / "captions.csv"), str(folder / "out")
    command = {
        "embed": ["embed", table, "--out", str(tmp_path / "out"), "--what", "texts", *bare],
        "search": ["search", out, "the red house", *bare],
        "eval": ["eval", "retrieval", table, *bare],
        "classify": ["classify", str(folder / "0.png"), "--labels", "a", *bare],
    }[job]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "400 ids" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_pictures_need_no_tokenizer(folder, tmp_path):
    embed(folder / "classes", folder / "bare", tmp_path / "out", **QUIET)
    assert search(tmp_path / "out", None, folder / "0.png", 1)
