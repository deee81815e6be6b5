"""Tokens that were added to CLIP's vocabulary: no text ends there, and every room knows them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.cli import main
from clip_jax.convert import to_huggingface
from clip_jax.embed import Columns, embed, read_embeddings
from clip_jax.evaluate import ZeroShotClassifier, jobs, retrieval, zeroshot
from clip_jax.nn import flatten, parameters, unflatten
from clip_jax.preprocess_huggingface import HuggingFacePreprocess
from clip_jax.search import search
from clip_jax.weights.opened import LoadOptions, open_model
from tests.models import SMALL_VIT, random_parameters, relative_error

ADDED, ORDINARY = 49408, 5000


def with_text(**fields):
    return dataclasses.replace(SMALL_VIT, text=dataclasses.replace(SMALL_VIT.text, **fields))


UNSAID = with_text(vocab_size=ADDED + 1)
SAID = with_text(vocab_size=ADDED + 1, pooling="eos", eos_id=49407)
LEGACY = with_text(vocab_size=ADDED + 1, eos_id=2)


def params_of(config):
    """The embedding of the added token is also that of an ordinary one."""
    arrays = dict(flatten(random_parameters(config)))
    table = arrays["token_embedding/embedding"].copy()
    table[ORDINARY] = table[ADDED]
    return unflatten({**arrays, "token_embedding/embedding": table})


def model_of(config):
    return clip_jax.from_parameters(config, params_of(config))


def tokens_with(number):
    """A text with that id in the place of X, and one without it."""
    tokens = clip_jax.tokenize(["a photo of a X on a beach", "a dog"])
    tokens[0, 5] = number
    return tokens


def test_a_text_ends_at_the_end_token_although_an_added_id_is_larger():
    model = model_of(SAID)
    expected = np.asarray(model.encode_text(tokens_with(ORDINARY)))
    assert relative_error(model.encode_text(tokens_with(ADDED)), expected) < 1e-6
    encoder = clip_jax.Encoder(model, batch_size=2)
    assert relative_error(encoder.texts(tokens_with(ADDED)), expected) < 1e-5
    hidden = model.text_outputs(tokens_with(ADDED)).text_embeds
    assert relative_error(hidden, expected) < 1e-5


def test_an_old_folder_pools_at_the_largest_id_as_its_configuration_says():
    model = model_of(LEGACY)
    added, ordinary = (model.text_outputs(tokens_with(n)) for n in (ADDED, ORDINARY))
    at = added.last_hidden_state[0, 5]
    assert relative_error(added.pooler_output[0], at) < 1e-6
    assert relative_error(added.pooler_output[0], ordinary.pooler_output[0]) > 0.1
    encoded = clip_jax.Encoder(model, batch_size=2).texts(tokens_with(ADDED))
    assert relative_error(encoded, added.text_embeds) < 1e-5


def test_where_nothing_says_what_ids_behind_the_end_are_no_text_is_pooled_there():
    model = model_of(UNSAID)
    encoder = clip_jax.Encoder(model, batch_size=2)
    expected = np.asarray(model_of(SAID).encode_text(tokens_with(ORDINARY)))
    assert relative_error(model.encode_text(tokens_with(ORDINARY)), expected) < 1e-6
    assert relative_error(encoder.texts(tokens_with(ORDINARY)), expected) < 1e-5
    images = np.zeros((1, 32, 32, 3), np.uint8)
    for tokens in (tokens_with(ADDED), jax.numpy.asarray(tokens_with(ADDED))):
        for call in (
            model.encode_text,
            model.text_outputs,
            encoder.texts,
            lambda tokens: model(images, tokens),
        ):
            with pytest.raises(ValueError, match='rows 0 of tokens.*pooling="eos" and eos_id=494'):
                call(tokens)
    # In the caller's own program nothing can be seen of the ids.
    with pytest.raises(ValueError, match="inside of a traced function the ids can't be seen"):
        jax.jit(lambda tokens: model.encode_text(tokens))(tokens_with(ORDINARY))
    jax.jit(lambda tokens: model_of(SAID).encode_text(tokens))(tokens_with(ADDED))


def test_clips_strings_are_for_vocabularies_that_begin_with_clips():
    for fields in ({"eos_id": 63_999, "vocab_size": 64_000}, {"vocab_size": 64_000}):
        with pytest.raises(ValueError, match="not those of CLIP's tokenizer"):
            with_text(**fields).text.check_strings()
    for config in (SAID, LEGACY):
        config.text.check_strings()


# ---- in every room ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of transformers with a token of its own."""
    path = tmp_path_factory.mktemp("added") / "hf"
    to_huggingface(SAID, params_of(SAID), path)
    (path / "added_tokens.json").write_text(json.dumps({"<toy>": ADDED}))
    return path


@pytest.fixture
def pairs(tmp_path):
    """Pictures, one of them with a palette, and their captions."""
    lines = []
    for i, text in enumerate(["a <toy> on a beach", "a dog"]):
        image = Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8))
        (image.convert("P") if i else image).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": text, "label": text}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    return tmp_path / "pairs.jsonl"


TEXTS = ["a <toy> on a beach", "a dog"]


def expected_texts(folder):
    model, _ = clip_jax.load(folder)
    tokens = clip_jax.load_tokenizer(folder)(TEXTS)
    assert (tokens == ADDED).sum() == 1
    found = np.asarray(clip_jax.nn.normalize(model.encode_text(tokens)))
    plain = np.asarray(clip_jax.nn.normalize(model.encode_text(clip_jax.tokenize(TEXTS))))
    assert relative_error(found[0], plain[0]) > 0.1  # the token says something
    return found


def test_jobs_embed_with_the_folders_tokenizer_and_are_searched_with_it(folder, pairs, tmp_path):
    expected, out = expected_texts(folder), tmp_path / "out"
    embed(pairs, folder, out, what="texts", progress=False)
    found = np.stack(read_embeddings(out).to_table()["embedding"].to_numpy())
    assert relative_error(found, expected) < 1e-5
    for model in (None, folder):
        hits = search(out, model, TEXTS[0], 1)
        assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="with the tokenizer of the model's folder: give the"):
        search(out, clip_jax.load(folder)[0], TEXTS[0])
    identity = json.loads((out / "job.json").read_text())["identity"]
    assert identity["tokenizer"] == {"rules": "openai", "added": [["<toy>", ADDED]]}
    with pytest.raises(ValueError, match="tokenizer"):  # other ids, another job
        embed(pairs, clip_jax.load(folder)[0], out, what="texts", progress=False)


def test_a_job_with_clips_ids_and_pixels_has_the_fingerprint_that_it_always_had(pairs, tmp_path):
    embed(pairs, "emoji", tmp_path / "out", what="both", progress=False)
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    assert not {"tokenizer", "preprocessing", "load"} & {*job, *job["identity"]}


def test_evaluations_take_the_folders_tokenizer(folder, pairs, monkeypatch):
    expected = expected_texts(folder)
    seen = []
    of = ZeroShotClassifier.__init__

    def noting(self, *arguments, **options):
        of(self, *arguments, **options)
        seen.append(self.weights)

    monkeypatch.setattr(ZeroShotClassifier, "__init__", noting)
    zeroshot(pairs, folder, class_names=TEXTS, templates=["{}"], progress=False)
    assert relative_error(seen[0], expected) < 1e-5
    ranks = jobs.ranks_of_positives

    def noting_texts(images, texts, *others):
        seen.append(texts)
        return ranks(images, texts, *others)

    monkeypatch.setattr(jobs, "ranks_of_positives", noting_texts)
    retrieval(pairs, folder, progress=False)
    texts = seen[1] / np.linalg.norm(seen[1], axis=1, keepdims=True)
    assert relative_error(texts, expected) < 1e-5


def test_training_takes_the_folders_tokenizer(folder, pairs, monkeypatch):
    from clip_jax.sources import open_pairs
    from clip_jax.train.data import batches

    pytest.importorskip("grain")
    tokenizer = open_model(folder, LoadOptions()).tokenizer
    iterator, _ = batches(
        open_pairs(pairs), batch_size=2, image_size=32, text_length=77, tokenizer=tokenizer
    )
    assert (next(iterator)["tokens"] == ADDED).sum() == 1


def test_transformers_pixels_and_ids_are_another_job(folder, pairs, tmp_path):
    theirs = HuggingFacePreprocess.from_folder(folder, 32)
    images = [Image.open(pairs.parent / f"{i}.png") for i in range(2)]
    model, ours = clip_jax.load(folder)
    pixels, others = (np.stack([make.pixels(x) for x in images]) for make in (theirs, ours))
    assert (pixels != others).any()
    out = tmp_path / "theirs"
    options = {"what": "images", "preprocessing": "huggingface", "progress": False}
    embed(pairs, folder, out, **options)
    found = np.stack(read_embeddings(out).to_table()["embedding"].to_numpy())
    expected = clip_jax.nn.normalize(model.encode_image(pixels))
    assert relative_error(found, expected) < 1e-5
    # A search takes the job's pixels.
    assert search(out, None, images[1], 1)[0]["score"] == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="with the preprocessing of the model's folder: give the"):
        search(out, model, images[1])
    with pytest.raises(ValueError, match="preprocessing"):
        embed(pairs, folder, out, what="images", progress=False)
    columns = Columns(others=("label",))
    embed(pairs, folder, tmp_path / "both", columns=columns, **options)
    result = zeroshot(tmp_path / "both", class_names=TEXTS, progress=False)
    assert result.scores.count == 2


def test_commands_take_the_preprocessing(folder, pairs, tmp_path, capsys):
    out, theirs = str(tmp_path / "out"), ["--model", str(folder), "--preprocessing", "huggingface"]
    picture = str(pairs.parent / "1.png")
    for command in (
        ["embed", str(pairs), "--out", out, *theirs],
        ["search", out, picture, "--image"],
        ["search", out, picture, "--image", *theirs],
        ["classify", picture, "--labels", *TEXTS, *theirs],
        ["eval", "zeroshot", str(pairs), *theirs],
        ["eval", "retrieval", str(pairs), *theirs],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
    assert "preprocessing" in json.loads((tmp_path / "out" / "job.json").read_text())["identity"]
    assert main(["embed", str(pairs), "--out", out, "--model", str(folder)]) == 1
    assert "preprocessing" in capsys.readouterr().err
    assert main(["classify", picture, "--labels", "a", "--model", "emoji", *theirs[2:]]) == 1
    assert "for folders of Hugging Face's transformers" in capsys.readouterr().err


def test_an_id_that_the_model_lacks_is_an_error_of_its_row(pairs, tmp_path):
    path = tmp_path / "hf"
    to_huggingface(SMALL_VIT, random_parameters(SMALL_VIT), path)
    (path / "added_tokens.json").write_text(json.dumps({"<toy>": ADDED}))
    summary = embed(pairs, path, tmp_path / "out", what="texts", progress=False)
    assert (summary.rows, summary.errors) == (1, 1)
    assert parameters(clip_jax.load(path)[0])  # it is a model all the same
