"""The models that `load` knows by name: configuration, URL, checksum and published numbers."""

import dataclasses
import difflib

from clip_jax.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig

_BASE = "https://openaipublic.azureedge.net/clip/models"


@dataclasses.dataclass(frozen=True)
class CatalogEntry:
    """A model with a name.

    Attributes:
        name: its name for `load`.
        config: its architecture.
        file: the name of its file, in the cache and in its URL; for a bundled model, the name of
            its native folder in this package's data.
        sha256: the checksum of the file, or of a bundled model's weights, in hexadecimal.
        num_parameters: the number of trainable numbers, without BatchNorm's statistics.
        num_vision_parameters: how many of them are in the vision tower.
        gflops: multiply-adds of one image's embedding, times two, in billions.
        is_bundled: whether its weights come with this package.
    """

    name: str
    config: CLIPConfig
    file: str
    sha256: str
    num_parameters: int
    num_vision_parameters: int
    gflops: float
    is_bundled: bool = False

    @property
    def url(self) -> str:
        """The URL of an official model's file."""
        return f"{_BASE}/{self.sha256}/{self.file}"


def available_models() -> list[str]:
    """Returns the names that `load` accepts besides paths.

    OpenAI's nine models come first, in their usual order, then those bundled with this package.
    """
    return list(CATALOG)


def lookup(name: str) -> CatalogEntry:
    """Returns the entry of a name.

    Raises:
        ValueError: there is none; the message suggests the nearest name.
    """
    if name in CATALOG:
        return CATALOG[name]
    raise ValueError(f"unknown model {name!r}: {suggestion(name)}")


def suggestion(name: str) -> str:
    """Returns the end of an error message about a wrong name: the nearest name, and all names."""
    near = nearest(name)
    hint = f"did you mean {near!r}? " if near else ""
    return f"{hint}known: {', '.join(CATALOG)}"


def nearest(name: str) -> str | None:
    """Returns the model's name that somebody may have meant by another."""
    folded = {known.casefold(): known for known in CATALOG}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.7)
    return folded[near[0]] if near else None


def _vit(
    embed_dim: int,
    image_size: int,
    width: int,
    num_layers: int,
    patch_size: int,
    text_width: int,
) -> CLIPConfig:
    vision = ViTConfig(image_size, patch_size, width, num_layers, num_heads=width // 64)
    return CLIPConfig(embed_dim, vision, _text(text_width))


def _resnet(
    embed_dim: int,
    image_size: int,
    stage_depths: tuple[int, int, int, int],
    width: int,
    text_width: int,
) -> CLIPConfig:
    vision = ResNetConfig(image_size, width, stage_depths, num_heads=32 * width // 64)
    return CLIPConfig(embed_dim, vision, _text(text_width))


def _text(width: int) -> TextConfig:
    return TextConfig(width, num_layers=12, num_heads=width // 64)


_ENTRIES = (
    CatalogEntry(
        "RN50",
        _resnet(1024, 224, (3, 4, 6, 3), 64, 512),
        "RN50.pt",
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
        102_007_137,
        38_316_896,
        12.22,
    ),
    CatalogEntry(
        "RN101",
        _resnet(512, 224, (3, 4, 23, 3), 64, 512),
        "RN101.pt",
        "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
        119_688_033,
        56_259_936,
        19.54,
    ),
    CatalogEntry(
        "RN50x4",
        _resnet(640, 288, (4, 6, 10, 6), 80, 640),
        "RN50x4.pt",
        "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
        178_300_601,
        87_137_080,
        42.56,
    ),
    CatalogEntry(
        "RN50x16",
        _resnet(768, 384, (6, 8, 18, 8), 96, 768),
        "RN50x16.pt",
        "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
        290_979_217,
        167_328_912,
        149.39,
    ),
    CatalogEntry(
        "RN50x64",
        _resnet(1024, 448, (3, 15, 36, 10), 128, 1024),
        "RN50x64.pt",
        "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
        623_258_305,
        420_380_352,
        529.11,
    ),
    CatalogEntry(
        "ViT-B/32",
        _vit(512, 224, 768, 12, 32, 512),
        "ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        151_277_313,
        87_849_216,
        8.82,
    ),
    CatalogEntry(
        "ViT-B/16",
        _vit(512, 224, 768, 12, 16, 512),
        "ViT-B-16.pt",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        149_620_737,
        86_192_640,
        35.13,
    ),
    CatalogEntry(
        "ViT-L/14",
        _vit(768, 224, 1024, 24, 14, 768),
        "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        427_616_513,
        303_966_208,
        162.03,
    ),
    CatalogEntry(
        "ViT-L/14@336px",
        _vit(768, 336, 1024, 24, 14, 768),
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        427_944_193,
        304_293_888,
        381.92,
    ),
    CatalogEntry(
        "emoji",
        CLIPConfig(
            embed_dim=128,
            vision=ViTConfig(48, 6, 192, 4, num_heads=3),
            text=TextConfig(128, num_layers=2, num_heads=2),
        ),
        "emoji",
        "360febffd59d0244ffb3b3e02ea4fdcb4f9d939341972a96199e14b75e732450",
        8_585_473,
        1_838_208,
        0.25,
        is_bundled=True,
    ),
)

CATALOG = {entry.name: entry for entry in _ENTRIES}
