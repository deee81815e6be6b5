"""The README's Python runs as it stands, on a small model in place of ViT-B/32."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

import clip_jax
from tests.models import SMALL_VIT, random_images, relative_error, small

README = Path(__file__).parent.parent / "README.md"


def test_every_python_block_runs(tmp_path, monkeypatch, capsys):
    model = small(SMALL_VIT)
    preprocess = clip_jax.Preprocess(SMALL_VIT.vision.image_size)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clip_jax, "load", lambda name: (model, preprocess))
    Image.fromarray(random_images(1, 50)[0]).save("photo.jpg")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    namespace = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert capsys.readouterr().out
    # What the blocks claim of their results.
    expected = model.encode_image(namespace["images"])
    assert relative_error(namespace["image_features"], expected) < 1e-6
    assert relative_error(namespace["logits_per_text"], namespace["logits_per_image"].T) == 0


def test_linen_gets_batch_statistics_too():
    from flax import nnx

    from tests.models import SMALL_RESNET

    model, images = small(SMALL_RESNET), random_images(2, 64)
    linen = nnx.bridge.to_linen(clip_jax.CLIP, model.config)
    variables = {
        "params": nnx.to_pure_dict(nnx.state(model, nnx.Param)),
        "batch_stats": nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)),
    }
    given = linen.apply(variables, images, method=lambda m, x: m.encode_image(x))
    assert np.array_equal(given, model.encode_image(images))


def test_the_first_shell_block_is_the_clone_and_the_two_set_up_commands():
    lines = re.search(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)[1].splitlines()
    assert [line for line in lines if line.startswith("git clone")] == lines[:1]
    main_job, tests = lines[1:]
    assert "clip-jax classify" in main_job
    assert "pytest" in tests


def test_it_is_short_enough_to_be_read():
    assert len(README.read_text().splitlines()) <= 150


def test_every_file_that_it_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)", README.read_text())
    assert len(links) > 20
    assert [link for link in links if not (README.parent / link).exists()] == []
