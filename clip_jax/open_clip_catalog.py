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
from clip_jax.open_clip_architectures import TWIN, architectures
from clip_jax.siglip_catalog import REPOSITORIES, siglip_architectures

_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)

_RELEASES = "https://github.com/mlfoundations/open_clip/releases/download/"

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
    base = architecture.removesuffix(TWIN)
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
