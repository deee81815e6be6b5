"""The architecture of a CLIP or SigLIP model: frozen dataclasses, to JSON and back."""

import dataclasses
import json
import math
from typing import Any, ClassVar, Literal, Self, get_args

from clip_jax.config_fields import (
    ShortRepr,
    build,
    check_fields,
    check_heads,
    document_of,
    fields_of,
)
from clip_jax.image_size import ImageSize, as_image_size, sides_of
from clip_jax.pixel_config import HALF, PixelConfig

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
# Attention heads: the vision tower's, or those of the vision and the text tower.
NumHeads = int | tuple[int, int]
TextPooling = Literal["argmax", "eos", "first", "last"]
VisionPooling = Literal["class", "mean", "attention"]

# CLIP's own byte pairs: the size of the vocabulary, of which the end token is the last.
CLIP_VOCAB_SIZE = 49408
# The files of SigLIP's tokenizers, by the size of their vocabularies.
SENTENCE_PIECE = {32000: "spiece.model", 250000: "spiece.model", 256000: "tokenizer.json"}

# The end token in old folders of Hugging Face's, whatever their vocabulary: pool at the largest id.
HUGGING_FACE_ARGMAX = 2


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class BlockConfig(ShortRepr):
    """What the residual blocks of either tower may have otherwise than OpenAI's.

    Attributes:
        activation: the GELU of this tower, if it isn't the model's.
        norm_epsilon: what every LayerNorm of this tower adds to the variance.
        mlp_width: the width of the MLPs' hidden layer; None for four times the tower's.
        layer_scale: the initial factor of each channel that attention and MLP add to the residual
            stream (Touvron et al. 2021); None for no such factors.
    """

    activation: Activation | None = None
    norm_epsilon: float = 1e-5
    mlp_width: int | None = None
    layer_scale: float | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class TextConfig(BlockConfig):
    """The text transformer (Radford et al. 2021, section 2.4).

    Attributes:
        is_causal: whether a token sees only itself and those before it, instead of all.
        pooling: the position whose hidden state is the text's: the first largest id ("argmax"),
            the first `eos_id` or, without one, the first position ("eos"), the first or the last.
        eos_id: the end token, if the model says which; "argmax" doesn't use it.
        has_projection: whether the pooled hidden state is projected to the joint space.
        has_projection_bias: whether a bias is then added.
        tokenizer: the tokenizer's name on the Hugging Face Hub, if it isn't CLIP's.
    """

    width: int
    num_layers: int
    num_heads: int
    context_length: int = 77
    vocab_size: int = CLIP_VOCAB_SIZE
    _: dataclasses.KW_ONLY
    is_causal: bool = True
    pooling: TextPooling = "argmax"
    eos_id: int | None = None
    has_projection: bool = True
    has_projection_bias: bool = False
    tokenizer: str | None = None

    def __post_init__(self):
        check_fields(self)
        check_heads(self.width, self.num_heads)
        if self.pooling == "eos" and self.eos_id is None:
            raise ValueError('pooling="eos" needs eos_id, the end token. Got None.')
        if self.has_projection_bias and not self.has_projection:
            raise ValueError("has_projection_bias needs has_projection: there is nothing to add to")

    @property
    def can_be_cut(self) -> bool:
        """Whether leaving out what follows the pooled position doesn't change a text's embedding.

        That token must not see the columns after it, nor its position depend on their number.
        """
        return self.is_causal and self.pooling != "last"

    @property
    def end_id(self) -> int | None:
        """The id that every text must contain, as far as the configuration says."""
        if self.pooling == "eos":
            return self.eos_id
        if self.pooling != "argmax" or self.has_ids_unsaid:
            return None
        if self.eos_id is None or self.vocab_size <= CLIP_VOCAB_SIZE:
            return self.vocab_size - 1
        return None

    @property
    def has_ids_unsaid(self) -> bool:
        """Whether nothing says if ids behind CLIP's end token were added, or if one is the end.

        Of a text with an added token, as in textual inversion, the first largest id isn't the end.
        """
        return (
            self.pooling == "argmax"
            and self.eos_id is None
            and self.tokenizer is None
            and self.vocab_size > CLIP_VOCAB_SIZE
        )

    def check_strings(self) -> None:
        """Checks that the ids of CLIP's own tokenizer are those that the model was trained with.

        Raises:
            ValueError: they are another tokenizer's; the message says how to go on.
        """
        end, size = CLIP_VOCAB_SIZE - 1, self.vocab_size
        match self.pooling:
            case "eos":
                fits = size > end and self.eos_id == end
            case "argmax":  # ids that Hugging Face's users have added come after CLIP's
                added = size > end and self.eos_id in (HUGGING_FACE_ARGMAX, end)
                fits = size == CLIP_VOCAB_SIZE or added
            case _:
                fits = size == CLIP_VOCAB_SIZE
        if self.tokenizer is not None or not fits:
            file = SENTENCE_PIECE.get(size)
            name = f" of {self.tokenizer}" if self.tokenizer else f", {file}," if file else ""
            raise ValueError(
                f"this model's {size:,} ids are not those of CLIP's tokenizer (49,408, the text "
                f"ending with {end}): make ids (b, l) with its own tokenizer{name} and give those "
                f"instead of strings."
            )


@dataclasses.dataclass(frozen=True, repr=False)
class ViTConfig(BlockConfig):
    """A Vision Transformer.

    Attributes:
        image_size: the side of its square images in pixels; or their height and width.
        has_ln_pre: whether there is a LayerNorm before the blocks.
        pooling: the class token's row ("class"); the mean of the patches' ("mean"); or attention
            from a learned probe ("attention"), as in SigLIP: there is no class token then, the
            patches have a bias, and the pooled row is the embedding.
        norm_after_pooling: whether the last LayerNorm follows the pooling instead of preceding it.
        drops_remainder: whether the image size may be no multiple of the patch size; what is left
            at the right and at the bottom is then in no patch.
    """

    image_size: ImageSize
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    _: dataclasses.KW_ONLY
    has_ln_pre: bool = True
    pooling: VisionPooling = "class"
    norm_after_pooling: bool = False
    drops_remainder: bool = False

    def __post_init__(self):
        object.__setattr__(self, "image_size", as_image_size(self.image_size))
        check_fields(self)
        check_heads(self.width, self.num_heads)
        if min(self.grid) < 1:
            raise ValueError(
                f"image_size must be at least patch_size. "
                f"Got {self.image_size} and {self.patch_size}."
            )
        # Of SigLIP's images of 384 pixels in patches of 14, the last 6 pixels are never seen.
        if self.has_class_token and self.has_remainder and not self.drops_remainder:
            raise ValueError(
                f"image_size must be a multiple of patch_size. "
                f"Got {self.image_size} and {self.patch_size}."
            )

    @property
    def has_class_token(self) -> bool:
        """Whether a class token comes before the patches."""
        return self.pooling != "attention"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = sides_of(self.image_size)
        return height // self.patch_size, width // self.patch_size

    @property
    def has_remainder(self) -> bool:
        """Whether some pixels at the right or at the bottom are in no patch."""
        return any(side % self.patch_size for side in sides_of(self.image_size))

    @property
    def num_patches(self) -> int:
        """Patches of an image; what remains at the right and at the bottom is in none."""
        return math.prod(self.grid)

    @property
    def num_tokens(self) -> int:
        """The length of the sequence: the patches, and the class token if there is one."""
        return self.num_patches + self.has_class_token


@dataclasses.dataclass(frozen=True, repr=False)
class ResNetConfig(ShortRepr):
    """A ModifiedResNet: three-convolution stem, anti-aliased strides, attention pooling."""

    image_size: int
    width: int
    stage_depths: tuple[int, int, int, int]
    num_heads: int

    def __post_init__(self):
        check_fields(self)
        if not isinstance(self.stage_depths, tuple) or len(self.stage_depths) != 4:
            raise ValueError(
                f"stage_depths must be four positive numbers. Got {self.stage_depths}."
            )
        if self.width % 2:
            raise ValueError(f"width must be even: the stem starts at half. Got {self.width}.")
        check_heads(self.num_features, self.num_heads)
        if self.image_size % 32:
            raise ValueError(f"image_size must be a multiple of 32. Got {self.image_size}.")

    @property
    def num_features(self) -> int:
        """Channels at the input of the attention pool."""
        return 32 * self.width

    @property
    def num_positions(self) -> int:
        """Positions at the input of the attention pool, without the mean token."""
        return (self.image_size // 32) ** 2


@dataclasses.dataclass(frozen=True, repr=False)
class CLIPConfig(ShortRepr):
    """Two towers that embed into a joint space of `embed_dim` dimensions.

    `activation` is the transformers' GELU: `quick_gelu` in every OpenAI model; exact `gelu` or
    `gelu_tanh` in others. It can't be inferred from the weights, so it is stored with them.

    Attributes:
        logit_bias: the initial value of the number that is added to all logits (Zhai et al. 2023);
            None for no such parameter.
        pixels: how images become pixels.
        open_clip: what an `open_clip_config.json` said beside the model, as JSON, to be written
            back to one.
    """

    embed_dim: int
    vision: ViTConfig | ResNetConfig
    text: TextConfig
    activation: Activation = "quick_gelu"
    _: dataclasses.KW_ONLY
    logit_bias: float | None = None
    pixels: PixelConfig = PixelConfig()
    open_clip: str | None = None

    _family: ClassVar[str | None] = None  # what the JSON calls it

    def __post_init__(self):
        check_fields(self)
        pools = isinstance(self.vision, ViTConfig) and self.vision.pooling == "attention"
        if pools != isinstance(self, SigLIPConfig):
            raise ValueError(
                'pooling="attention" is for SigLIP: take SigLIPConfig for it, and only for it. '
                f"Got {type(self).__name__} with {self.vision}."
            )
        if not self.text.has_projection and self.text.width != self.embed_dim:
            raise ValueError(
                f"without a projection of the text, its width must be embed_dim. "
                f"Got {self.text.width} and {self.embed_dim}."
            )

    @property
    def text_activation(self) -> Activation:
        """The GELU of the text tower."""
        return self.text.activation or self.activation

    @property
    def vision_activation(self) -> Activation:
        """The GELU of the vision tower, if that is a Vision Transformer."""
        own = self.vision.activation if isinstance(self.vision, ViTConfig) else None
        return own or self.activation

    def to_json(self) -> str:
        """Returns the configuration as JSON, the `config.json` of the native format.

        Keyword-only fields, which OpenAI's models don't need, are left out at their defaults.
        """
        document = document_of(self)
        kind = "vit" if isinstance(self.vision, ViTConfig) else "resnet"
        document["vision"] = {"type": kind, **document["vision"]}
        if family := self._family:
            document = {"type": family, **document}
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote; of SigLIP's, `CLIPConfig` too makes a `SigLIPConfig`.

        Raises:
            ValueError: if the text is not JSON, or a field is missing, unknown or out of range.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the configuration is not JSON: {error}") from None
        family = document.pop("type", None) if isinstance(document, dict) else None
        families = {kind._family: kind for kind in (CLIPConfig, SigLIPConfig)}
        known = families.get(family) if isinstance(family, str | None) else None
        if known is None or not issubclass(known, cls):
            raise ValueError(
                f'type must be "siglip" for SigLIP, and absent for CLIP. Got {family!r} '
                f"for {cls.__name__}."
            )
        vision = fields_of(document, "vision")
        kinds = {"vit": ViTConfig, "resnet": ResNetConfig}
        kind = vision.pop("type", None)
        if not isinstance(kind, str) or kind not in kinds:
            raise ValueError(f"vision.type must be one of {', '.join(kinds)}. Got {kind!r}.")
        if isinstance(vision.get("stage_depths"), list):
            vision["stage_depths"] = tuple(vision["stage_depths"])
        parts = {
            "vision": build(kinds[kind], vision),
            "text": build(TextConfig, fields_of(document, "text")),
        }
        if "pixels" in document:
            pixels = fields_of(document, "pixels")
            for name in {"mean", "std"} & pixels.keys():
                pixels[name] = tuple(pixels[name]) if isinstance(pixels[name], list) else None
            parts["pixels"] = build(PixelConfig, pixels)
        return build(known, {**document, **parts})


@dataclasses.dataclass(frozen=True, repr=False)
class SigLIPConfig(CLIPConfig):
    """Two towers whose pairs each have a probability of their own (Zhai et al. 2023).

    The vision tower pools by attention, and its pooled row is the image's embedding. The text tower
    has no mask, so that padding is seen, and is pooled at the last position. A pair's probability
    is the sigmoid of its logit, whatever the other pairs are.

    Attributes:
        logit_bias: the initial value of the number that is added to all logits.
        pixels: how images become pixels, by default on the scale -1 to 1, squashed to a square.
    """

    vision: ViTConfig
    activation: Activation = "gelu_tanh"
    _: dataclasses.KW_ONLY
    logit_bias: float = -10.0
    pixels: PixelConfig = PixelConfig(mean=HALF, std=HALF, resize="squash")

    _family: ClassVar[str | None] = "siglip"

    def __post_init__(self):
        super().__post_init__()
        problems = []
        if self.vision.width != self.embed_dim:
            problems.append(
                f"embed_dim must be the vision tower's width, {self.vision.width}, as there is "
                f"no projection. Got {self.embed_dim}"
            )
        if self.text.pooling != "last" or self.text.is_causal:
            problems.append(
                'the text must be pooled at the "last" position and have no causal mask. Got '
                f"pooling={self.text.pooling!r} and is_causal={self.text.is_causal}"
            )
        if problems:
            raise ValueError("; ".join(problems) + ".")


def check_activation(name: Any) -> None:
    """Raises ValueError if there is no such activation."""
    if name not in get_args(Activation):
        raise ValueError(
            f"activation must be one of {', '.join(get_args(Activation))}. Got {name!r}."
        )
