"""SigLIP's model: what its towers compute, and that all that takes a CLIP model takes it."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.config import CLIPConfig, SigLIPConfig, ViTConfig
from clip_jax.nn import CLIP, SigLIP, model_digest
from clip_jax.shapes import parameter_shapes
from tests.models import SMALL_VIT, fresh, random_images, relative_error, small
from tests.siglip import SIGLIP, random_ids

IMAGES, IDS = random_images(5, 29), random_ids(7)


@pytest.fixture(scope="module")
def siglip() -> SigLIP:
    model = small(SIGLIP)
    assert isinstance(model, SigLIP)
    return model


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_the_paths_of_the_parameter_tree_are_a_format():
    block = {"ln_1/scale", "ln_1/bias", "ln_2/scale", "ln_2/bias"}
    linear = {"attn/in_proj", "attn/out_proj", "mlp/c_fc", "mlp/c_proj"}
    block |= {f"{name}/{kind}" for name in linear for kind in ("kernel", "bias")}
    expected = {
        *(f"transformer/resblocks/{i}/{name}" for i in range(2) for name in block),
        *(f"visual/transformer/resblocks/{i}/{name}" for i in range(3) for name in block),
        *("logit_scale", "logit_bias", "token_embedding/embedding", "positional_embedding"),
        *("ln_final/scale", "ln_final/bias", "text_projection/kernel", "text_projection/bias"),
        *("visual/conv1/kernel", "visual/conv1/bias", "visual/positional_embedding"),
        *("visual/ln_post/scale", "visual/ln_post/bias", "visual/attnpool/probe"),
        *(f"visual/attnpool/attn/{x}_proj/{kind}" for x in "qkvc" for kind in ("kernel", "bias")),
        *("visual/attnpool/ln/scale", "visual/attnpool/ln/bias"),
        *(
            f"visual/attnpool/mlp/{x}/{kind}"
            for x in ("c_fc", "c_proj")
            for kind in ("kernel", "bias")
        ),
    }
    shapes = parameter_shapes(SIGLIP)
    assert shapes.keys() == expected
    assert shapes["visual/attnpool/probe"] == (1, 1, 96)
    assert shapes["visual/positional_embedding"] == (16, 96)
    assert shapes["text_projection/kernel"] == (80, 96)


def test_logits_are_scaled_cosines_plus_the_bias(siglip):
    image, text = (
        np.asarray(x, np.float64) for x in (siglip.encode_image(IMAGES), siglip.encode_text(IDS))
    )
    cosines = image @ text.T
    cosines /= np.linalg.norm(image, axis=1)[:, None] * np.linalg.norm(text, axis=1)
    scale, bias = (float(x[...]) for x in (siglip.logit_scale, siglip.logit_bias))
    logits, transposed = siglip(IMAGES, IDS)
    np.testing.assert_allclose(logits, np.exp(scale) * cosines + bias, atol=1e-4)
    np.testing.assert_array_equal(transposed, logits.T)


def test_the_probability_of_a_pair_is_its_own(siglip):
    logits = siglip(IMAGES, IDS)[0]
    np.testing.assert_allclose(siglip.probabilities(logits), sigmoid(logits), atol=1e-6)
    # A single text would have the share 1 of a softmax.
    np.testing.assert_array_equal(
        siglip.probabilities(logits[:, :1]), siglip.probabilities(logits)[:, :1]
    )
    np.testing.assert_allclose(small(SMALL_VIT).probabilities(logits).sum(1), 1, atol=1e-6)


def test_a_new_model_starts_from_the_published_scale_and_bias():
    model = fresh(SIGLIP)
    assert np.exp(float(model.logit_scale[...])) == pytest.approx(10)
    assert float(model.logit_bias[...]) == -10
    assert np.isfinite(np.asarray(model(IMAGES, IDS)[0])).all()


def test_padding_is_seen(siglip):
    padded = np.array(IDS[:1])
    padded[0, 3:] = 1
    other = padded.copy()
    other[0, 5] = 2
    assert relative_error(siglip.encode_text(other), siglip.encode_text(padded)) > 1e-3


@pytest.mark.parametrize("length", [1, 11, 13])
def test_ids_of_another_length_than_the_context_are_refused(siglip, length):
    with pytest.raises(ValueError, match=r"\(batch, (12|length)\).*Got \(2, "):
        siglip.encode_text(np.ones((2, length), np.int32))
    with pytest.raises(ValueError, match=r"\(batch, (12|length)\).*Got \(2, "):
        clip_jax.Encoder(siglip).texts(np.ones((2, length), np.int32))


def test_pixels_that_are_in_no_patch_have_no_effect(siglip):
    changed = IMAGES.copy()
    changed[:, 28:] = 0
    changed[:, :, 28:] = 255
    np.testing.assert_array_equal(siglip.encode_image(changed), siglip.encode_image(IMAGES))


@pytest.mark.parametrize("parallel", ["jit", "pmap", "mesh"])
def test_the_encoder_gives_the_models_embeddings_on_any_devices(siglip, parallel):
    encoder = clip_jax.Encoder(siglip, batch_size=8, parallel=parallel)
    assert relative_error(encoder.images(IMAGES), siglip.encode_image(IMAGES)) < 1e-5
    assert relative_error(encoder.texts(IDS), siglip.encode_text(IDS)) < 1e-5
    # Of whatever length the texts are, they run through one program: cutting isn't exact.
    assert encoder.num_compilations == 2


def test_a_row_is_the_same_to_the_bit_among_any_others(siglip):
    encoder = clip_jax.Encoder(siglip, batch_size=4, whole_batches=True)
    np.testing.assert_array_equal(encoder.texts(IDS)[3:5], encoder.texts(IDS[3:5]))
    np.testing.assert_array_equal(encoder.images(IMAGES)[2:], encoder.images(IMAGES[2:]))


def test_half_precision_is_near(siglip):
    encoder = clip_jax.Encoder(siglip, dtype="bfloat16")
    assert relative_error(encoder.images(IMAGES), siglip.encode_image(IMAGES)) < 0.02
    assert relative_error(encoder.texts(IDS), siglip.encode_text(IDS)) < 0.02


def test_a_saved_model_is_the_same_and_of_the_same_class(siglip, tmp_path):
    clip_jax.save(siglip, tmp_path / "model")
    found, preprocess = clip_jax.load(tmp_path / "model")
    assert isinstance(found, SigLIP) and found.config == SIGLIP
    assert model_digest(found) == model_digest(siglip)
    np.testing.assert_array_equal(preprocess(Image.new("RGB", (50, 40), "white")), 1)
    np.testing.assert_array_equal(preprocess(Image.new("RGB", (50, 40), "black")), -1)
    clip_jax.save(found, tmp_path / "model")  # replaces a model of the same kind


def test_a_towers_outputs_are_those_of_the_whole_model(siglip, tmp_path):
    clip_jax.save(siglip, tmp_path / "model")
    text, tokenizer = clip_jax.load_text_model(tmp_path / "model")
    vision, _ = clip_jax.load_vision_model(tmp_path / "model")
    for given, expected in (
        (text(IDS).text_embeds, siglip.encode_text(IDS)),
        (text(IDS).pooler_output, siglip.encode_text(IDS)),
        (vision(IMAGES).image_embeds, siglip.encode_image(IMAGES)),
        (vision(IMAGES).pooler_output, siglip.encode_image(IMAGES)),
    ):
        assert relative_error(given, expected) < 1e-5
    weights = vision(IMAGES, attentions=True).attentions
    assert weights is not None and len(weights) == 3
    assert weights[0].shape == (5, 4, 16, 16)
    with pytest.raises(ValueError, match="isn't at hand"):
        tokenizer("a text")


def test_a_model_is_differentiable_and_its_loss_falls_on_a_pair(siglip):
    def loss(model):
        return -jax.numpy.log(model.probabilities(model(IMAGES[:1], IDS[:1])[0])).sum()

    gradients = jax.grad(loss)(siglip)
    norms = [float(np.abs(x).max()) for x in jax.tree.leaves(gradients)]
    assert len(norms) == len(parameter_shapes(SIGLIP)) and all(np.isfinite(norms))


def test_the_configuration_returns_from_json_as_what_it_was():
    assert CLIPConfig.from_json(SIGLIP.to_json()) == SIGLIP
    assert SigLIPConfig.from_json(SIGLIP.to_json()) == SIGLIP
    assert '"type"' not in SMALL_VIT.to_json().split('"vision"')[0]
    with pytest.raises(ValueError, match='type must be "siglip" for SigLIP'):
        SigLIPConfig.from_json(SMALL_VIT.to_json())
    with pytest.raises(ValueError, match="type must be \"siglip\".*Got 'other'"):
        CLIPConfig.from_json(SIGLIP.to_json().replace('"siglip"', '"other"'))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 95}, "embed_dim must be the vision tower's width, 96.*Got 95"),
        ({"logit_bias": None}, "logit_bias must be a finite number. Got None"),
        ({"text": SMALL_VIT.text}, "pooled at the .last. position.*Got pooling='argmax'"),
        ({"vision": SMALL_VIT.vision}, "attention.*is for SigLIP"),
        ({"vision": dataclasses.replace(SIGLIP.vision, patch_size=29)}, None),
    ],
)
def test_what_is_no_siglip_model_is_refused(changes, message):
    if message is None:
        assert dataclasses.replace(SIGLIP, **changes).vision.num_patches == 1
        return
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SIGLIP, **changes)


def test_a_model_of_another_familys_configuration_is_refused():
    with pytest.raises(ValueError, match="^CLIP takes a CLIPConfig. Got a SigLIPConfig"):
        CLIP(SIGLIP)


def test_clip_with_siglips_pooling_is_refused():
    with pytest.raises(
        ValueError, match="take SigLIPConfig for it, and only for it. Got CLIPConfi"
    ):
        dataclasses.replace(SMALL_VIT, vision=dataclasses.replace(SIGLIP.vision))
    with pytest.raises(ValueError, match="image_size must be at least patch_size. Got 6 and 7"):
        dataclasses.replace(SIGLIP.vision, image_size=6)
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size"):
        ViTConfig(29, 7, 96, 1, 4)


def test_strings_are_refused_by_the_name_of_their_tokenizers_file():
    text = dataclasses.replace(SIGLIP.text, vocab_size=32000)
    model = small(dataclasses.replace(SIGLIP, text=text))
    with pytest.raises(ValueError, match=r"with its own tokenizer, spiece\.model,"):
        clip_jax.Encoder(model).texts(["a text"])
    assert isinstance(model, CLIP)
