"""The same models by PyTorch: transformers' CLIPModel with SDPA, eager and compiled.

Where PyTorch or transformers isn't installed, everything here raises `NotHere`, as the rows say. A
ResNet is timm's, with weights of its own, since transformers has none.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.accelerator import keep, models
from benchmarks.accelerator.cases import NotHere
from benchmarks.accelerator.ours import COMPARED
from benchmarks.accelerator.timing import Contender
from clip_jax.config import CLIPConfig, ViTConfig
from clip_jax.parity.reference import import_reference, quiet

_torch: Any = None
_Config: Any = None
_Model: Any = None
try:
    import torch as _torch

    # A torchvision for CUDA beside a PyTorch for CPUs can't be imported as it comes.
    with contextlib.suppress(Exception):  # whether it is needed, transformers knows
        import_reference()
    with quiet():
        from transformers import CLIPConfig as _Config
        from transformers import CLIPModel as _Model
    _missing = None
except Exception as error:  # transformers is imported piece by piece, and says so in many ways
    _missing = f"{type(error).__name__}: {error}".splitlines()[0]

# From the official names of arrays to transformers'.
_NAMES = (
    (r"^visual\.", "vision_model."),
    (r"^(transformer|ln_final|token_embedding|positional_embedding)", r"text_model.\1"),
    (r"transformer\.resblocks", "encoder.layers"),
    (r"\bln_pre\b", "pre_layrnorm"),
    (r"\bln_post\b", "post_layernorm"),
    (r"\bln_final\b", "final_layer_norm"),
    (r"\bln_([12])\b", r"layer_norm\1"),
    (r"\.attn\.", ".self_attn."),
    (r"\bmlp\.c_fc\b", "mlp.fc1"),
    (r"\bmlp\.c_proj\b", "mlp.fc2"),
    (r"\btoken_embedding\b", "embeddings.token_embedding"),
    (r"\bpositional_embedding\b", "embeddings.position_embedding.weight"),
    (r"\bconv1\b", "embeddings.patch_embedding"),
    (r"\bclass_embedding\b", "embeddings.class_embedding"),
)


def torch() -> Any:
    """The module.

    Raises:
        NotHere: it or transformers isn't installed.
    """
    if _missing:
        raise NotHere(_missing)
    return _torch


def device() -> str:
    """Where the peers compute."""
    return "cuda" if torch().cuda.is_available() else "cpu"


def synchronize() -> None:
    """Waits for everything that PyTorch has begun."""
    if torch().cuda.is_available():
        torch().cuda.synchronize()


def model_of(name: str, tiny: bool, dtype: str, where: str | None = None) -> Any:
    """The CLIPModel of a name with the weights that ours has.

    Args:
        name: of the model.
        tiny: whether its small stand-in.
        dtype: of all its arrays, "float32", "bfloat16" or "float64".
        where: "cpu" or "cuda"; where PyTorch computes, if it isn't said.

    Raises:
        NotHere: PyTorch or transformers isn't installed, or has no such model.
    """
    where = where or device()
    config = models.config_of(name, tiny)

    def make() -> Any:
        model = build(config, where)
        arrays = _arrays(config, models.tree_of(name, tiny))
        state = {key: torch().from_numpy(array) for key, array in arrays.items()}
        model.load_state_dict(state)
        return model.to(getattr(torch(), dtype))

    return keep.once(("torch", name, dtype, where), make)


def build(config: CLIPConfig, where: str) -> Any:
    """The CLIPModel of a configuration, with SDPA, made on a device, in evaluation.

    Raises:
        NotHere: PyTorch or transformers isn't installed, or has no such model.
    """
    torch()
    vision, text = config.vision, config.text
    if not isinstance(vision, ViTConfig):
        raise NotHere("transformers' CLIPModel has no ResNet")
    common = {"hidden_act": config.activation, "projection_dim": config.embed_dim}

    def tower(part: Any) -> dict[str, Any]:
        return {
            "hidden_size": part.width,
            "intermediate_size": 4 * part.width,
            "num_hidden_layers": part.num_layers,
            "num_attention_heads": part.num_heads,
            **common,
        }

    numbers = _Config(
        projection_dim=config.embed_dim,
        text_config={
            **tower(text),
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "eos_token_id": text.vocab_size - 1,
        },
        vision_config={
            **tower(vision),
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
        attn_implementation="sdpa",
    )
    with quiet(), torch().device(where):
        return _Model(numbers).eval()


def image_features(model: Any) -> Callable[[Any], Any]:
    """Normalised pixels (b, 3, n, n) to embeddings."""
    return lambda pixels: model.visual_projection(
        model.vision_model(pixel_values=pixels).pooler_output
    )


def text_features(model: Any) -> Callable[[Any], Any]:
    """Token ids (b, l) to embeddings."""
    return lambda ids: model.text_projection(model.text_model(input_ids=ids).pooler_output)


def resnet(dtype: str) -> Callable[[Any], Any]:
    """The ResNet-50 of CLIP that timm has, with weights of its own.

    Raises:
        NotHere: PyTorch or timm isn't installed.
    """
    torch()
    try:
        import timm
    except Exception as error:
        raise NotHere(f"timm can't be imported: {error}") from None

    def make() -> Any:
        with quiet(), torch().device(device()):
            model: Any = timm.create_model("resnet50_clip", pretrained=False, num_classes=1024)
        model = model.eval().to(getattr(torch(), dtype))
        return model.to(memory_format=torch().channels_last)

    return keep.once(("timm", dtype), make)


def compiled(function: Callable, tiny: bool, mode: str | None = None) -> Callable:
    """A function through `torch.compile`; tiny, by a back-end that takes no time."""
    if tiny:
        return torch().compile(function, dynamic=False, backend="eager")
    return torch().compile(function, dynamic=False, mode=mode)


@contextlib.contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """Within, float32 products are PyTorch's "highest", or "high", which is TF32; cuDNN's too."""
    before = torch().get_float32_matmul_precision(), torch().backends.cudnn.allow_tf32
    torch().set_float32_matmul_precision(precision)
    torch().backends.cudnn.allow_tf32 = precision != "highest"
    try:
        yield
    finally:
        torch().set_float32_matmul_precision(before[0])
        torch().backends.cudnn.allow_tf32 = before[1]


def planes(pixels: np.ndarray, dtype: str) -> Any:
    """Pixels as PyTorch's models take them, normalised, on their device, in a dtype."""
    x = np.ascontiguousarray(models.normalized(pixels).transpose(0, 3, 1, 2))
    return torch().from_numpy(x).to(device(), getattr(torch(), dtype))


def on_device(name: str, function: Callable, inputs: Any, *, compiles: bool = False) -> Contender:
    """A contender whose inputs lie on the device and whose results stay there.

    Args:
        name: of the contender.
        function: from inputs to embeddings.
        inputs: a batch.
        compiles: whether the first call does, whose time is then that of compiling.
    """
    begin = time.perf_counter()
    with torch().inference_mode():
        features = function(inputs)[:COMPARED].float().cpu().numpy()
    seconds = time.perf_counter() - begin

    def run(calls: int) -> None:
        with torch().inference_mode():
            for _ in range(calls):
                function(inputs)
        synchronize()

    return Contender(name, run, len(inputs), features, seconds if compiles else None)


def over_pixels(function: Callable, dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """From pixels on the host to embeddings on the host; bytes travel, as with ours."""
    from clip_jax.nn import MEAN, STD

    where, kind = device(), getattr(torch(), dtype)
    mean, std = (torch().tensor(value, device=where) for value in (MEAN, STD))

    def encode(pixels: np.ndarray) -> np.ndarray:
        with torch().inference_mode():
            x = torch().from_numpy(pixels).to(where, non_blocking=True)
            x = ((x.float() / 255 - mean) / std).to(kind).permute(0, 3, 1, 2)
            return function(x).float().cpu().numpy()

    return encode


def _arrays(config: CLIPConfig, tree: Any) -> dict[str, np.ndarray]:
    """A public tree by transformers' names, the joint projection in three."""
    from clip_jax.convert import to_pytorch

    found: dict[str, np.ndarray] = {}
    for official, array in to_pytorch(config, tree).items():
        array = np.array(array, np.float32)
        if official == "visual.proj":
            found["visual_projection.weight"] = np.ascontiguousarray(array.T)
        elif official == "text_projection":
            found["text_projection.weight"] = np.ascontiguousarray(array.T)
        elif official == "logit_scale":
            found[official] = array
        else:
            name = official
            for pattern, theirs in _NAMES:
                name = re.sub(pattern, theirs, name)
            if match := re.fullmatch(r"(.*)\.in_proj_(weight|bias)", name):
                for letter, part in zip("qkv", np.split(array, 3), strict=True):
                    found[f"{match[1]}.{letter}_proj.{match[2]}"] = part
            else:
                found[name] = array
    return found
