"""Writes what Flax CLIP of transformers 4 computes on small random models, for the tests.

transformers 4 and 5 don't fit into one environment, so this runs in one of its own:

    python3.11 -m venv .venv-tf4
    .venv-tf4/bin/pip install transformers==4.57.3 jax==0.10.2 flax==0.12.8
    .venv-tf4/bin/python -m benchmarks.flax_clip_golden tests/golden/flax_clip.npz
"""

import sys
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import transformers

from tests import flax_clip as cases

EVERYTHING: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True}


def main() -> int:
    arrays: dict[str, np.ndarray] = {}
    text = transformers.CLIPTextConfig(**cases.TEXT)
    eos = transformers.CLIPTextConfig(**cases.TEXT_EOS)
    vision = transformers.CLIPVisionConfig(**cases.VISION)
    ids, mask, positions = cases.tokens(), cases.mask(), cases.positions()
    whole = transformers.CLIPConfig(
        text_config=cases.TEXT_EOS, vision_config=cases.VISION, projection_dim=20
    )

    model = filled(transformers.FlaxCLIPTextModel(text), "text", arrays)
    keep("text", model(ids, **EVERYTHING), arrays)
    keep("masked", model(ids, mask), arrays)
    keep("moved", model(ids, None, positions), arrays)
    keep("short", model(ids[:, :7]), arrays)

    def loss(params):
        return (model(ids, params=params, train=False)[0] ** 2).sum()

    for path, array in flattened(jax.grad(loss)(model.params)).items():
        if any(part in path for part in cases.DIFFERENTIATED):
            arrays[f"gradient:{path}"] = np.asarray(array)

    model = filled(transformers.FlaxCLIPTextModelWithProjection(eos), "projected", arrays)
    keep("projected", model(ids, mask, output_hidden_states=True), arrays)
    half = transformers.FlaxCLIPTextModelWithProjection(eos, dtype=jnp.bfloat16)
    keep("half", half(ids, params=model.params), arrays)
    model = filled(transformers.FlaxCLIPVisionModel(vision), "vision", arrays)
    keep("vision", model(cases.pixels(), **EVERYTHING), arrays)
    model = filled(transformers.FlaxCLIPModel(whole), "whole", arrays)
    keep("whole", model(ids, cases.pixels()), arrays)
    arrays["features:text"] = np.asarray(model.get_text_features(ids, mask))
    arrays["features:image"] = np.asarray(model.get_image_features(cases.pixels()))
    np.savez_compressed(sys.argv[1], **arrays)
    return 0


def filled(model: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Gives a model the parameters that the tests know too, and notes the shapes of its tree."""
    shapes = {path: array.shape for path, array in flattened(model.params).items()}
    arrays.update({f"shape:{name}:{path}": np.array(s, int) for path, s in shapes.items()})
    model.params = cases.random_params(shapes)
    return model


def keep(name: str, output: Any, arrays: dict[str, np.ndarray]) -> None:
    """Notes all results of a call, in order."""
    for field, value in output.items():
        if isinstance(value, tuple):
            arrays.update({f"{name}:{field}:{i}": np.asarray(x) for i, x in enumerate(value)})
        elif hasattr(value, "items"):
            keep(f"{name}:{field}", value, arrays)
        else:
            arrays[f"{name}:{field}"] = np.asarray(value, np.float32)


def flattened(tree: Any) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(tree, sep="/")


if __name__ == "__main__":
    sys.exit(main())
