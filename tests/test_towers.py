"""Towers by themselves and what they compute, against transformers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax.convert import to_huggingface, to_open_clip
from clip_jax.errors import CheckpointError
from clip_jax.nn import flatten, parameters
from clip_jax.parity.reference import quiet
from tests import reference
from tests.models import (
    SMALL_RESNET,
    SMALL_VIT,
    random_images,
    random_parameters,
    random_tokens,
    relative_error,
    small,
)
from tests.peers import TOLERANCE, build_huggingface, ids, nchw, peer, saved, some_tokens

torch = pytest.mark.torch
PARAMS = random_parameters(SMALL_VIT)


@pytest.fixture(scope="module")
def theirs():
    """Transformers' model with eager attention, which alone returns its weights."""
    model = build_huggingface({"hidden_act": "gelu", "eos_token_id": 2})
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    return saved(theirs, tmp_path_factory.mktemp("towers") / "whole")


def tower(model, kind):
    """The tower of a model in a class of transformers, with the same weights."""
    transformers = peer("transformers")
    with quiet():
        name = f"CLIP{kind}ModelWithProjection"
        inner = model.config.text_config if kind == "Text" else model.config.vision_config
        inner.projection_dim = 24
        alone = getattr(transformers, name)(inner).eval()
        alone.load_state_dict(model.state_dict(), strict=False)
        alone.set_attn_implementation("eager")
    return alone


def all_of(call, **inputs):
    with reference.torch().inference_mode(), quiet():
        return call(**inputs, output_hidden_states=True, output_attentions=True)


def check(ours, theirs, last):
    """Compares every output, and the inner ones one by one."""
    assert relative_error(ours.last_hidden_state, theirs.last_hidden_state) < last
    for name in ("hidden_states", "attentions"):
        given, expected = getattr(ours, name), getattr(theirs, name)
        assert len(given) == len(expected), name
        for one, other in zip(given, expected, strict=True):
            assert one.shape == other.shape
            assert relative_error(one, other) < TOLERANCE, name


@torch
def test_every_output_of_the_text_tower_is_that_of_transformers(theirs, folder):
    text, tokenizer = clip_jax.load_text_model(folder)
    tokens = some_tokens()
    ours = text(tokens, hidden_states=True, attentions=True)
    expected = all_of(tower(theirs, "Text"), input_ids=ids(tokens))
    check(ours, expected, TOLERANCE)
    assert relative_error(ours.text_embeds, expected.text_embeds) < TOLERANCE
    with reference.torch().inference_mode(), quiet():
        pooled = theirs.text_model(input_ids=ids(tokens)).pooler_output
    assert relative_error(ours.pooler_output, pooled) < TOLERANCE
    assert tokenizer.context_length == 13
    plain = text(tokens)
    assert plain.hidden_states is None and plain.attentions is None


@torch
def test_padding_that_a_mask_hides_changes_what_transformers_changes(theirs, folder):
    text, _ = clip_jax.load_text_model(folder)
    tokens = some_tokens()
    mask = (np.arange(13)[None] <= np.array([5, 9, 12, 3])[:, None]).astype(np.int32)
    ours = text(tokens, hidden_states=True, attentions=True, attention_mask=mask)
    inputs = {"input_ids": ids(tokens), "attention_mask": ids(mask)}
    expected = all_of(tower(theirs, "Text"), **inputs)
    check(ours, expected, TOLERANCE)
    assert relative_error(ours.last_hidden_state, text(tokens).last_hidden_state) > 1e-3
    given = text.hidden_state(tokens, 1, attention_mask=mask)
    assert relative_error(given, expected.hidden_states[1]) < TOLERANCE
    with pytest.raises(ValueError, match=r"attention_mask must have the tokens' shape, \(4, 13\)"):
        text(tokens, attention_mask=mask[:, :5])


@torch
def test_every_output_of_the_vision_tower_is_that_of_transformers(theirs, folder):
    vision, preprocess = clip_jax.load_vision_model(folder)
    images = random_images(2, 32)
    ours = vision(images, hidden_states=True, attentions=True)
    expected = all_of(tower(theirs, "Vision"), pixel_values=nchw(images))
    check(ours, expected, TOLERANCE)
    assert relative_error(ours.image_embeds, expected.image_embeds) < TOLERANCE
    with reference.torch().inference_mode(), quiet():
        pooled = theirs.vision_model(pixel_values=nchw(images)).pooler_output
    assert relative_error(ours.pooler_output, pooled) < TOLERANCE
    assert preprocess.image_size == 32


@torch
def test_towers_saved_alone_are_read_with_and_without_their_prefix(theirs, folder, tmp_path):
    transformers = peer("transformers")
    tokens, images = some_tokens(), random_images(2, 32)
    expected = clip_jax.load_text_model(folder)[0](tokens)
    for kind, part in (("Text", theirs.text_model), ("Vision", theirs.vision_model)):
        config = theirs.config.text_config if kind == "Text" else theirs.config.vision_config
        with quiet():
            alone = getattr(transformers, f"CLIP{kind}Model")(config)
            alone.load_state_dict(part.state_dict())
            alone.save_pretrained(tmp_path / kind)
        path = tmp_path / kind / "model.safetensors"
        arrays = load_file(path)
        prefix = f"{kind.lower()}_model."
        bare = {name.removeprefix(prefix): array for name, array in arrays.items()}
        prefixed = {f"{prefix}{name}": array for name, array in bare.items()}
        for form in (bare, prefixed):
            save_file(form, path, {"format": "pt"})
            if kind == "Text":
                model = clip_jax.load_text_model(tmp_path / kind)[0]
                given = model(tokens)
                assert given.text_embeds is None and model.embed_dim is None
                assert np.array_equal(given.pooler_output, expected.pooler_output)
                with pytest.raises(ValueError, match="no projection.*CLIPTextModelWithProjection"):
                    model.encode_text(tokens)
            else:
                model = clip_jax.load_vision_model(tmp_path / kind)[0]
                assert model(images).image_embeds is None
                with pytest.raises(ValueError, match="no projection"):
                    model.encode_image(images)
    with pytest.raises(CheckpointError, match="one tower alone.*load_text_model"):
        clip_jax.load(tmp_path / "Text")
    with pytest.raises(CheckpointError, match="holds a clip_vision_model, expected clip_text_mod"):
        clip_jax.load_text_model(tmp_path / "Vision")


@torch
def test_a_folder_with_one_layer_less_is_read_as_stable_diffusion_2_stores_it(
    folder, tmp_path, ranks_promoted
):
    arrays = load_file(folder / "model.safetensors")
    document = json.loads((folder / "config.json").read_text())
    inner = {**document["text_config"], "model_type": "clip_text_model", "num_hidden_layers": 1}
    cut = {n: a for n, a in arrays.items() if n.startswith("text_model.") and "layers.1." not in n}
    (tmp_path / "config.json").write_text(json.dumps(inner))
    save_file(cut, tmp_path / "model.safetensors")
    tokens = some_tokens()
    given = clip_jax.load_text_model(tmp_path)[0](tokens).last_hidden_state
    whole = clip_jax.load_text_model(folder)[0]
    penultimate = whole.hidden_state(tokens, -2)
    assert relative_error(given, whole.ln_final(penultimate)) < TOLERANCE


def test_towers_of_every_kind_of_folder_are_the_same_to_the_bit(tmp_path):
    to_huggingface(SMALL_VIT, PARAMS, tmp_path / "hf")
    to_open_clip(SMALL_VIT, PARAMS, tmp_path / "oc")
    clip_jax.save(small(SMALL_VIT), tmp_path / "native")
    expected = flatten(PARAMS)
    for name in ("hf", "oc", "native"):
        text, tokenizer = clip_jax.load_text_model(tmp_path / name)
        vision, preprocess = clip_jax.load_vision_model(tmp_path / name)
        found = {**flatten(parameters(text)), **flatten(parameters(vision))}
        assert found.keys() == expected.keys() - {"logit_scale"}
        for path, array in found.items():
            assert np.asarray(array).tobytes() == expected[path].tobytes(), path
        assert tokenizer(["a cat"]).shape == (1, 77) and preprocess.image_size == 32


def test_a_tower_gives_what_the_whole_model_gives():
    model = small(SMALL_VIT)
    tokens, images = random_tokens(3), random_images(2, 32)
    text, image = model.text_outputs(tokens), model.image_outputs(images)
    assert relative_error(text.text_embeds, model.encode_text(tokens)) < 1e-6
    assert relative_error(image.image_embeds, model.encode_image(images)) < 1e-6
    with pytest.raises(ValueError, match="a ResNet has no such hidden states"):
        small(SMALL_RESNET).image_outputs(random_images(1, 64))


def test_a_resnet_has_no_vision_tower_of_tokens(tmp_path):
    clip_jax.save(small(SMALL_RESNET), tmp_path / "m")
    with pytest.raises(ValueError, match="has a ResNet.*encode_image"):
        clip_jax.load_vision_model(tmp_path / "m")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "hf"
    to_huggingface(SMALL_VIT, PARAMS, folder)
    return clip_jax.load_text_model(folder)[0]


def test_an_earlier_hidden_state_does_not_compute_the_last_block(text):
    tokens = random_tokens(2)
    states = text(tokens, hidden_states=True).hidden_states
    assert states is not None
    for number in (-3, -2, -1, 0, 1, 2):
        assert relative_error(text.hidden_state(tokens, number), states[number]) < 1e-6
    counts = {
        number: str(jax.make_jaxpr(lambda t, n=number: text.hidden_state(t, n))(tokens)).count(
            "dot_general"
        )
        for number in (0, 1, 2)
    }
    assert counts[0] == 0 and counts[2] == 2 * counts[1] > 0

    # Asked of all outputs, inside the caller's jit, the compiler leaves out what isn't used.
    def penultimate(tokens):
        states = text(tokens, hidden_states=True).hidden_states
        assert states is not None
        return states[-2]

    whole = jax.jit(lambda t: text(t, hidden_states=True))
    flops = [
        function.lower(jnp.asarray(tokens)).compile().cost_analysis()["flops"]  # pyright: ignore[reportOptionalSubscript]
        for function in (jax.jit(penultimate), whole)
    ]
    assert flops[0] < 0.6 * flops[1]


@pytest.mark.parametrize("number", [3, -4])
def test_hidden_states_out_of_range_are_refused(text, number):
    with pytest.raises(
        ValueError, match=rf"numbers 0 to 2, or from the end -1 to -3. Got {number}"
    ):
        text.hidden_state(random_tokens(1), number)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((1, 78), np.int32), "length 1 to 77"),
        (np.full((1, 5), 49408), "must lie in 0..49407"),
        (np.zeros((1, 5)), "must be integers"),
    ],
)
def test_wrong_ids_are_refused(text, tokens, message):
    with pytest.raises(ValueError, match=message):
        text(tokens)


def test_a_tower_works_inside_jit_grad_vmap_and_a_mesh(text):
    tokens = jnp.asarray(random_tokens(8))
    expected = text(tokens).pooler_output
    assert relative_error(jax.jit(lambda m, t: m(t).pooler_output)(text, tokens), expected) < 1e-5
    one_by_one = jax.vmap(lambda t: text(t[None]).pooler_output[0])(tokens)
    assert relative_error(one_by_one, expected) < 1e-5
    gradient = jax.grad(lambda m: (m(tokens).last_hidden_state ** 2).sum())(text)
    assert np.any(gradient.token_embedding.embedding[...])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    given = jax.jit(lambda t: text(t).pooler_output)(jax.device_put(tokens, split))
    assert relative_error(given, expected) < 1e-5


def test_half_precision_is_near_and_has_its_dtype(tmp_path):
    to_huggingface(SMALL_VIT, PARAMS, tmp_path / "hf")
    text = clip_jax.load_text_model(tmp_path / "hf", dtype=jnp.bfloat16)[0]
    vision = clip_jax.load_vision_model(tmp_path / "hf", dtype=jnp.bfloat16)[0]
    tokens, images = random_tokens(2), random_images(2, 32)
    model = small(SMALL_VIT)
    given, exact = text(tokens), model.text_outputs(tokens)
    assert given.last_hidden_state.dtype == given.pooler_output.dtype == jnp.bfloat16
    assert relative_error(given.last_hidden_state, exact.last_hidden_state) < 1e-2
    seen, exact = vision(images), model.image_outputs(images)
    assert relative_error(seen.last_hidden_state, exact.last_hidden_state) < 1e-2


def test_a_tower_without_the_causal_mask_and_with_a_mean_gives_the_same_as_the_model():
    config = dataclasses.replace(
        SMALL_VIT,
        vision=dataclasses.replace(SMALL_VIT.vision, pooling="mean", has_ln_pre=False),
        text=dataclasses.replace(SMALL_VIT.text, is_causal=False, pooling="last"),
    )
    model, tokens, images = small(config), random_tokens(2), random_images(2, 32)
    embeds = model.text_outputs(tokens, attentions=True)
    assert embeds.attentions is not None
    assert relative_error(embeds.text_embeds, model.encode_text(tokens)) < 1e-6
    assert np.allclose(np.asarray(embeds.attentions[0]).sum(-1), 1, atol=1e-5)
    assert np.asarray(embeds.attentions[0])[0, 0, 0, -1] > 0
    assert (
        relative_error(model.image_outputs(images).image_embeds, model.encode_image(images)) < 1e-6
    )
