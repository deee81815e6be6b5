"""Every use of Flax CLIP that is known of transformers 4's users, with the import changed."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, traverse_util
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import clip_jax
from clip_jax.compat import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    FlaxCLIPModel,
    FlaxCLIPTextModel,
    FlaxCLIPTextModelWithProjection,
    FlaxCLIPVisionModel,
    FlaxCLIPVisionModelWithProjection,
    FlaxCLIPVisionModule,
)
from clip_jax.compat.names import to_flax
from clip_jax.convert import to_huggingface
from clip_jax.nn import flatten
from tests import flax_clip as cases
from tests.models import SMALL_VIT, random_images, random_parameters, random_tokens, relative_error
from tests.models import to_float as normalised
from tests.peers import peer

PARAMS = random_parameters(SMALL_VIT)
IDS = cases.tokens()


def filled(kind, config, **options):
    model = kind(config, _do_init=False, **options)
    shapes = {path: array.shape for path, array in flatten(model.params_shape_tree).items()}
    return model, cases.random_params(shapes)


@pytest.fixture(scope="module")
def text():
    return filled(FlaxCLIPTextModelWithProjection, CLIPTextConfig(**cases.TEXT))


@pytest.fixture(scope="module")
def vision():
    return filled(FlaxCLIPVisionModel, CLIPVisionConfig(**cases.VISION))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder as of diffusers, whose text encoder is a whole model's folder."""
    folder = tmp_path_factory.mktemp("pipeline")
    to_huggingface(SMALL_VIT, PARAMS, folder / "text_encoder")
    return folder


# As in MaxDiffusion's generate_flux.py, when it ran on transformers 4.
FLUX = """
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from transformers import CLIPTokenizer
from transformers import FlaxCLIPTextModel

mesh = Mesh(jax.devices(), ("data",))
clip_encoder = FlaxCLIPTextModel.from_pretrained(
    path, subfolder="text_encoder", from_pt=True, dtype=jnp.bfloat16
)
clip_tokenizer = CLIPTokenizer.from_pretrained(path, subfolder="text_encoder", dtype=jnp.bfloat16)

def cast_dtype_from_to(params, from_dtype, to_dtype):
    return jax.tree_util.tree_map(
        lambda x: x.astype(to_dtype) if x.dtype == from_dtype else x, params
    )

clip_encoder.params = cast_dtype_from_to(clip_encoder.params, jnp.float32, jnp.bfloat16)
sharding = NamedSharding(mesh, P())
clip_encoder.params = jax.device_put(clip_encoder.params, sharding)

def get_clip_prompt_embeds(prompt, num_images_per_prompt, tokenizer, text_encoder):
    prompt = [prompt] if isinstance(prompt, str) else prompt
    batch_size = len(prompt)
    text_inputs = tokenizer(
        prompt,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_overflowing_tokens=False,
        return_length=False,
        return_tensors="np",
    )
    text_input_ids = text_inputs.input_ids
    prompt_embeds = text_encoder(text_input_ids, params=text_encoder.params, train=False)
    prompt_embeds = prompt_embeds.pooler_output
    prompt_embeds = jnp.tile(prompt_embeds, (batch_size, num_images_per_prompt))
    return jnp.reshape(prompt_embeds, (batch_size * num_images_per_prompt, -1))

pooled_prompt_embeds = get_clip_prompt_embeds("a photo of a cat", 2, clip_tokenizer, clip_encoder)
"""


@pytest.mark.torch
def test_the_flux_prompts_of_maxdiffusion_need_one_import_changed(pipeline):
    peer("transformers")
    line = "from transformers import FlaxCLIPTextModel"
    assert FLUX.count(line) == 1
    namespace = {"path": str(pipeline)}
    exec(FLUX.replace(line, "from clip_jax.compat import FlaxCLIPTextModel"), namespace)
    embeds = namespace["pooled_prompt_embeds"]
    assert embeds.shape == (2, 64) and embeds.dtype == jnp.bfloat16
    text, tokenizer = clip_jax.load_text_model(pipeline, subfolder="text_encoder")
    expected = text(tokenizer(["a photo of a cat"])).pooler_output
    for row in embeds:
        assert relative_error(row, expected[0]) < 1e-2


def test_stable_diffusion_xl_takes_the_penultimate_block_inside_jit(text):
    model, params = text

    @jax.jit
    def encode(ids, params):
        out = model(ids, params=params, output_hidden_states=True)
        return out["hidden_states"][-2], out["text_embeds"]

    states, embeds = encode(IDS, params)
    eager = model(IDS, params=params, output_hidden_states=True)
    assert relative_error(states, eager.hidden_states[2]) < 1e-6
    assert relative_error(embeds, eager[0]) < 1e-6


def test_a_training_step_differentiates_by_params(text):
    model, params = text

    def loss(params):
        return (model(IDS, params=params, train=False)[1] ** 2).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    stepped = jax.tree.map(lambda p, g: p - 1e-2 * g, params, gradients)
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    assert loss(stepped) < value


def test_the_penultimate_block_alone_is_computed_where_nothing_else_is_used(text):
    model, params = text
    flops = []
    for use in (lambda out: out.hidden_states[-3], lambda out: out):
        compiled = jax.jit(
            lambda p, use=use: use(model(IDS, params=p, output_hidden_states=True))
        ).lower(params)
        flops.append(compiled.compile().cost_analysis()["flops"])
    assert flops[0] < 0.5 * flops[1]


def test_params_are_restored_into_the_shapes_of_init_weights(text):
    model, params = text
    init = functools.partial(model.init_weights, input_shape=(1, 11))
    shapes = jax.eval_shape(init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    made = init(jax.random.PRNGKey(0))
    assert jax.tree.structure(made) == jax.tree.structure(params) and type(made) is dict
    kept = {"text_projection": params["text_projection"]}
    mixed = model.init_weights(jax.random.key(0), (1, 1), kept)
    assert mixed["text_projection"]["kernel"] is kept["text_projection"]["kernel"]


def test_fresh_params_are_distributed_as_in_transformers():
    config = CLIPConfig({**cases.TEXT, "vocab_size": 2000}, cases.VISION, projection_dim=20)
    arrays = flatten(FlaxCLIPModel(config).params)
    assert abs(arrays["logit_scale"] - 2.6592) < 1e-6
    for path, array in arrays.items():
        if path.endswith(("kernel", "embedding")):
            wide = path.startswith(("text_projection", "visual_projection")) or "class_" in path
            assert 0.7 < np.std(array) / (0.02 if wide else 0.01) < 1.3, path
        elif path != "logit_scale":
            assert (array == path.endswith("scale")).all(), path


def test_lora_finds_the_paths_of_transformers(text):
    paths = traverse_util.flatten_dict(text[1])
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        path = ("text_model", "encoder", "layers", "0", "self_attn", name, "kernel")
        assert paths[path].shape == (36, 36)
    assert set(paths) == text[0].required_params


def test_wan_takes_the_penultimate_states_of_an_image(vision):
    model, params = vision
    out = model(cases.pixels(), params=params, output_hidden_states=True)
    assert out.hidden_states[-2].shape == (3, 10, 40)


def test_image_features_are_differentiated_by_pixels_inside_jit():
    config = CLIPConfig(cases.TEXT, cases.VISION, projection_dim=20)
    model, params = filled(FlaxCLIPModel, config, dtype=jnp.float16)

    def loss(images):
        images = jax.image.resize(images, (2, 3, 24, 24), "bilinear")
        return model.get_image_features(images, params=params).astype(jnp.float32).sum()

    images = jnp.asarray(cases.pixels()[:2, :, :16, :16])
    value, gradient = jax.jit(jax.value_and_grad(loss))(images)
    assert np.isfinite(value) and np.isfinite(gradient).all() and (gradient != 0).any()


def test_pmap_vmap_and_a_mesh_give_what_one_device_gives(text):
    model, params = text
    expected = model(IDS, params=params)[1]
    replicated = jax.tree.map(lambda x: np.stack([x, x]), params)
    ids = IDS.reshape(2, 2, -1)
    given = jax.pmap(lambda p, ids: model(ids, params=p)[1], devices=jax.devices()[:2])(
        replicated, ids
    )
    assert relative_error(given.reshape(expected.shape), expected) < 1e-5
    given = jax.vmap(lambda ids: model(ids, params=params)[1])(ids)
    assert relative_error(given.reshape(expected.shape), expected) < 1e-5

    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))

    def place(array):  # kernels split over their outputs, where that divides
        fits = np.ndim(array) == 2 and array.shape[1] % 4 == 0
        spec = PartitionSpec(None, "x") if fits else PartitionSpec()
        return jax.device_put(array, NamedSharding(mesh, spec))

    sharded = jax.tree.map(place, params)
    with jax.set_mesh(mesh):
        given = jax.jit(lambda p, ids: model(ids, params=p)[1])(sharded, IDS)
    assert relative_error(given, expected) < 1e-5


def test_results_have_fields_string_keys_and_positions(text, vision):
    model, params = text
    out = model(IDS, params=params, output_hidden_states=True)
    assert list(out) == list(out.keys()) == ["text_embeds", "last_hidden_state", "hidden_states"]
    assert out[0] is out.text_embeds is out["text_embeds"] and out[-1] is out.hidden_states
    assert out[:2] == (out.text_embeds, out.last_hidden_state) and len(out) == 3
    assert out.get("attentions") is None and "attentions" not in out and out.attentions is None
    with pytest.raises(KeyError):
        out["attentions"]
    doubled = jax.tree.map(lambda x: 2 * x, out)
    assert type(doubled) is type(out) and (doubled[0] == 2 * out[0]).all()
    assert out.replace(text_embeds=None)[0] is out[1]
    plain = model(IDS, params=params, return_dict=False)
    assert type(plain) is tuple and [x.shape for x in plain] == [(4, 20), (4, 11, 36)]
    model, params = vision
    assert list(model(cases.pixels(), params=params)) == ["last_hidden_state", "pooler_output"]
    assert pickle.loads(pickle.dumps(out))[0].shape == (4, 20)


def test_the_configuration_says_what_is_returned_by_default(vision):
    config = CLIPVisionConfig(**cases.VISION, output_hidden_states=True, return_dict=False)
    model, params = FlaxCLIPVisionModel(config, _do_init=False), vision[1]
    assert [len(model(cases.pixels(), params=params)), config.hidden_size] == [3, 40]


@pytest.mark.parametrize("kind", [FlaxCLIPVisionModel, FlaxCLIPVisionModelWithProjection])
def test_a_vision_tower_of_a_folder_computes_channels_first(kind, pipeline):
    model = kind.from_pretrained(pipeline, subfolder="text_encoder", revision="main")
    images = normalised(random_images(2, 32))
    expected = clip_jax.load_vision_model(pipeline / "text_encoder")[0](images)
    out = model(images.transpose(0, 3, 1, 2))
    if kind is FlaxCLIPVisionModel:
        assert relative_error(out.pooler_output, expected.pooler_output) < 1e-6
    else:
        assert relative_error(out.image_embeds, expected.image_embeds) < 1e-6
        assert model.config.projection_dim == 16


def test_a_pair_is_returned_without_init_and_is_the_folders_to_the_bit(pipeline):
    folder = pipeline / "text_encoder"
    model, params = FlaxCLIPModel.from_pretrained(folder, _do_init=False)
    expected = flatten(to_flax(PARAMS))
    assert flatten(params).keys() == expected.keys()
    for path, array in flatten(params).items():
        assert isinstance(array, jax.Array) and array.dtype == jnp.float32
        assert np.asarray(array).tobytes() == expected[path].tobytes(), path
    whole, _ = clip_jax.load(folder)
    tokens, images = random_tokens(3), normalised(random_images(2, 32))
    out = model(tokens, images.transpose(0, 3, 1, 2), params=params)
    assert relative_error(out.logits_per_image, whole(images, tokens)[0]) < 1e-5
    assert model.config.text_config.max_position_embeddings == 77


def test_what_is_saved_is_loaded_again_in_any_dtype(text, tmp_path):
    model, params = text
    model.save_pretrained(tmp_path / "saved", params=params)
    again = FlaxCLIPTextModelWithProjection.from_pretrained(tmp_path / "saved", jnp.bfloat16)
    assert again.config.to_dict().items() >= cases.TEXT.items()
    for path, array in flatten(again.params).items():
        assert np.asarray(array).tobytes() == np.asarray(flatten(params)[path]).tobytes(), path
    assert again(IDS).text_embeds.dtype == jnp.bfloat16
    again.params = again.to_bf16(again.params)
    assert again(IDS)[0].dtype == jnp.bfloat16
    again.save_pretrained(tmp_path / "saved")  # in place of the other
    held = FlaxCLIPTextModel.from_pretrained(tmp_path / "saved").params
    assert "text_projection" not in held
    assert {array.dtype for array in flatten(held).values()} == {jnp.dtype("float32")}


def test_casts_obey_a_mask(text):
    model, params = text
    mask = jax.tree.map(lambda x: np.ndim(x) == 2, params)
    half = flatten(model.to_fp16(params, mask))
    assert half["text_projection/kernel"].dtype == jnp.float16
    assert half["text_model/final_layer_norm/scale"].dtype == jnp.float32
    assert (
        flatten(model.to_fp32(model.to_bf16(params)))["text_projection/kernel"].dtype == "float32"
    )


def test_dropout_drops_in_training_alone():
    config = CLIPTextConfig(**cases.TEXT, attention_dropout=0.4)
    model, params = filled(FlaxCLIPTextModel, config)
    call = functools.partial(model, IDS, params=params)
    keys = jax.random.split(jax.random.key(0))
    one, other = (call(train=True, dropout_rng=key)[0] for key in keys)
    assert relative_error(one, other) > 0.01
    assert (call(train=True, dropout_rng=keys[0])[0] == one).all()
    assert (call(dropout_rng=keys[0])[0] == call()[0]).all()
    with pytest.raises(ValueError, match=r"drops a fraction of attention, 0.4.*dropout_rng"):
        call(train=True)


class SafetyChecker(linen.Module):
    """As in diffusers: a Linen module with the vision tower inside."""

    config: object

    def setup(self):
        self.vision_model = FlaxCLIPVisionModule(self.config)
        self.visual_projection = linen.Dense(20, use_bias=False)

    def __call__(self, clip_input):
        return self.visual_projection(self.vision_model(clip_input)[1])


def test_the_vision_tower_is_a_part_of_a_linen_module(vision):
    model, params = vision
    images = cases.pixels().transpose(0, 2, 3, 1)
    checker = SafetyChecker(model.config)
    made = checker.init(jax.random.key(0), images)["params"]
    assert jax.tree.map(jnp.shape, made["vision_model"]) == jax.tree.map(jnp.shape, params)
    made = {**made, "vision_model": params}
    given = checker.apply({"params": made}, images)
    pooled = model(cases.pixels(), params=params).pooler_output
    assert relative_error(given, pooled @ made["visual_projection"]["kernel"]) < 1e-5
