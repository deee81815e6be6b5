"""Full-size models of OpenCLIP and Hugging Face against these libraries in float32.

Each model is the peer's own class with random weights of trained scale, saved in the peer's form
and read from there by us. Peer and ours run in processes of their own, one after the other, because
the largest model fills 10 GB.

    python -m benchmarks.parity_families --out benchmarks/results/parity.md
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report

MODELS_TITLE = "# Parity with OpenCLIP and transformers, full-size models"
TOWERS_TITLE = "# Parity with transformers, the text towers of diffusion pipelines"
FEATURES = 1e-5  # what is asked for
HELD_EQUAL = (
    f"Held equal: features within {FEATURES:g} (L2 of the difference over L2 of the peer's), and "
    f"arrays, which come back under the peer's names identical to the bit."
)
MODEL_COLUMNS = (
    "model",
    "peer",
    "image features, relative",
    "text features, relative",
    "arrays there and back",
    "passes",
)
TOWER_COLUMNS = ("text tower", "peer", "output", "relative", "arrays there and back", "passes")
# Of OpenCLIP: an architecture, and whether the weights are of a tag trained with QuickGELU.
OPEN_CLIP = {
    "RN50-quickgelu": True,
    "ViT-B-16-plus-240": False,
    "ViT-H-14": False,
    "ViT-g-14": False,
    "ViT-bigG-14": False,
}
# Of transformers: class, text and vision tower, and projection.
TEXT_L = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
TEXT_H = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_attention_heads=16,
    num_hidden_layers=23,
    hidden_act="gelu",
)
TEXT_BIGG = dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_attention_heads=20,
    num_hidden_layers=32,
    hidden_act="gelu",
    projection_dim=1280,
)
VISION_L = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_attention_heads=16,
    num_hidden_layers=24,
    patch_size=14,
)
HUGGING_FACE = {"openai/clip-vit-large-patch14": (TEXT_L, VISION_L, 768)}
# Text towers: class, configuration, the id of the padding, and the outputs that the pipeline uses.
TOWERS: dict[str, tuple[str, dict[str, Any], int, tuple[str, ...]]] = {
    "Stable Diffusion 1": ("CLIPTextModel", TEXT_L, 49407, ("last_hidden_state",)),
    "Stable Diffusion 2": ("CLIPTextModel", TEXT_H, 0, ("last_hidden_state",)),
    "Stable Diffusion XL, second": (
        "CLIPTextModelWithProjection",
        TEXT_BIGG,
        0,
        ("hidden_states[-2]", "text_embeds"),
    ),
    "Flux": ("CLIPTextModel", TEXT_L, 49407, ("pooler_output",)),
}
NAMES = (*OPEN_CLIP, *HUGGING_FACE, *TOWERS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--out", help="a Markdown file, in which this table is put or replaced")
    parser.add_argument(
        "--run", nargs=3, metavar=("SIDE", "NAME", "FOLDER"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.run:
        side, name, folder = arguments.run
        print(json.dumps((run_peer if side == "peer" else run_ours)(name, Path(folder))))
        return 0
    models = [name for name in arguments.models if name not in TOWERS]
    towers = [name for name in arguments.models if name in TOWERS]
    tables = []
    if models:
        rows = [_model_row(name, *compare(name)) for name in models]
        tables.append(rows)
        notes = f"Random weights of trained scale, two images, four captions. {HELD_EQUAL}"
        _write(MODELS_TITLE, notes, rows, MODEL_COLUMNS, arguments.out)
    if towers:
        rows = [row for name in towers for row in _tower_rows(name, *compare(name))]
        tables.append(rows)
        notes = (
            f"Random weights of trained scale, four captions with the pipeline's padding, and the "
            f"outputs that it uses. {HELD_EQUAL}"
        )
        _write(TOWERS_TITLE, notes, rows, TOWER_COLUMNS, arguments.out)
    return 0 if all(row[-1] == "yes" for rows in tables for row in rows) else 1


def compare(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the two processes of a model say."""
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = (_process(side, name, folder) for side in ("peer", "ours"))
    print(f"{name}: {theirs} {ours}", file=sys.stderr, flush=True)
    return theirs, ours


def _model_row(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[str, ...]:
    errors = ours["errors"].values()
    return (name, theirs["peer"], *map(_small, errors), *_verdict(max(errors), ours["identical"]))


def _tower_rows(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (name, theirs["peer"], f"`{what}`", _small(error), *_verdict(error, ours["identical"]))
        for what, error in ours["errors"].items()
    ]


def _small(error: float) -> str:
    return f"{error:.1e}"


def _verdict(error: float, identical: bool) -> tuple[str, str]:
    passes = error <= FEATURES and identical
    return "identical" if identical else "DIFFERENT", "yes" if passes else "NO"


def _write(
    title: str, notes: str, rows: list[tuple[str, ...]], columns: tuple[str, ...], out: str | None
) -> None:
    header = report.header("JAX on 1 x cpu")
    report.write_section(out, "\n\n".join([title, header, notes, report.table(rows, columns)]))


def _process(side: str, name: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.parity_families", "--run", side, name, folder]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


# --- the peer's process


def run_peer(name: str, folder: Path) -> dict[str, Any]:
    """Saves a random model, inputs, and the peer's outputs."""
    from clip_jax.parity.reference import quiet
    from tests import reference

    reference.clip()  # also puts torchvision on its feet, which the peers import
    with quiet(), reference.torch().inference_mode():
        if name in OPEN_CLIP:
            peer, inputs, outputs = _open_clip(name, folder)
        elif name in HUGGING_FACE:
            peer, inputs, outputs = _hugging_face(name, folder)
        else:
            peer, inputs, outputs = _tower(name, folder)
    arrays = {f"in {key}": value for key, value in inputs.items()}
    arrays |= {f"out {key}": value.numpy() for key, value in outputs.items()}
    np.savez(folder / "arrays.npz", **arrays)
    return {"peer": peer, "peak": _peak()}


def _open_clip(name: str, folder: Path) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    model = save_open_clip(name, folder / "model")
    size = model.visual.image_size
    inputs = _inputs(size if isinstance(size, int) else size[0])
    images, tokens = _tensors(inputs)
    outputs = {
        "image features": model.encode_image(images),
        "text features": model.encode_text(tokens),
    }
    return "open_clip", inputs, outputs


def save_open_clip(name: str, folder: Path) -> Any:
    """Saves a random model of OpenCLIP's in the form that it has on the Hub; returns it."""
    import open_clip
    from safetensors.torch import save_file

    document = open_clip.get_model_config(name)
    model = _random(_empty(lambda: open_clip.CLIP(**document)))
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": document, "preprocess_cfg": {}})
    )
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


def _hugging_face(name: str, folder: Path) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    model = save_huggingface(name, folder / "model")
    inputs = _inputs(224)
    images, tokens = _tensors(inputs)
    outputs = {
        "image features": model.get_image_features(pixel_values=images).pooler_output,
        "text features": model.get_text_features(input_ids=tokens).pooler_output,
    }
    return "CLIPModel", inputs, outputs


def save_huggingface(name: str, folder: Path) -> Any:
    """Saves a random model of transformers' in the form that it has on the Hub; returns it."""
    import transformers

    text, vision, projection = HUGGING_FACE[name]
    config = transformers.CLIPConfig(
        text_config={**text, "projection_dim": projection},
        vision_config={**vision, "projection_dim": projection},
        projection_dim=projection,
    )
    model = _random(_empty(lambda: transformers.CLIPModel(config)))
    model.save_pretrained(folder)
    return model


def _tower(name: str, folder: Path) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    import transformers

    kind, text, pad, wanted = TOWERS[name]
    config = transformers.CLIPTextConfig(**text, eos_token_id=2)  # as these pipelines' files say
    model = _random(_empty(lambda: getattr(transformers, kind)(config)))
    model.save_pretrained(folder / "model")
    tokens = _inputs(224)["tokens"]
    ended = (tokens == 49407).cumsum(1) > 0
    tokens[ended & (tokens != 49407)] = pad
    given = model(input_ids=_long(tokens), output_hidden_states=True, return_dict=True)
    outputs = {
        what: given.hidden_states[-2] if what == "hidden_states[-2]" else given[what]
        for what in wanted
    }
    return kind, {"tokens": tokens}, outputs


def _empty(build: Any) -> Any:
    """A model whose own start, which takes minutes, is left out."""
    from tests import reference

    torch = reference.torch()
    names = [name for name in dir(torch.nn.init) if name.endswith("_") and name[0] != "_"]
    kept = {name: getattr(torch.nn.init, name) for name in names}
    try:
        for name in names:
            setattr(torch.nn.init, name, lambda tensor, *args, **options: tensor)
        return build().float().eval()
    finally:
        for name, function in kept.items():
            setattr(torch.nn.init, name, function)


def _random(model: Any) -> Any:
    """Fills a model in place with weights of trained scale, as `tests.reference.randomize` does."""
    from tests import reference

    torch = reference.torch()
    generator = torch.Generator().manual_seed(3)
    for name, x in model.state_dict().items():  # without masks, which are not stored
        owner, _, leaf = name.rpartition(".")
        layer = owner.rpartition(".")[2]
        is_norm = re.match(r"bn|ln|layer_norm|layernorm", layer) or re.search(
            r"norm$|downsample\.1$", owner
        )
        if name == "logit_scale":
            x.fill_(4.6052)  # ln 100, as trained
        elif leaf == "running_mean":
            x.normal_(0, 0.15, generator=generator)
        elif leaf == "running_var":
            x.uniform_(0.5, 1.5, generator=generator)
        elif leaf == "num_batches_tracked":
            x.fill_(1000)
        elif is_norm and leaf == "weight":
            is_last = layer == "bn3" and ".layer" in name
            x.uniform_(*((0.15, 0.35) if is_last else (0.6, 1.4)), generator=generator)
        elif leaf.endswith("bias"):
            x.normal_(0, 0.1, generator=generator)
        elif "embedding" in layer and "patch" not in layer or "embedding" in leaf:
            x.normal_(0, 0.2, generator=generator)
        elif leaf in ("proj", "text_projection"):
            x.normal_(0, x.shape[0] ** -0.5, generator=generator)
        elif x.ndim == 4:  # a ReLU halves the second moment of a convolution's input
            x.normal_(0, (2.0 / x[0].numel()) ** 0.5, generator=generator)
        else:
            x.normal_(0, x.shape[1] ** -0.5, generator=generator)
    return model


def _inputs(size: int) -> dict[str, np.ndarray]:
    from tests.models import MEAN, STD, random_images, random_tokens

    pixels = random_images(2, size, seed=1).astype(np.float32) / np.float32(255)
    images = (pixels - np.float32(MEAN)) / np.float32(STD)
    return {"images": images, "tokens": random_tokens(4, seed=2)}


def _tensors(inputs: dict[str, np.ndarray]) -> tuple[Any, Any]:
    from tests import reference

    images = np.ascontiguousarray(inputs["images"].transpose(0, 3, 1, 2))
    return reference.torch().from_numpy(images), _long(inputs["tokens"])


def _long(tokens: np.ndarray) -> Any:
    from tests import reference

    return reference.torch().from_numpy(tokens).long()


# --- our process


def run_ours(name: str, folder: Path) -> dict[str, Any]:
    """Loads what the peer has saved, and compares outputs and arrays."""
    from tests.models import relative_error

    with np.load(folder / "arrays.npz") as file:
        arrays = dict(file)
    given = (_tower_outputs if name in TOWERS else _features)(name, folder / "model", arrays)
    errors = {what: relative_error(x, arrays[f"out {what}"]) for what, x in given.items()}
    peak = _peak()
    identical = there_and_back(name, folder / "model")
    return {"errors": errors, "identical": identical, "peak": peak}


def _features(name: str, folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    import clip_jax

    model, _ = clip_jax.load(folder)
    return {
        "image features": np.asarray(model.encode_image(arrays["in images"])),
        "text features": np.asarray(model.encode_text(arrays["in tokens"])),
    }


def _tower_outputs(name: str, folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    import clip_jax

    model, _ = clip_jax.load_text_model(folder)
    wanted = TOWERS[name][-1]
    given = model(arrays["in tokens"], hidden_states="hidden_states[-2]" in wanted)
    return {
        what: given.hidden_states[-2] if what == "hidden_states[-2]" else getattr(given, what)
        for what in wanted
    }


def there_and_back(name: str, folder: Path) -> bool:
    """Whether our tree, under the peer's names again, is what the peer's file holds."""
    from clip_jax.convert import from_huggingface, from_open_clip
    from clip_jax.convert.folder import read_folder
    from clip_jax.convert.huggingface_towers import read_text_tower
    from clip_jax.convert.rules import HUGGING_FACE, spelled, target_to_source
    from clip_jax.convert.rules import OPEN_CLIP as OPEN_CLIPS
    from clip_jax.nn import flatten

    if name in OPEN_CLIP:
        family, table, (_, params) = "open_clip", OPEN_CLIPS, from_open_clip(folder)
    elif name in TOWERS:
        family, table, (*_, params) = "huggingface", HUGGING_FACE, read_text_tower(folder)
    else:
        family, table, (_, params) = "huggingface", HUGGING_FACE, from_huggingface(folder)
    stored, seen = read_folder(folder, family), set()
    for path, array in flatten(params).items():  # one by one, as all would fill the memory
        rule, names = target_to_source(path, table)
        for key, back in zip(spelled(names), rule.to_theirs(array), strict=True):
            there = stored[key] if key in stored else stored[key.removeprefix("text_model.")]
            if back.dtype != there.dtype or back.tobytes() != there.tobytes():
                return False
            seen.add(key)
    return len(seen) == len(stored)


if __name__ == "__main__":
    sys.exit(main())
