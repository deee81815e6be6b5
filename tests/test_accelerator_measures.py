"""What the benchmark for accelerators measures with, and what it concludes."""

import importlib.util
import io
import sys
import tarfile
import time
import types

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks.accelerator import defaults, flops, keep, models, names, ours, timing, weights
from benchmarks.accelerator.cases import NotHere
from benchmarks.accelerator.pictures import make_shards
from benchmarks.accelerator.scanned import scan_blocks
from benchmarks.accelerator.timing import Contender, beside, take_turns
from clip_jax.catalog import CATALOG
from clip_jax.nn import from_parameters
from clip_jax.sources import open_input
from tests import reference
from tests.models import SMALL_RESNET, SMALL_VIT, TINY_VIT, random_images, relative_error, small

requires = pytest.mark.skipif(not reference.available(), reason="PyTorch is not installed")
EQUAL = 1e-5  # float32 sums in another order; measured 3e-7


@pytest.fixture(autouse=True)
def nothing_kept():
    yield
    keep._kept.clear()


def features(model, variant, images):
    return ours.on_device("x", model, variant, images).features


# --- our variants


@pytest.mark.parametrize(
    "options",
    [
        {"is_pooled": False},
        {"is_single_query": True},
        {"is_scanned": True},
        {"attention": "tokamax"},
    ],
)
def test_every_variant_of_the_image_tower_gives_the_same_features(options, monkeypatch):
    """The product that tokamax has takes what JAX's own does, which stands in for it here."""
    stand_in = types.SimpleNamespace(dot_product_attention=jax.nn.dot_product_attention)
    if importlib.util.find_spec("tokamax") is None:
        monkeypatch.setitem(sys.modules, "tokamax", stand_in)
    model, images = small(TINY_VIT), random_images(5, TINY_VIT.vision.image_size)
    plain = ours.Variant("float32", "highest")
    expected = np.asarray(model.encode_image(images))
    assert relative_error(features(model, plain, images), expected) < EQUAL
    variant = ours.Variant("float32", "highest", **options)
    assert relative_error(features(model, variant, images), expected) < EQUAL


@pytest.mark.usefixtures("ranks_promoted")
def test_scanned_blocks_are_one_program():
    model = ours.prepare(small(TINY_VIT), ours.Variant("float32", "highest", is_scanned=True))
    text = jax.jit(lambda m, x: m.image_features(x)).lower(model, random_images(4, 48)).as_text()
    plain = jax.jit(lambda m, x: m.image_features(x)).lower(small(TINY_VIT), random_images(4, 48))
    assert "stablehlo.while" in text and "stablehlo.while" not in plain.as_text()


def test_resnet_has_no_blocks_to_scan():
    with pytest.raises(ValueError, match="only a transformer"):
        scan_blocks(small(SMALL_RESNET).visual)


def test_attention_that_is_not_for_this_device_is_not_here(monkeypatch):
    with pytest.raises(NotHere, match="NVIDIA"):
        ours.prepare(small(SMALL_VIT), ours.Variant(attention="cudnn"))
    monkeypatch.setitem(sys.modules, "tokamax", None)  # whose import then fails
    with pytest.raises(NotHere, match="tokamax can't be imported"):
        ours.prepare(small(SMALL_VIT), ours.Variant(attention="tokamax"))


@pytest.mark.parametrize("missing", ["torch", pytest.param("transformers", marks=requires)])
def test_peers_are_not_here_where_a_package_of_theirs_is_missing(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    # A module of its own, beside the one that other tests may have imported.
    spec = importlib.util.find_spec("benchmarks.accelerator.peers")
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    with pytest.raises(NotHere, match=missing):
        peers.build(SMALL_VIT, "cpu")
    with pytest.raises(NotHere, match=missing):
        peers.resnet("float32")


# --- what is measured, and how


def test_contenders_take_turns_and_each_is_first_as_often_as_last():
    order = []

    def contender(name):
        return Contender(name, lambda calls: order.append(name), rows=1)

    taken = take_turns([contender("a"), contender("b")], rounds=4, turn=0.0)
    assert order == ["a", "b", *"ab", *"ba", *"ab", *"ba"]  # after the warm-up
    assert [len(seconds) for seconds in taken] == [4, 4]


def test_ratio_is_that_of_speeds():
    def sleeper(name, seconds, rows):
        return Contender(name, lambda calls: time.sleep(calls * seconds), rows, np.ones(3))

    row = beside(sleeper("slow", 0.02, 1), sleeper("fast", 0.01, 2), "rows/s", rounds=3, turn=0.05)
    assert 3 < row["ratio"] < 5
    assert row["beside"] == "slow" and row["difference"] == 0


def test_features_that_are_not_numbers_show():
    assert np.isnan(timing.relative_error([np.nan, 1], [1, 1]))


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"])
def test_flops_are_the_catalog_s_but_for_the_pooled_last_block(name):
    entry = CATALOG[name]
    vision = entry.config.vision
    length, w = vision.num_patches + 1, vision.width
    block = 24 * length * w**2 + 4 * length**2 * w
    pooled = 24 * w**2 + 4 * vision.num_heads * length * w
    whole = flops.image_flops(entry.config) + block - pooled
    assert whole / 1e9 == pytest.approx(entry.gflops, rel=1e-3)


@pytest.mark.parametrize("config", [TINY_VIT, SMALL_RESNET])
def test_random_weights_are_of_trained_scale(config):
    """Features of order 1 and logits of some tens, so that errors are what they would be."""
    model = from_parameters(config, weights.random_tree(config))
    images = np.asarray(model.encode_image(random_images(6, config.vision.image_size)))
    assert 0.1 < np.sqrt((images**2).mean()) < 10
    logits = 100 * (images @ images.T) / np.linalg.norm(images, axis=1) ** 2
    assert np.isfinite(logits).all()
    assert float(model.logit_scale[...]) == pytest.approx(np.log(100))


def test_random_weights_are_the_same_for_all_that_compute_with_them():
    first, second = (weights.random_tree(SMALL_VIT) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not np.array_equal(first["visual"]["proj"], weights.random_tree(SMALL_VIT, 1))


def test_pictures_are_files_that_differ_and_can_all_be_decoded(tmp_path):
    rows = open_input(make_shards(tmp_path, 40, distinct=3))
    assert len(rows.shards) == 4
    contents = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            contents += [tar.extractfile(entry).read() for entry in tar]
    assert len(contents) == len(set(contents)) == 40
    pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in contents]
    assert {array.shape for array in pixels} == {(375, 500, 3)}
    assert len({array.tobytes() for array in pixels}) == 3


# --- what the rows argue for


def image_row(model, tokens, contender, ratio=None, size=256, **others):
    row = {
        "section": "2 images",
        "what": "x",
        "contender": contender,
        "status": "ok",
        "size": size,
        "case": ["x", contender, size],
        "kind": "images",
        "model": model,
        "tokens": tokens,
        "dtype": "bfloat16",
        "value": 1000.0 * (ratio or 1),
        "unit": "images/s",
        "compile_seconds": 10.0,
        "share": 0.5 * (ratio or 1),
        "attention": {names.CUDNN: "cudnn"}.get(contender, "xla"),
    }
    return row | ({"ratio": ratio, "beside": names.OURS} if ratio else {}) | others


def attention_rows(*ratios):
    rows = []
    for (model, tokens), ratio in zip(
        ((models.B32, 50), (models.B16, 197), (models.L14, 257)), ratios, strict=True
    ):
        rows += [
            image_row(model, tokens, names.OURS),
            image_row(model, tokens, names.CUDNN, ratio),
        ]
    return rows


@pytest.mark.parametrize(
    ("ratios", "line"),
    [
        ((1.31, 1.2, 1.4), "attention: cudnn for bfloat16 from 50 tokens on"),
        ((0.9, 1.2, 1.4), "attention: cudnn for bfloat16 from 197 tokens on"),
        ((1.3, 0.9, 1.4), "attention: cudnn for bfloat16 from 257 tokens on"),
        ((0.9, 0.9, 0.9), "attention: xla for bfloat16; cudnn is 0.90 times"),
    ],
)
def test_attention_is_argued_for_from_the_length_on_from_which_it_always_wins(ratios, line):
    text = defaults.lines(attention_rows(*ratios))
    assert line in text
    assert f"{ratios[0]:.2f} times at 50" in text


def test_attention_is_compared_with_xlas_whichever_is_the_base():
    rows = [
        image_row(models.L14, 257, names.OURS, attention="cudnn"),
        image_row(models.L14, 257, names.XLA, 0.8),
    ]
    assert "attention: cudnn for bfloat16 from 257 tokens on; 1.25 times" in defaults.lines(rows)


def test_figures_are_reached_by_the_fastest_of_ours():
    rows = attention_rows(1.31, 1.2, 1.4)
    rows.append(image_row(models.L14, 257, names.COMPILED, 1.2))
    text = defaults.figures_to_reach(rows)
    row = next(line for line in text.splitlines() if line.startswith("| ViT-L/14 images"))
    assert row.endswith("| at least 1.10 | 1.17, clip_jax, cuDNN attention | yes |")  # 1.4 / 1.2
    share = "the same, share of the measured bfloat16 peak"
    assert f"| {share} | at least 0.60 | 0.70, clip_jax, cuDNN attention | yes |" in text
    assert text.count("not measured") == 6


def test_rows_that_failed_argue_for_nothing():
    rows = [image_row(models.L14, 257, names.CUDNN, 1.4, status="error")]
    assert "cudnn" not in defaults.lines(rows)


def test_each_choice_has_its_line():
    rows = [
        image_row(models.L14, 257, names.OURS),
        image_row(models.L14, 257, names.SCANNED, 0.95, compile_seconds=3.0),
        image_row(models.L14, 257, names.ALL_ROWS, 0.9),
        image_row(models.L14, 257, names.FLOATS, 1.0),
        image_row(models.L14, 257, names.PLAIN, 0.8),
        image_row(models.L14, 257, names.TRITON, 1.25),
        image_row(models.B32, 50, names.OURS),
        image_row(models.B32, 50, names.OURS, size=1024, value=1300.0),
    ]
    text = defaults.lines(rows)
    assert "blocks, ViT-L/14: unrolled; unrolled they are 1.05 times as fast" in text
    assert "compile in 10.0 s against 3.0 s" in text
    assert "last block, ViT-L/14: the wanted row alone; pooled it is 1.11 times" in text
    assert "input, ViT-L/14: bytes" in text
    assert "norms and activations, ViT-L/14 at 256: those of backends/gpu; " in text
    assert "with cuBLAS alone it is 0.80 times as fast as with Triton's, too" in text
    assert "batch_size, ViT-B/32: 1,024; 1,000 images/s at 256, 1,300 images/s at 1,024" in text
