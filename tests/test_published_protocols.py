"""What published figures and methods need: names given twice, several labels, learned prompts."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.cli import main
from clip_jax.convert import from_pytorch, to_huggingface, to_open_clip, to_pytorch
from clip_jax.convert.long_clip import KEPT
from clip_jax.errors import CheckpointError
from clip_jax.evaluate import ZeroShotClassifier, probe, zeroshot
from clip_jax.evaluate.classes import name_classes
from clip_jax.evaluate.labels import as_labels
from tests.archives import write_tar
from tests.models import SMALL_VIT, random_parameters, relative_error, unsaid
from tests.pictures import picture

TWICE = ["missile", "sunglasses", "projectile", "sunglasses"]


# ---- names that several classes have, as ImageNet's published list has them --------------------


def test_classes_by_number_may_have_one_name(model):
    with pytest.warns(UserWarning, match="several classes are called 'sunglasses': their scores"):
        classifier = ZeroShotClassifier(model, TWICE)
    logits = classifier.logits(np.random.default_rng(0).normal(size=(5, 16)))
    assert np.array_equal(logits[:, 1], logits[:, 3])
    assert len({*logits[0]}) == 3


def test_names_given_twice_are_named_by_number_and_otherwise_refused():
    names, targets = name_classes(["3", "1", "0"], TWICE)
    assert (names, targets.tolist()) == (TWICE, [3, 1, 0])
    assert name_classes([], TWICE)[0] == TWICE  # the labels aren't known yet
    lines = [f"{i}\t{name}" for i, name in enumerate(TWICE)]
    assert name_classes(["3", "1"], lines)[1].tolist() == [3, 1]
    for labels in (["missile", "sunglasses"], ["4"]):
        with pytest.raises(ValueError, match="given more than once: sunglasses. Names may be, wh"):
            name_classes(labels, TWICE)
    with pytest.raises(ValueError, match="given more than once: 0"):  # a label of two names
        name_classes(["0"], ["0\ta", "0\tb"])


@pytest.mark.filterwarnings("default:several classes")
def test_eval_zeroshot_takes_them_and_tells_classes_of_one_name_apart(tmp_path, capsys):
    members = {f"{i}.png": picture((60 * i, 9, 9)) for i in range(4)}
    write_tar(tmp_path / "0.tar", members | {f"{i}.cls": b"%d" % i for i in range(4)})
    (tmp_path / "names.txt").write_text("\n".join(TWICE))
    command = ["eval", "zeroshot", str(tmp_path / "0.tar"), "--model", "emoji", "--json"]
    assert main([*command, "--classes", str(tmp_path / "names.txt")]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert set(found["per_class"]) == {
        *("missile", "projectile", "sunglasses (1)", "sunglasses (3)")
    }
    assert found["per_class"]["sunglasses (3)"] == 0  # the first of them is predicted
    assert err.count("several classes are called") == 1


# ---- several right labels -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["cat", "dog"], ("cat", "dog")),
        ([3, "5", 3], ("3", "5")),
        ("['cat', 'dog']", ("cat", "dog")),
        ('["cat", "dog"]', ("cat", "dog")),
        ("[1, 2]", ("1", "2")),
        ("[sic]", ("[sic]",)),
        ("[", ("[",)),
        ("cat, dog", ("cat, dog",)),
        ("dog", ("dog",)),
        (7, ("7",)),
        ([], ()),
        ("[]", ()),
        ([None, " "], ()),
        (None, ()),
        (float("nan"), ()),
    ],
)
def test_a_list_is_several_labels(value, expected):
    assert as_labels(value) == expected


@pytest.mark.parametrize("value", [{"a": 1}, [["cat"]], [b"cat"]])
def test_what_is_no_label_is_refused(value):
    with pytest.raises(ValueError, match="a label must be text or a number"):
        as_labels(value)


@pytest.fixture
def table(tmp_path):
    """Pictures of one colour each, of which two have several labels and one has none."""
    colours = {"red": ["red", "blue"], "blue": ["red", "blue"], "green": ["green"], "black": []}
    lines = []
    for colour, labels in colours.items():
        Image.new("RGB", (48, 48), colour).save(tmp_path / f"{colour}.png")
        lines.append(json.dumps({"image": f"{colour}.png", "label": labels}))
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    return tmp_path / "labels.jsonl"


def test_any_of_several_labels_is_right(table, tmp_path):
    result = zeroshot(table, "emoji", templates=["{} square"], progress=False)
    assert result.class_names == ["blue", "green", "red"]
    assert len(result.targets) == 3 and len(result.left_out.problems) == 1
    scores = result.scores
    logits = ZeroShotClassifier(clip_jax.load("emoji")[0], result.class_names, ["{} square"])
    preprocess = clip_jax.load("emoji")[1]
    images = np.stack([preprocess.pixels(Image.open(table.parent / key)) for key in result.keys])
    best = logits.predict(images)
    right = [{"red": (0, 2), "blue": (0, 2), "green": (1,)}[key[:-4]] for key in result.keys]
    assert scores.top1 == np.mean([b in r for b, r in zip(best, right, strict=True)])
    assert all(t in r for t, r in zip(result.targets, right, strict=True))
    # What an embedding job has passed through says the same.
    columns = clip_jax.embed.Columns(others=("label",))
    clip_jax.embed.embed(table, "emoji", tmp_path / "out", columns=columns, progress=False)
    again = zeroshot(tmp_path / "out", templates=["{} square"], progress=False)
    assert (again.class_names, again.scores.top1) == (result.class_names, scores.top1)


def test_a_probe_is_of_one_label_a_row(table):
    with pytest.raises(ValueError, match=r"red.png has several labels, red, blue: a linear probe"):
        probe(table, "emoji", C=1.0, progress=False)


# ---- vectors in place of ids --------------------------------------------------------------------


def test_vectors_in_place_of_ids_are_embedded_as_those_of_the_ids(model):
    tokens = clip_jax.tokenize(["X X X X dog", "a cat"])
    vectors = model.token_embedding(tokens)
    expected = np.asarray(model.encode_text(tokens))
    for length in (77, 8):  # what follows the end has no effect
        given = model.encode_text(tokens[:, :length], embeddings=vectors[:, :length])
        assert relative_error(given, expected) < 1e-6
    assert relative_error(model.encode_text(tokens, embeddings=np.asarray(vectors)), expected) == 0


def test_learned_prompts_have_gradients(model):
    tokens = clip_jax.tokenize(["X X dog"])
    context = jnp.zeros((2, 64))

    @jax.jit
    def loss(context):
        vectors = model.token_embedding(tokens).at[:, 1:3].set(context)
        return model.encode_text(tokens, embeddings=vectors).sum()

    gradient = jax.grad(loss)(context)
    assert gradient.shape == (2, 64) and (gradient != 0).all()


def test_of_vectors_the_ids_say_where_a_text_ends(model):
    vectors = np.zeros((1, 5, 64), np.float32)
    with pytest.raises(ValueError, match="embeddings need the ids of the same texts too"):
        model.encode_text(None, embeddings=vectors)
    with pytest.raises(ValueError, match="encode_text needs tokens"):
        model.encode_text(None)
    tokens = np.array([[49406, 1, 2, 49407, 0]])
    with pytest.raises(ValueError, match=r"must have shape \(batch, length, 64\).* \(1, 5, 63\)"):
        model.encode_text(tokens, embeddings=vectors[..., :63])
    with pytest.raises(ValueError, match=r"same rows and length. Got \(1, 5\) and \(1, 4\)"):
        model.encode_text(tokens, embeddings=vectors[:, :4])
    with pytest.raises(ValueError, match="embeddings must be floats. Got int32"):
        model.encode_text(tokens, embeddings=vectors.astype(np.int32))
    first = dataclasses.replace(
        SMALL_VIT, text=dataclasses.replace(SMALL_VIT.text, pooling="first")
    )
    fixed = clip_jax.from_parameters(first, random_parameters(first))
    given = fixed.encode_text(None, embeddings=vectors)
    assert np.array_equal(given, fixed.encode_text(tokens, embeddings=vectors))


# ---- Long-CLIP's two tables of positions --------------------------------------------------------


@pytest.fixture(scope="module")
def long():
    """A model of 248 positions, its official arrays, and those with the table in two."""
    text = dataclasses.replace(SMALL_VIT.text, context_length=248)
    config = dataclasses.replace(SMALL_VIT, text=text)
    arrays = to_pytorch(config, random_parameters(config))
    table = arrays["positional_embedding"]
    noise = np.random.default_rng(0).normal(size=table.shape).astype(np.float32)
    is_kept = np.arange(248)[:, None] < 20
    two = {
        **arrays,
        "positional_embedding": np.where(is_kept, table, noise),
        "positional_embedding_res": np.where(is_kept, noise, table),
    }
    return config, arrays, two


def same(config, params, expected):
    again = to_pytorch(config, params)
    return all(np.array_equal(again[name], array) for name, array in expected.items())


def test_long_clips_two_tables_are_one(long, tmp_path):
    from safetensors.numpy import load_file, save_file

    config, arrays, two = long
    assert KEPT == 20
    found, params = from_pytorch(two)
    assert found == config and same(found, params, arrays)
    save_file(two, tmp_path / "long.safetensors")
    model, _ = clip_jax.load(tmp_path / "long.safetensors", **unsaid(config))
    tokens = clip_jax.tokenize(["a dog " * 100], 248, truncate=True)
    expected = clip_jax.from_parameters(config, random_parameters(config)).encode_text(tokens)
    assert relative_error(model.encode_text(tokens), expected) < 1e-6
    for write, name in ((to_open_clip, ""), (to_huggingface, "text_model.embeddings.")):
        folder = tmp_path / write.__name__
        write(config, params, folder)
        (weights,) = folder.glob("*.safetensors")
        theirs = load_file(weights)
        old = f"{name}position{'_embedding.weight' if name else 'al_embedding'}"
        new = f"{name}position{'_embedding_res.weight' if name else 'al_embedding_res'}"
        theirs[old] = two["positional_embedding"]
        theirs[new] = two["positional_embedding_res"]
        save_file(theirs, weights, {"format": "pt"})
        loaded = clip_jax.load(folder)[0]
        assert same(loaded.config, clip_jax.parameters(loaded), arrays), write.__name__
        text, tokenizer = clip_jax.load_text_model(folder)
        assert np.array_equal(text.positional_embedding[...], arrays["positional_embedding"])
        assert tokenizer("a dog").shape == (1, 248)


def test_a_second_table_that_does_not_belong_to_the_first_is_refused(long):
    _, arrays, two = long
    short = {**two, "positional_embedding_res": two["positional_embedding_res"][:77]}
    with pytest.raises(CheckpointError, match=r"of the same shape and dtype, float32 \(77, 64\)"):
        from_pytorch(short)
    alone = {name: array for name, array in two.items() if name != "positional_embedding"}
    with pytest.raises(CheckpointError, match="Got none"):
        from_pytorch(alone)


# ---- the path of a picture is no text -----------------------------------------------------------


def test_a_search_for_a_picture_says_that_it_is_one(table, tmp_path, capsys):
    out = str(tmp_path / "out")
    clip_jax.embed.embed(table.parent, "emoji", out, progress=False)
    path = str(table.parent / "red.png")
    assert main(["search", out, path]) == 1
    assert "is a picture's file, expected a text: for the picture, give --image" in (
        capsys.readouterr().err
    )
    with pytest.raises(ValueError, match=r"a pathlib\.Path in Python"):
        clip_jax.search.search(out, None, path)
    with pytest.warns(UserWarning, match="'rde.PNG' is searched for as a text; for the picture"):
        clip_jax.search.search(out, None, "rde.PNG")
    assert main(["search", out, path, "--image"]) == 0
    assert main(["search", out, "red"]) == 0
