"""Section 1: what this device computes against float32 on the CPU of the same machine.

Image and text features by relative L2, logits by their largest difference. The reference is our
model placed on the CPU device of this process, whose default is the accelerator; one row says how
far it is from PyTorch in float64. Eight images and eight captions through the public encoder, as
it comes; weights of trained scale, logits within some tens.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.accelerator import keep, models
from benchmarks.accelerator.cases import Case
from benchmarks.captions import captions

ROWS = 8
WHAT = "features against the CPU"
# How we compute, by the contender's name.
MODES = {
    "clip_jax, float32 highest": ("float32", "highest"),
    "clip_jax, bfloat16": ("bfloat16", "default"),
    "clip_jax, float32 default (TF32)": ("float32", "default"),
    "clip_jax, float16": ("float16", "default"),
}
# How PyTorch does: dtype, and what `torch.set_float32_matmul_precision` is given.
PEERS = {
    "PyTorch, float32 highest": ("float32", "highest"),
    "PyTorch, bfloat16": ("bfloat16", "highest"),
    "PyTorch, float32 high (TF32)": ("float32", "high"),
}

Features = tuple[np.ndarray, np.ndarray]


def cases(tiny: bool) -> list[Case]:
    def ours(name: str, mode: str) -> Case:
        run = functools.partial(_ours, name, *MODES[mode], tiny)
        return _case(
            name,
            tiny,
            mode,
            run,
            (50 if mode == "clip_jax, float32 highest" else 20) if name == models.L14 else 15,
        )

    def theirs(name: str, mode: str) -> Case:
        return _case(name, tiny, mode, functools.partial(_theirs, name, *PEERS[mode], tiny), 6)

    names = (models.B32, models.RN50) if tiny else (models.B32, models.L14, models.RN50)
    vits = [name for name in names if name != models.RN50]
    planned = [ours(name, mode) for mode in list(MODES)[:2] for name in names]
    check = functools.partial(_reference_itself, models.B32, tiny)
    planned.append(
        _case(models.B32, tiny, "the reference itself, against PyTorch float64", check, 6)
    )
    planned += [theirs(name, mode) for mode in PEERS for name in vits]
    planned += [ours(name, mode) for mode in list(MODES)[2:] for name in names]
    return planned


def _case(name: str, tiny: bool, contender: str, run: Callable[[], Any], seconds: float) -> Case:
    return Case(
        f"{models.label(name, tiny)} {WHAT}",
        contender,
        lambda _: run(),
        seconds=seconds,
        about={"kind": "parity", "model": name},
    )


def _inputs(name: str, tiny: bool) -> tuple[np.ndarray, np.ndarray]:
    import clip_jax

    config = models.config_of(name, tiny)
    # Of about one length, so that one program takes them all.
    tokens = clip_jax.tokenize(captions(200), config.text.context_length)
    lengths = tokens.argmax(axis=1) + 1
    tokens = tokens[(lengths > 12) & (lengths <= 16)][:ROWS]
    return models.pixels_of(config, ROWS), tokens


def _reference(name: str, tiny: bool) -> Features:
    """By our model on the CPU device, whatever the default is."""
    import jax

    def make() -> Features:
        model = jax.device_put(models.model_of(name, tiny), jax.devices("cpu")[0])
        images, tokens = _inputs(name, tiny)
        found = model.encode_image(images), model.encode_text(tokens)
        assert all(array.devices() == {jax.devices("cpu")[0]} for array in found)
        return np.asarray(found[0]), np.asarray(found[1])

    return keep.once(("reference", name), make)


def _ours(name: str, dtype: str, precision: str, tiny: bool) -> dict[str, Any]:
    import clip_jax

    model = models.model_of(name, tiny)
    encoder = clip_jax.Encoder(model, batch_size=ROWS, dtype=dtype, precision=precision)
    images, tokens = _inputs(name, tiny)
    return _compared((encoder.images(images), encoder.texts(tokens)), _reference(name, tiny))


def _theirs(name: str, dtype: str, precision: str, tiny: bool) -> dict[str, Any]:
    from benchmarks.accelerator import peers

    torch = peers.torch()
    with peers.float32_precision(precision):
        found = _by_torch(name, dtype, tiny, peers.device(), torch)
    return _compared(found, _reference(name, tiny))


def _reference_itself(name: str, tiny: bool) -> dict[str, Any]:
    from benchmarks.accelerator import peers

    exact = _by_torch(name, "float64", tiny, "cpu", peers.torch())
    return _compared(_reference(name, tiny), exact)


def _by_torch(name: str, dtype: str, tiny: bool, where: str, torch: Any) -> Features:
    from benchmarks.accelerator import peers

    model = peers.model_of(name, tiny, dtype, where)
    images, tokens = _inputs(name, tiny)
    pixels = np.ascontiguousarray(models.normalized(images).transpose(0, 3, 1, 2))
    with torch.inference_mode():
        pixels = torch.from_numpy(pixels).to(where, getattr(torch, dtype))
        image = peers.image_features(model)(pixels)
        text = peers.text_features(model)(torch.from_numpy(tokens).long().to(where))
        return image.double().cpu().numpy(), text.double().cpu().numpy()


def _compared(found: Features, expected: Features) -> dict[str, Any]:
    from benchmarks.accelerator.timing import relative_error

    image, text = (relative_error(a, b) for a, b in zip(found, expected, strict=True))
    logits = float(np.abs(_logits(*found) - _logits(*expected)).max())
    largest = float(np.abs(_logits(*expected)).max())
    worst = max(image, text)
    if not np.isfinite(worst):
        raise FloatingPointError(f"features are not finite: images {image}, texts {text}")
    return {
        "value": worst,
        "unit": "relative L2",
        "image": image,
        "text": text,
        "logits": logits,
        "note": f"images {image:.1e}, texts {text:.1e}, logits {logits:.1e} of {largest:.0f}",
    }


def _logits(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Scaled cosines in float64, whatever computed the features."""
    unit = [np.asarray(x, np.float64) for x in (image, text)]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in unit]
    return 100 * unit[0] @ unit[1].T
