"""OpenCLIP's architectures and pretrained tags: `ViT-H-14/dfn5b` and what its weights need.

The facts are those of open_clip 3.3's own tables; a test compares all of them, so that a new
release shows. Weights of the same architecture differ in what they were trained with, and a wrong
activation or mean gives embeddings that look right: so each tag has its own.
"""

import copy
import dataclasses
import difflib
import functools
import re
from collections.abc import Iterator
from typing import Any

from clip_jax.messages import some
from clip_jax.siglip_catalog import REPOSITORIES, siglip_architectures

_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)

_RELEASES = "https://github.com/mlfoundations/open_clip/releases/download/"
_TWIN = "-quickgelu"  # the name of an architecture that says its activation

# Architectures that are none of ours, by the beginnings of their names.
_REFUSED = {
    r"ViT-.*SigLIP.*NaFlex": "is a NaFlex model, for images of any shape",
    r"coca_": "is a CoCa model, with a text decoder",
    r"convnext_": "has a ConvNeXt tower of timm",
    r"EVA0[12]-": "has an EVA tower of timm",
    r"ViTamin-": "has a ViTamin tower of timm",
    r"MobileCLIP": "has a MobileCLIP tower",
    r"PE-Core-": "has a PE-Core tower of timm",
    r"(swin|vit)_": "has a tower of timm",
    r"((xlm-)?roberta|mt5)-.*ViT": "has a text tower of Hugging Face",
    r"nllb-clip": "has a text tower of Hugging Face",
}


@dataclasses.dataclass(frozen=True)
class PretrainedTag:
    """Weights that OpenCLIP has a name for.

    Attributes:
        architecture: OpenCLIP's name of the architecture, a key of `architectures()`.
        tag: OpenCLIP's name of the weights.
        repository: the Hub's repository that holds them; None if none does.
        url: where the file is, if it is in no repository.
        quick_gelu: whether they were trained with QuickGELU; else with the exact or the tanh GELU.
        mean: the mean of the training pixels: red, green, blue, on the scale 0 to 1.
        std: their standard deviation.
        interpolation: the filter of the resizing, "bicubic" or "bilinear".
        resize: how a picture became a square, "shortest" or "squash".
    """

    architecture: str
    tag: str
    repository: str | None
    url: str | None
    quick_gelu: bool
    mean: tuple[float, float, float] = _OPENAI_MEAN
    std: tuple[float, float, float] = _OPENAI_STD
    interpolation: str = "bicubic"
    resize: str = "shortest"

    @property
    def name(self) -> str:
        """The name for `load`."""
        return f"{self.architecture}/{self.tag}"

    @property
    def activation(self) -> str:
        """The activation that they were trained with."""
        other = "gelu_tanh" if self.architecture in siglip_architectures() else "gelu"
        return "quick_gelu" if self.quick_gelu else other

    def open_clip_config(self) -> dict[str, Any]:
        """Returns what `open_clip_config.json` would say of these weights, as a copy to change."""
        model = copy.deepcopy(architectures()[self.architecture])
        model["quick_gelu"] = self.quick_gelu
        size = model["vision_cfg"]["image_size"]
        pixels = {"mean": self.mean, "std": self.std, "interpolation": self.interpolation}
        return {
            "model_cfg": model,
            "preprocess_cfg": {"size": size, **pixels, "resize_mode": self.resize},
        }


def lookup_tag(name: str) -> PretrainedTag | None:
    """Returns the tag of a name such as `ViT-H-14/dfn5b`, or `ViT-H-14-quickgelu/dfn5b`.

    Returns:
        The tag; None if the name has the form of neither an architecture of OpenCLIP's nor a tag.

    Raises:
        ValueError: the architecture has no such tag, is none that can be read, or is unknown before
            a tag that is known.
    """
    architecture, _, tag = name.partition("/")
    for beginning, what in _REFUSED.items():
        if re.match(beginning, architecture):
            raise ValueError(
                f"{name}: OpenCLIP's {architecture} {what}, which is not read, expected a Vision "
                f"Transformer or a ModifiedResNet with CLIP's text tower: `clip-jax models --all` "
                f"lists them"
            )
    if architecture not in architectures():
        known = {known.tag for known in pretrained_tags()}
        if tag in known and re.match(r"ViT-|RN\d", architecture, re.IGNORECASE):
            near = difflib.get_close_matches(architecture, architectures(), n=3)
            hint = f"did you mean {some(near)}? " if near else ""
            raise ValueError(
                f"{name}: OpenCLIP has no architecture {architecture!r} that is read here: "
                f"{hint}`clip-jax models --all` lists them"
            )
        return None
    found = {known.tag: known for known in pretrained_tags(architecture)}
    if tag in found:
        return found[tag]
    near = difflib.get_close_matches(tag, found, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"{name}: OpenCLIP has no weights of {architecture} by the tag {tag!r}: {hint}known: "
        f"{some(found, 30) or 'none'}"
    )


@functools.cache
def pretrained_tags(architecture: str | None = None) -> tuple[PretrainedTag, ...]:
    """Returns all tags of OpenCLIP's that can be read, or those of one architecture.

    An architecture whose name ends with `-quickgelu` has the tags of its namesake that were trained
    with QuickGELU; they are listed for it alone.
    """
    if architecture is None:
        return tuple(_all_tags())
    base = architecture.removesuffix(_TWIN)
    return tuple(
        dataclasses.replace(tag, architecture=architecture)
        for tag in pretrained_tags()
        if tag.architecture == base and (tag.quick_gelu or base == architecture)
    )


def _all_tags() -> Iterator[PretrainedTag]:
    architecture = ""
    for line in _TAGS.strip().splitlines():
        if line.startswith(" "):
            yield _tag(architecture, *line.split())
        else:
            architecture = line
    for name in siglip_architectures():
        repository = REPOSITORIES.get(name, f"timm/{name}")
        yield PretrainedTag(name, "webli", repository, None, False, _HALF, _HALF, resize="squash")


def _tag(architecture: str, activation: str, tag: str, place: str) -> PretrainedTag:
    others: dict[str, Any] = {}
    if "-CLIPA" in architecture:
        others = {"mean": _IMAGENET_MEAN, "std": _IMAGENET_STD, "interpolation": "bilinear"}
    elif (architecture, tag) == ("ViT-L-14", "laion2b_s32b_b82k"):
        others = {"mean": _HALF, "std": _HALF}
    if "-CLIPA" in architecture or tag == "dfn5b" or architecture.endswith("worldwide-378"):
        others["resize"] = "squash"
    file = place.partition("release:")[2]
    repository, url = (None, _RELEASES + file) if file else (place, None)
    return PretrainedTag(architecture, tag, repository, url, activation == "Q", **others)


@functools.cache
def architectures() -> dict[str, dict[str, Any]]:
    """Returns the `model_cfg` of each architecture by OpenCLIP's name; don't change them."""
    found = {
        name: _model(embed_dim, _TEXTS[text], image_size=size, layers=layers, width=width, **others)
        for name, (embed_dim, size, layers, width, others, text) in _ARCHITECTURES.items()
    }
    for base in ("ViT-L-14", "ViT-H-14", "ViT-bigG-14"):
        found[f"{base}-CLIPA"] = _with(found[base], _CLIPA_VISION, _CLIPA_TEXT)
        found[f"{base}-CLIPA-336"] = _with(
            found[base], {**_CLIPA_VISION, "image_size": 336}, _CLIPA_TEXT
        )
    for base in ("ViT-H-14", "ViT-bigG-14"):
        found[f"{base}-worldwide"] = _with(found[base], {}, _XLM_V)
        found[f"{base}-worldwide-378"] = _with(found[base], {"image_size": 378}, _XLM_V)
    found["ViT-L-14-worldwide"] = _with(found["ViT-L-14"], {}, _MT5)
    found |= siglip_architectures()
    return found | {name + _TWIN: {**found[name], "quick_gelu": True} for name in _TWINS}


def _model(embed_dim: int, text: tuple[int, int, int], **vision: Any) -> dict[str, Any]:
    width, heads, layers = text
    lengths = {"context_length": 77, "vocab_size": 49408}
    return {
        "embed_dim": embed_dim,
        "vision_cfg": vision,
        "text_cfg": {**lengths, "width": width, "heads": heads, "layers": layers},
    }


def _with(model: dict[str, Any], vision: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    return {
        **model,
        "vision_cfg": {**model["vision_cfg"], **vision},
        "text_cfg": {**model["text_cfg"], **text},
    }


# Width, heads and layers of the text towers.
_TEXTS = {
    "S-alt": (256, 4, 10),
    "S": (384, 6, 12),
    "B": (512, 8, 12),
    "plus": (640, 10, 12),
    "L": (768, 12, 12),
    "H": (1024, 16, 24),
    "x64": (1024, 16, 12),
    "bigG": (1280, 20, 32),
    "e": (1280, 20, 36),
}

_P32, _P16, _P14 = {"patch_size": 32}, {"patch_size": 16}, {"patch_size": 14}
_H16, _H14 = {"head_width": 80, "patch_size": 16}, {"head_width": 80, "patch_size": 14}
_G14 = {"head_width": 88, "mlp_ratio": 4.3637, "patch_size": 14}
_BIGG14 = {"head_width": 104, "mlp_ratio": 4.9231, "patch_size": 14}
_E14 = {"head_width": 112, "mlp_ratio": 8.5715, "patch_size": 14}
_NO_PATCH = {"patch_size": None}

# Embedding size, image size, layers, width, other numbers of the vision tower, and text tower.
_ARCHITECTURES: dict[str, tuple[int, int, int | list[int], int, dict[str, Any], str]] = {
    "RN50": (1024, 224, [3, 4, 6, 3], 64, _NO_PATCH, "B"),
    "RN101": (512, 224, [3, 4, 23, 3], 64, _NO_PATCH, "B"),
    "RN50x4": (640, 288, [4, 6, 10, 6], 80, _NO_PATCH, "plus"),
    "RN50x16": (768, 384, [6, 8, 18, 8], 96, _NO_PATCH, "L"),
    "RN50x64": (1024, 448, [3, 15, 36, 10], 128, _NO_PATCH, "x64"),
    "ViT-S-32": (384, 224, 12, 384, _P32, "S"),
    "ViT-S-16": (384, 224, 12, 384, _P16, "S"),
    "ViT-S-32-alt": (256, 224, 12, 384, _P32, "S-alt"),
    "ViT-S-16-alt": (256, 224, 12, 384, _P16, "S-alt"),
    "ViT-M-32": (512, 224, 12, 512, _P32, "B"),
    "ViT-M-16": (512, 224, 12, 512, _P16, "B"),
    "ViT-M-32-alt": (384, 224, 12, 512, _P32, "S"),
    "ViT-M-16-alt": (384, 224, 12, 512, {"patch_size": 16, "ls_init_value": 1e-4}, "S"),
    "ViT-B-32": (512, 224, 12, 768, _P32, "B"),
    "ViT-B-32-256": (512, 256, 12, 768, _P32, "B"),
    "ViT-B-32-plus-256": (640, 256, 12, 896, _P32, "plus"),
    "ViT-B-16": (512, 224, 12, 768, _P16, "B"),
    "ViT-B-16-plus": (640, 224, 12, 896, _P16, "plus"),
    "ViT-B-16-plus-240": (640, 240, 12, 896, _P16, "plus"),
    "ViT-L-16": (768, 224, 24, 1024, _P16, "L"),
    "ViT-L-16-320": (768, 320, 24, 1024, _P16, "L"),
    "ViT-L-14": (768, 224, 24, 1024, _P14, "L"),
    "ViT-L-14-280": (768, 280, 24, 1024, _P14, "L"),
    "ViT-L-14-336": (768, 336, 24, 1024, _P14, "L"),
    "ViT-H-16": (1024, 224, 32, 1280, _H16, "H"),
    "ViT-H-14": (1024, 224, 32, 1280, _H14, "H"),
    "ViT-H-14-378": (1024, 378, 32, 1280, _H14, "H"),
    "ViT-g-14": (1024, 224, 40, 1408, _G14, "H"),
    "ViT-bigG-14": (1280, 224, 48, 1664, _BIGG14, "bigG"),
    "ViT-e-14": (1280, 224, 56, 1792, _E14, "e"),
}

_CLIPA_VISION = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
_CLIPA_TEXT = {
    "context_length": 32,
    "vocab_size": 32000,
    "hf_tokenizer_name": "bert-base-uncased",
    "tokenizer_kwargs": {"strip_sep_token": True},
    "pool_type": "last",
    "no_causal_mask": True,
}
_XLM_V = {
    "hf_tokenizer_name": "facebook/xlm-v-base",
    "pool_type": "eos",
    "eos_id": 2,
    "vocab_size": 901629,
}
_MT5 = {
    "hf_tokenizer_name": "google/mt5-base",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "pool_type": "eos",
    "eos_id": 1,
    "vocab_size": 250100,
}

_TWINS = (
    *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14"),
    *("ViT-L-14-336", "ViT-H-14", "ViT-H-14-378", "ViT-bigG-14"),
    *("ViT-L-14-worldwide", "ViT-H-14-worldwide"),
)

# For each architecture: Q for QuickGELU or G for exact GELU, tag, the Hub's repository. The Hub has
# no copy of the one release: OpenCLIP's table sends its tag to the weights of e31.
_TAGS = """
RN50
  Q openai                        timm/resnet50_clip.openai
  Q yfcc15m                       timm/resnet50_clip.yfcc15m
  Q cc12m                         timm/resnet50_clip.cc12m
RN101
  Q openai                        timm/resnet101_clip.openai
  Q yfcc15m                       timm/resnet101_clip.yfcc15m
RN50x4
  Q openai                        timm/resnet50x4_clip.openai
RN50x16
  Q openai                        timm/resnet50x16_clip.openai
RN50x64
  Q openai                        timm/resnet50x64_clip.openai
ViT-B-32
  Q openai                        timm/vit_base_patch32_clip_224.openai
  Q laion400m_e31                 timm/vit_base_patch32_clip_224.laion400m_e31
  Q laion400m_e32                 timm/vit_base_patch32_clip_224.laion400m_e32
  G laion2b_e16                   timm/vit_base_patch32_clip_224.laion2b_e16
  G laion2b_s34b_b79k             laion/CLIP-ViT-B-32-laion2B-s34B-b79K
  G datacomp_xl_s13b_b90k         laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K
  G datacomp_m_s128m_b4k          laion/CLIP-ViT-B-32-DataComp.M-s128M-b4K
  G commonpool_m_clip_s128m_b4k   laion/CLIP-ViT-B-32-CommonPool.M.clip-s128M-b4K
  G commonpool_m_laion_s128m_b4k  laion/CLIP-ViT-B-32-CommonPool.M.laion-s128M-b4K
  G commonpool_m_image_s128m_b4k  laion/CLIP-ViT-B-32-CommonPool.M.image-s128M-b4K
  G commonpool_m_text_s128m_b4k   laion/CLIP-ViT-B-32-CommonPool.M.text-s128M-b4K
  G commonpool_m_basic_s128m_b4k  laion/CLIP-ViT-B-32-CommonPool.M.basic-s128M-b4K
  G commonpool_m_s128m_b4k        laion/CLIP-ViT-B-32-CommonPool.M-s128M-b4K
  G datacomp_s_s13m_b4k           laion/CLIP-ViT-B-32-DataComp.S-s13M-b4K
  G commonpool_s_clip_s13m_b4k    laion/CLIP-ViT-B-32-CommonPool.S.clip-s13M-b4K
  G commonpool_s_laion_s13m_b4k   laion/CLIP-ViT-B-32-CommonPool.S.laion-s13M-b4K
  G commonpool_s_image_s13m_b4k   laion/CLIP-ViT-B-32-CommonPool.S.image-s13M-b4K
  G commonpool_s_text_s13m_b4k    laion/CLIP-ViT-B-32-CommonPool.S.text-s13M-b4K
  G commonpool_s_basic_s13m_b4k   laion/CLIP-ViT-B-32-CommonPool.S.basic-s13M-b4K
  G commonpool_s_s13m_b4k         laion/CLIP-ViT-B-32-CommonPool.S-s13M-b4K
  Q metaclip_400m                 timm/vit_base_patch32_clip_224.metaclip_400m
  Q metaclip_fullcc               timm/vit_base_patch32_clip_224.metaclip_2pt5b
ViT-B-32-256
  G datacomp_s34b_b86k            laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K
ViT-B-16
  Q openai                        timm/vit_base_patch16_clip_224.openai
  G laion400m_e31                 timm/vit_base_patch16_clip_224.laion400m_e31
  G laion400m_e32                 timm/vit_base_patch16_clip_224.laion400m_e32
  G laion2b_s34b_b88k             laion/CLIP-ViT-B-16-laion2B-s34B-b88K
  G datacomp_xl_s13b_b90k         laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K
  G datacomp_l_s1b_b8k            laion/CLIP-ViT-B-16-DataComp.L-s1B-b8K
  G commonpool_l_clip_s1b_b8k     laion/CLIP-ViT-B-16-CommonPool.L.clip-s1B-b8K
  G commonpool_l_laion_s1b_b8k    laion/CLIP-ViT-B-16-CommonPool.L.laion-s1B-b8K
  G commonpool_l_image_s1b_b8k    laion/CLIP-ViT-B-16-CommonPool.L.image-s1B-b8K
  G commonpool_l_text_s1b_b8k     laion/CLIP-ViT-B-16-CommonPool.L.text-s1B-b8K
  G commonpool_l_basic_s1b_b8k    laion/CLIP-ViT-B-16-CommonPool.L.basic-s1B-b8K
  G commonpool_l_s1b_b8k          laion/CLIP-ViT-B-16-CommonPool.L-s1B-b8K
  Q dfn2b                         apple/DFN2B-CLIP-ViT-B-16
  Q metaclip_400m                 timm/vit_base_patch16_clip_224.metaclip_400m
  Q metaclip_fullcc               timm/vit_base_patch16_clip_224.metaclip_2pt5b
ViT-B-16-plus-240
  G laion400m_e31                 timm/vit_base_patch16_plus_clip_240.laion400m_e31
  G laion400m_e32                 release:v0.2-weights/vit_b_16_plus_240-laion400m_e32-699c4b84.pt
ViT-L-14
  Q openai                        timm/vit_large_patch14_clip_224.openai
  G laion400m_e31                 timm/vit_large_patch14_clip_224.laion400m_e31
  G laion400m_e32                 timm/vit_large_patch14_clip_224.laion400m_e32
  G laion2b_s32b_b82k             laion/CLIP-ViT-L-14-laion2B-s32B-b82K
  G datacomp_xl_s13b_b90k         laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K
  G commonpool_xl_clip_s13b_b90k  laion/CLIP-ViT-L-14-CommonPool.XL.clip-s13B-b90K
  G commonpool_xl_laion_s13b_b90k laion/CLIP-ViT-L-14-CommonPool.XL.laion-s13B-b90K
  G commonpool_xl_s13b_b90k       laion/CLIP-ViT-L-14-CommonPool.XL-s13B-b90K
  Q metaclip_400m                 timm/vit_large_patch14_clip_224.metaclip_400m
  Q metaclip_fullcc               timm/vit_large_patch14_clip_224.metaclip_2pt5b
  Q dfn2b                         apple/DFN2B-CLIP-ViT-L-14
  G dfn2b_s39b                    apple/DFN2B-CLIP-ViT-L-14-39B
ViT-L-14-336
  Q openai                        timm/vit_large_patch14_clip_336.openai
ViT-H-14
  G laion2b_s32b_b79k             laion/CLIP-ViT-H-14-laion2B-s32B-b79K
  Q metaclip_fullcc               timm/vit_huge_patch14_clip_224.metaclip_2pt5b
  G metaclip_altogether           timm/vit_huge_patch14_clip_224.metaclip_altogether
  Q dfn5b                         apple/DFN5B-CLIP-ViT-H-14
ViT-H-14-378
  Q dfn5b                         apple/DFN5B-CLIP-ViT-H-14-378
ViT-g-14
  G laion2b_s12b_b42k             laion/CLIP-ViT-g-14-laion2B-s12B-b42K
  G laion2b_s34b_b88k             laion/CLIP-ViT-g-14-laion2B-s34B-b88K
ViT-bigG-14
  G laion2b_s39b_b160k            laion/CLIP-ViT-bigG-14-laion2B-39B-b160k
  Q metaclip_fullcc               timm/vit_gigantic_patch14_clip_224.metaclip_2pt5b
ViT-L-14-CLIPA
  G datacomp1b                    UCSC-VLAA/ViT-L-14-CLIPA-datacomp1B
ViT-L-14-CLIPA-336
  G datacomp1b                    UCSC-VLAA/ViT-L-14-CLIPA-336-datacomp1B
ViT-H-14-CLIPA
  G datacomp1b                    UCSC-VLAA/ViT-H-14-CLIPA-datacomp1B
ViT-H-14-CLIPA-336
  G laion2b                       UCSC-VLAA/ViT-H-14-CLIPA-336-laion2B
  G datacomp1b                    UCSC-VLAA/ViT-H-14-CLIPA-336-datacomp1B
ViT-bigG-14-CLIPA
  G datacomp1b                    UCSC-VLAA/ViT-bigG-14-CLIPA-datacomp1B
ViT-bigG-14-CLIPA-336
  G datacomp1b                    UCSC-VLAA/ViT-bigG-14-CLIPA-336-datacomp1B
ViT-H-14-worldwide
  Q metaclip2_worldwide           timm/vit_huge_patch14_clip_224.metaclip2_worldwide
ViT-H-14-worldwide-378
  G metaclip2_worldwide           timm/vit_huge_patch14_clip_378.metaclip2_worldwide
ViT-bigG-14-worldwide
  G metaclip2_worldwide           timm/vit_gigantic_patch14_clip_224.metaclip2_worldwide
ViT-bigG-14-worldwide-378
  G metaclip2_worldwide           timm/vit_gigantic_patch14_clip_378.metaclip2_worldwide
"""
