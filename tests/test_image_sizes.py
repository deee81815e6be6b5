"""Models at other image sizes than their own: equal to OpenCLIP's and to transformers'."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax.config import CLIPConfig, ViTConfig
from clip_jax.convert import from_open_clip, to_huggingface, to_open_clip, to_pytorch
from clip_jax.convert.huggingface_pixels import PREPROCESSOR
from clip_jax.encoder import Encoder
from clip_jax.errors import CheckpointError
from clip_jax.nn import flatten, parameters
from clip_jax.parity.reference import quiet
from clip_jax.weights import load_vision_model, save_parameters
from clip_jax.weights.positions import resize_positions
from tests import reference
from tests.models import (
    SMALL_RESNET,
    SMALL_VIT,
    random_parameters,
    relative_error,
)
from tests.peers import TOLERANCE, arrays_of, build_huggingface, nchw, peer, randomized, saved

# Sizes that a model of 32 pixels in patches of 8 is run at: larger, smaller, no squares.
SIZES = [48, 16, (24, 40), (56, 32)]
TEXT = {"context_length": 13, "vocab_size": 61, "width": 48, "heads": 3, "layers": 1}
VISION = {"image_size": 32, "layers": 2, "width": 96, "patch_size": 8, "head_width": 32}


def images_of(size, count=2, seed=0):
    """(b, n, m, 3) uint8 pixels."""
    shape = size if isinstance(size, tuple) else (size, size)
    return np.random.default_rng(seed).integers(0, 256, (count, *shape, 3), np.uint8)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A native folder of SMALL_VIT, of 32 pixels in patches of 8."""
    folder = tmp_path_factory.mktemp("native") / "vit"
    save_parameters(SMALL_VIT, random_parameters(SMALL_VIT), folder)
    return folder


def same_parameters(model, other):
    one, two = (flatten(parameters(each)) for each in (model, other))
    return one.keys() == two.keys() and all(
        np.asarray(one[path]).tobytes() == np.asarray(two[path]).tobytes() for path in one
    )


GRIDS = [(7, 7), (14, 14), (24, 24), (37, 37), (7, 16), (24, 14), (1, 1)]


@pytest.mark.torch
@pytest.mark.parametrize("rule", ["open_clip", "huggingface"])
def test_both_kernels_equal_pytorchs(rule):
    torch = reference.torch()
    for grid in GRIDS:
        table = np.random.default_rng(0).normal(size=(grid[0] * grid[1], 5)).astype(np.float32)
        image = torch.tensor(table.reshape(1, *grid, 5)).permute(0, 3, 1, 2).double()
        for new in GRIDS:
            theirs = torch.nn.functional.interpolate(
                image, new, mode="bicubic", align_corners=False, antialias=rule == "open_clip"
            )
            expected = theirs.permute(0, 2, 3, 1).reshape(-1, 5).numpy()
            given = resize_positions(table, grid, new, rule)
            assert given.dtype == np.float32
            assert np.abs(given - expected).max() < 1e-6, (grid, new)


def test_halves_are_resized_to_float32():
    table = np.random.default_rng(0).normal(size=(49, 3)).astype(np.float16)
    exact = resize_positions(table.astype(np.float64), (7, 7), (9, 5), "open_clip")
    given = resize_positions(table, (7, 7), (9, 5), "open_clip")
    assert given.dtype == np.float32 and np.abs(given - exact).max() < 1e-6


@pytest.mark.torch
@pytest.mark.parametrize("size", SIZES)
def test_an_openclip_folder_at_another_size_equals_openclips_checkpoint_in_it(tmp_path, size):
    open_clip = peer("open_clip")
    cfg = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    with quiet():
        small = randomized(open_clip.CLIP(**cfg))
        other = {**VISION, "image_size": size}
        large = open_clip.CLIP(**{**cfg, "vision_cfg": other}).eval()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}))
    path = folder / "open_clip_model.safetensors"
    save_file(arrays_of(small), path)
    with quiet():
        open_clip.load_checkpoint(large, str(path))
    model, preprocess = clip_jax.load(folder, image_size=size)
    images = images_of(size)
    with reference.torch().inference_mode():
        expected = large.encode_image(nchw(images)).numpy()
    assert relative_error(model.encode_image(images), expected) < TOLERANCE
    assert preprocess.image_size == model.config.vision.image_size == size


@pytest.mark.torch
@pytest.mark.parametrize("size", [*SIZES, (35, 46)])
def test_a_folder_of_transformers_at_another_size_equals_it_interpolating(tmp_path, size):
    theirs = build_huggingface()
    folder = saved(theirs, tmp_path / "folder")
    options = {"drop_remainder": True} if size == (35, 46) else {}
    model, _ = clip_jax.load(folder, image_size=size, **options)
    images = images_of(size)
    with reference.torch().inference_mode():
        expected = theirs.get_image_features(
            pixel_values=nchw(images), interpolate_pos_encoding=True
        ).pooler_output.numpy()
    assert relative_error(model.encode_image(images), expected) < TOLERANCE
    tower, _ = load_vision_model(folder, image_size=size, **options)
    assert relative_error(tower.encode_image(images), expected) < TOLERANCE


def test_each_librarys_folder_has_its_own_rule_and_the_other_on_request(tmp_path):
    params = random_parameters(SMALL_VIT)
    to_huggingface(SMALL_VIT, params, tmp_path / "huggingface")
    to_open_clip(SMALL_VIT, params, tmp_path / "open_clip")
    save_parameters(SMALL_VIT, params, tmp_path / "native")
    save_file(to_pytorch(SMALL_VIT, params), tmp_path / "vit.safetensors")
    by_default = {"huggingface": "huggingface"}
    for name in ("huggingface", "open_clip", "native", "vit.safetensors"):
        # A bare file doesn't say these.
        bare = {"activation": "quick_gelu", "num_heads": 1} if name.endswith("tensors") else {}
        own = clip_jax.load(tmp_path / name, image_size=48, **bare)[0]
        for rule in ("huggingface", "open_clip"):
            told = clip_jax.load(tmp_path / name, image_size=48, position_resize=rule, **bare)[0]
            is_own = rule == by_default.get(name, "open_clip")
            assert same_parameters(own, told) == is_own, (name, rule)


def test_the_stored_size_changes_nothing_and_a_saved_model_keeps_the_new_one(native, tmp_path):
    stored = clip_jax.load(native)[0]
    again = clip_jax.load(native, image_size=(32, 32), position_resize="huggingface")[0]
    assert same_parameters(stored, again) and again.config == stored.config
    wide = clip_jax.load(native, image_size=(24, 40))[0]
    clip_jax.save(wide, tmp_path / "wide")
    read, preprocess = clip_jax.load(tmp_path / "wide")
    assert read.config == wide.config and same_parameters(read, wide)
    assert preprocess.image_size == (24, 40)
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["vision"]["image_size"] == [
        24,
        40,
    ]
    clip_jax.save(wide, tmp_path / "wide")  # it is known as a model's folder, and replaced


def test_the_configuration_of_a_square_model_stays_as_it_was(native):
    text = (native / "config.json").read_text()
    assert '"image_size": 32,' in text and "remainder" not in text
    tower = dataclasses.replace(SMALL_VIT.vision, image_size=(32, 32))
    assert dataclasses.replace(SMALL_VIT, vision=tower).to_json() == text == SMALL_VIT.to_json()


def test_a_remainder_is_dropped_only_when_asked_for(native, tmp_path):
    with pytest.raises(ValueError, match=r"such as 32 x 40\. Got 35 x 46: .*drop_remainder"):
        clip_jax.load(native, image_size=(35, 46))
    model, preprocess = clip_jax.load(native, image_size=(35, 46), drop_remainder=True)
    whole = clip_jax.load(native, image_size=(32, 40))[0]
    images = images_of((35, 46))
    expected = whole.encode_image(images[:, :32, :40])
    np.testing.assert_array_equal(model.encode_image(images), expected)
    assert preprocess(Image.new("RGB", (90, 50))).shape == (35, 46, 3)
    clip_jax.save(model, tmp_path / "model")
    assert clip_jax.load(tmp_path / "model")[0].config == model.config
    square = clip_jax.load(native, image_size=35, drop_remainder=True)[0]
    for write, read in ((to_huggingface, clip_jax.load), (to_open_clip, clip_jax.load)):
        write(square.config, parameters(square), tmp_path / write.__name__)
        assert read(tmp_path / write.__name__)[0].config.vision == square.config.vision


def test_no_square_is_written_where_the_format_has_a_place_for_it(native, tmp_path):
    model = clip_jax.load(native, image_size=(24, 40))[0]
    config, params = model.config, parameters(model)
    to_open_clip(config, params, tmp_path / "open_clip")
    assert from_open_clip(tmp_path / "open_clip")[0].vision == config.vision
    with pytest.raises(CheckpointError, match=r"images that are no squares \(24 x 40\)"):
        to_huggingface(config, params, tmp_path / "huggingface")
    with pytest.raises(CheckpointError, match=r"images that are no squares \(24 x 40\)"):
        to_pytorch(config, params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be a positive integer .* Got 0"),
        ({"image_size": -8}, "Got -8"),
        ({"image_size": True}, "Got True"),
        ({"image_size": 224.0}, r"Got 224\.0"),
        ({"image_size": "224"}, "Got '224'"),
        ({"image_size": (24, 32, 3)}, r"Got \(24, 32, 3\)"),
        ({"image_size": (24, 0)}, r"Got \(24, 0\)"),
        ({"image_size": 1 << 20}, "below 65,536"),
        ({"image_size": 7}, "can't take images of 7 x 7: image_size must be at least patch_size"),
        ({"image_size": (7, 64)}, "can't take images of 7 x 64"),
        ({"image_size": 36}, "multiple of the model's patches of 8 pixels, such as 32 x 32"),
        ({"image_size": 48, "position_resize": "timm"}, "position_resize must be .* Got 'timm'"),
        ({"position_resize": "open_clip"}, "give it as image_size"),
        ({"drop_remainder": True}, "give it as image_size"),
    ],
)
def test_sizes_that_no_model_can_take_are_refused(native, options, message):
    for load in (clip_jax.load, load_vision_model):
        with pytest.raises(ValueError, match=message):
            load(native, **options)


def test_a_resnet_has_one_size(tmp_path):
    save_parameters(SMALL_RESNET, random_parameters(SMALL_RESNET), tmp_path / "resnet")
    with pytest.raises(ValueError, match="has a ResNet, which takes images of 64 x 64"):
        clip_jax.load(tmp_path / "resnet", image_size=96)
    document = {"model_cfg": {"embed_dim": 24, "text_cfg": TEXT}}
    vision = {"image_size": [64, 96], "layers": [1, 1, 1, 1], "width": 4, "head_width": 32}
    document["model_cfg"]["vision_cfg"] = vision
    with pytest.raises(CheckpointError, match="must be a square for a ResNet. Got 64 x 96"):
        clip_jax.convert.open_clip_config.from_document(document)


def test_images_of_another_size_are_refused_with_both_and_the_way_out(native):
    model, _ = clip_jax.load(native, image_size=(24, 40))
    for encode in (model.encode_image, Encoder(model, batch_size=2).images):
        with pytest.raises(ValueError) as caught:
            encode(images_of(32))
        assert re.search(r"\(batch, 24, 40, 3\)\. Got \(2, 32, 32, 3\)", str(caught.value))
        assert "clip_jax.load(..., image_size=)" in str(caught.value)
    with pytest.raises(ValueError, match="NCHW"):
        model.encode_image(images_of(32).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("parallel", ["jit", "mesh"])
def test_the_encoder_takes_images_that_are_no_squares(native, parallel):
    model, _ = clip_jax.load(native, image_size=(24, 40))
    images = images_of((24, 40), count=5)
    given = Encoder(model, batch_size=4, parallel=parallel).images(images)
    assert relative_error(given, model.encode_image(images)) < 1e-6
    half = clip_jax.load(native, image_size=(24, 40), dtype="bfloat16")[0]
    assert relative_error(Encoder(half, batch_size=4).images(images), given) < 0.05


MODES = ["RGB", "L", "LA", "RGBA", "1"]


@pytest.mark.torch
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_pixels_that_are_no_squares_equal_openclips_to_the_bit(resize):
    open_clip = peer("open_clip")
    rng, size = np.random.default_rng(0), (24, 40)
    config = clip_jax.config.PixelConfig(resize=resize)
    ours = clip_jax.Preprocess(size, config)
    with quiet():
        theirs = open_clip.image_transform(size, is_train=False, resize_mode=resize)
    for number in range(60):
        shape = rng.integers(5, 120, 2)
        image = Image.fromarray(rng.integers(0, 256, (*shape, 4), np.uint8), "RGBA")
        image = image.convert(MODES[number % len(MODES)])
        expected = theirs(image).numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(ours(image), expected, err_msg=f"{image.mode} {image.size}")


def test_transformers_pixels_follow_the_size(tmp_path):
    to_huggingface(SMALL_VIT, random_parameters(SMALL_VIT), tmp_path)
    image = Image.fromarray(images_of((60, 90))[0])
    for size in (48, (24, 40)):
        _, preprocess = clip_jax.load(tmp_path, preprocessing="huggingface", image_size=size)
        shape = size if isinstance(size, tuple) else (size, size)
        assert preprocess(image).shape == (*shape, 3)
    path = tmp_path / PREPROCESSOR
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "size": {"shortest_edge": 40}}))
    clip_jax.load(tmp_path, preprocessing="huggingface", image_size=32)
    with pytest.raises(ValueError, match='resized to 40 and cropped to 32 x 32.*"openai"'):
        clip_jax.load(tmp_path, preprocessing="huggingface", image_size=48)


@pytest.mark.torch
def test_transformers_pixels_at_another_size_equal_its_own_to_the_bit(tmp_path):
    kind = peer("transformers").CLIPImageProcessorPil
    to_huggingface(SMALL_VIT, random_parameters(SMALL_VIT), tmp_path)
    _, ours = clip_jax.load(tmp_path, preprocessing="huggingface", image_size=48)
    with quiet():
        theirs = kind.from_pretrained(
            tmp_path, size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
        )
    for seed, shape in enumerate([(60, 91), (30, 70), (48, 48), (51, 200)]):
        image = Image.fromarray(images_of(shape, seed=seed)[0])
        expected = theirs(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_array_equal(ours(image), expected)


def test_a_size_is_read_from_a_configuration_only_if_it_is_one():
    document = json.loads(SMALL_VIT.to_json())
    for size in ([32], [32, 40, 8], ["32", 40], [32, 0], None, "32"):
        document["vision"]["image_size"] = size
        with pytest.raises(ValueError, match="image_size must be a positive integer"):
            CLIPConfig.from_json(json.dumps(document))
    document["vision"]["image_size"] = [32, 40]
    vision = CLIPConfig.from_json(json.dumps(document)).vision
    assert isinstance(vision, ViTConfig)
    assert (vision.grid, vision.num_patches, vision.image_size) == ((4, 5), 20, (32, 40))


def test_arrays_that_dont_fit_the_size_are_refused(native, tmp_path):
    document = json.loads((native / "config.json").read_text())
    document["vision"]["image_size"] = [24, 40]
    (tmp_path / "config.json").write_text(json.dumps(document))
    save_file(load_file(native / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"positional_embedding: expected shape \(16, 64\)"):
        clip_jax.load(tmp_path)
