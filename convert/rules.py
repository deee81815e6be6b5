"""Tables of other libraries' names and layouts and ours, used in both directions."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from clip_jax.memory import release

# Permutations from PyTorch's axes to ours.
SAME: tuple[int, ...] = ()
LINEAR = (1, 0)  # (out, in) -> (in, out)
CONV = (2, 3, 1, 0)  # (out, in, h, w) -> (h, w, in, out)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Another library's name, our path, and the order of our axes.

    In both, `*` stands for a number. A name with `{q,k,v}` stands for three arrays, one for each
    letter, that are one array here, joined along PyTorch's first axis. The other way round, `part`
    says which of how many parts of their array is ours.
    """

    source: str
    target: str
    axes: tuple[int, ...] = SAME
    part: tuple[int, int] = (0, 1)

    @property
    def num_parts(self) -> int:
        """How many of their arrays are one of ours."""
        return len(spelled(self.source))

    def to_ours(self, *parts: np.ndarray) -> np.ndarray:
        """Returns an array in our layout: a view, unless it is joined from parts."""
        array = parts[0]
        if len(parts) > 1:
            array = np.concatenate(parts)
            for part in parts:  # read, and not needed again: a quarter of a transformer
                if not part.flags.writeable:  # what was written to a private map would be lost
                    release(part)
        number, count = self.part
        array = np.split(array, count)[number] if count > 1 else array
        return array.transpose(self.axes) if self.axes else array

    def to_theirs(self, array: np.ndarray) -> list[np.ndarray]:
        """Returns views of an array, or of its parts, in PyTorch's layout."""
        array = array.transpose(np.argsort(self.axes)) if self.axes else array
        return [array] if self.num_parts == 1 else np.split(array, self.num_parts)

    def shape_to_theirs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns PyTorch's shape of the array, or of each part, given ours."""
        shape = tuple(shape[axis] for axis in np.argsort(self.axes)) if self.axes else shape
        if self.num_parts == self.part[1]:  # of which both are 1
            return shape
        return (shape[0] * self.part[1] // self.num_parts, *shape[1:])


def spelled(name: str) -> list[str]:
    """Spells out the names that a name with braces stands for.

    Example:
        >>> spelled("attn.{q,k,v}_proj.bias")
        ['attn.q_proj.bias', 'attn.k_proj.bias', 'attn.v_proj.bias']
    """
    before, _, rest = name.partition("{")
    choices, _, after = rest.partition("}")
    return [before + choice + after for choice in choices.split(",")]


Table = tuple[Rule, ...]


def _norm(source: str, target: str) -> Iterator[Rule]:
    yield Rule(f"{source}.weight", f"{target}/scale")
    yield Rule(f"{source}.bias", f"{target}/bias")


def _batch_norm(source: str, target: str) -> Iterator[Rule]:
    yield from _norm(source, target)
    yield Rule(f"{source}.running_mean", f"{target}/mean")
    yield Rule(f"{source}.running_var", f"{target}/var")
    yield Rule(f"{source}.num_batches_tracked", f"{target}/num_batches_tracked")


def _linear(source: str, target: str) -> Iterator[Rule]:
    yield Rule(f"{source}.weight", f"{target}/kernel", LINEAR)
    yield Rule(f"{source}.bias", f"{target}/bias")


def _joint(weight: str, bias: str, targets: Sequence[str]) -> Iterator[Rule]:
    """Yields the rules of one linear layer of theirs that is several here."""
    for number, target in enumerate(targets):
        part = number, len(targets)
        yield Rule(weight, f"{target}/kernel", LINEAR, part)
        yield Rule(bias, f"{target}/bias", SAME, part)


def _transformer(source: str, target: str) -> Iterator[Rule]:
    source, target = f"{source}transformer.resblocks.*", f"{target}transformer/resblocks/*"
    yield from _norm(f"{source}.ln_1", f"{target}/ln_1")
    yield from _norm(f"{source}.ln_2", f"{target}/ln_2")
    yield Rule(f"{source}.attn.in_proj_weight", f"{target}/attn/in_proj/kernel", LINEAR)
    yield Rule(f"{source}.attn.in_proj_bias", f"{target}/attn/in_proj/bias")
    yield from _linear(f"{source}.attn.out_proj", f"{target}/attn/out_proj")
    yield from _linear(f"{source}.mlp.c_fc", f"{target}/mlp/c_fc")
    yield from _linear(f"{source}.mlp.c_proj", f"{target}/mlp/c_proj")


def _official(text: str = "") -> Iterator[Rule]:
    # Text, at the root, or below a prefix.
    yield Rule(f"{text}token_embedding.weight", "token_embedding/embedding")
    yield Rule(f"{text}positional_embedding", "positional_embedding")
    yield from _transformer(text, "")
    yield from _norm(f"{text}ln_final", "ln_final")
    yield Rule(f"{text}text_projection", "text_projection")
    yield Rule("logit_scale", "logit_scale")
    # Vision Transformer. Both towers have a conv1; a ResNet has conv2 and conv3 too.
    yield Rule("visual.class_embedding", "visual/class_embedding")
    yield Rule("visual.positional_embedding", "visual/positional_embedding")
    yield Rule("visual.conv*.weight", "visual/conv*/kernel", CONV)
    yield from _norm("visual.ln_pre", "visual/ln_pre")
    yield from _transformer("visual.", "visual/")
    yield from _norm("visual.ln_post", "visual/ln_post")
    yield Rule("visual.proj", "visual/proj")
    # ModifiedResNet.
    yield from _batch_norm("visual.bn*", "visual/bn*")
    yield Rule("visual.layer*.*.conv*.weight", "visual/layer*/*/conv*/kernel", CONV)
    yield from _batch_norm("visual.layer*.*.bn*", "visual/layer*/*/bn*")
    yield Rule("visual.layer*.*.downsample.0.weight", "visual/layer*/*/downsample/0/kernel", CONV)
    yield from _batch_norm("visual.layer*.*.downsample.1", "visual/layer*/*/downsample/1")
    yield Rule("visual.attnpool.positional_embedding", "visual/attnpool/positional_embedding")
    for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
        yield from _linear(f"visual.attnpool.{name}", f"visual/attnpool/{name}")


def _open_clip(text: str) -> Iterator[Rule]:
    """Yields OpenAI's names, and those of what only OpenCLIP's models have."""
    yield from _official(text)
    yield from _linear(f"{text}text_projection", "text_projection")
    yield Rule("logit_bias", "logit_bias")
    for source, target in ((text, ""), ("visual.", "visual/")):
        for name in ("ls_1", "ls_2"):
            yield Rule(
                f"{source}transformer.resblocks.*.{name}.gamma",
                f"{target}transformer/resblocks/*/{name}/gamma",
            )


def _huggingface() -> Iterator[Rule]:
    source, target = "text_model.embeddings", "token_embedding/embedding"
    yield Rule(f"{source}.token_embedding.weight", target)
    yield Rule(f"{source}.position_embedding.weight", "positional_embedding")
    yield from _huggingface_blocks("text_model", "")
    yield from _norm("text_model.final_layer_norm", "ln_final")
    yield Rule("text_projection.weight", "text_projection", LINEAR)
    source, target = "vision_model.embeddings", "visual"
    yield Rule(f"{source}.patch_embedding.weight", f"{target}/conv1/kernel", CONV)
    yield Rule(f"{source}.class_embedding", f"{target}/class_embedding")
    yield Rule(f"{source}.position_embedding.weight", f"{target}/positional_embedding")
    yield from _norm("vision_model.pre_layrnorm", "visual/ln_pre")  # misspelt so
    yield from _huggingface_blocks("vision_model", "visual/")
    yield from _norm("vision_model.post_layernorm", "visual/ln_post")
    yield Rule("visual_projection.weight", "visual/proj", LINEAR)
    yield Rule("logit_scale", "logit_scale")
    # What SigLIP has otherwise.
    yield from _linear("text_model.head", "text_projection")
    yield Rule("vision_model.embeddings.patch_embedding.bias", "visual/conv1/bias")
    source, target = "vision_model.head", "visual/attnpool"
    yield Rule(f"{source}.probe", f"{target}/probe")
    names = [f"{target}/attn/{name}_proj" for name in "qkv"]
    yield from _joint(
        f"{source}.attention.in_proj_weight", f"{source}.attention.in_proj_bias", names
    )
    yield from _linear(f"{source}.attention.out_proj", f"{target}/attn/c_proj")
    yield from _norm(f"{source}.layernorm", f"{target}/ln")
    yield from _linear(f"{source}.mlp.fc1", f"{target}/mlp/c_fc")
    yield from _linear(f"{source}.mlp.fc2", f"{target}/mlp/c_proj")
    yield Rule("logit_bias", "logit_bias")


def _huggingface_blocks(source: str, target: str) -> Iterator[Rule]:
    source, target = f"{source}.encoder.layers.*", f"{target}transformer/resblocks/*"
    yield from _norm(f"{source}.layer_norm1", f"{target}/ln_1")
    yield from _norm(f"{source}.layer_norm2", f"{target}/ln_2")
    yield from _linear(f"{source}.self_attn.{{q,k,v}}_proj", f"{target}/attn/in_proj")
    yield from _linear(f"{source}.self_attn.out_proj", f"{target}/attn/out_proj")
    yield from _linear(f"{source}.mlp.fc1", f"{target}/mlp/c_fc")
    yield from _linear(f"{source}.mlp.fc2", f"{target}/mlp/c_proj")


def _timm() -> Iterator[Rule]:
    """Yields OpenCLIP's names of a SigLIP model: its own text tower, and timm's vision tower."""
    source, target = "visual.trunk", "visual"
    yield Rule(f"{source}.patch_embed.proj.weight", f"{target}/conv1/kernel", CONV)
    yield Rule(f"{source}.patch_embed.proj.bias", f"{target}/conv1/bias")
    yield Rule(f"{source}.pos_embed", f"{target}/positional_embedding")
    block, ours = f"{source}.blocks.*", f"{target}/transformer/resblocks/*"
    yield from _norm(f"{block}.norm1", f"{ours}/ln_1")
    yield from _norm(f"{block}.norm2", f"{ours}/ln_2")
    yield from _linear(f"{block}.attn.qkv", f"{ours}/attn/in_proj")
    yield from _linear(f"{block}.attn.proj", f"{ours}/attn/out_proj")
    yield from _linear(f"{block}.mlp.fc1", f"{ours}/mlp/c_fc")
    yield from _linear(f"{block}.mlp.fc2", f"{ours}/mlp/c_proj")
    yield from _norm(f"{source}.norm", f"{target}/ln_post")
    pool, ours = f"{source}.attn_pool", f"{target}/attnpool"
    yield Rule(f"{pool}.latent", f"{ours}/probe")
    yield from _linear(f"{pool}.q", f"{ours}/attn/q_proj")
    names = [f"{ours}/attn/{name}_proj" for name in "kv"]
    yield from _joint(f"{pool}.kv.weight", f"{pool}.kv.bias", names)
    yield from _linear(f"{pool}.proj", f"{ours}/attn/c_proj")
    yield from _norm(f"{pool}.norm", f"{ours}/ln")
    yield from _linear(f"{pool}.mlp.fc1", f"{ours}/mlp/c_fc")
    yield from _linear(f"{pool}.mlp.fc2", f"{ours}/mlp/c_proj")
    yield from _open_clip("text.")  # last, because it has names for the vision tower too


def _big_vision() -> Iterator[Rule]:
    """Yields big_vision's names, of blocks that each have arrays of their own."""
    yield Rule("txt/Embed_0/embedding", "token_embedding/embedding")
    yield Rule("txt/pos_embedding", "positional_embedding")
    yield from _big_vision_blocks("txt/Encoder_0", "")
    yield from _flax("txt/Encoder_0/encoder_norm", "ln_final", "scale")
    yield from _flax("txt/head", "text_projection")
    yield from _flax("img/embedding", "visual/conv1")
    yield Rule("img/pos_embedding", "visual/positional_embedding")
    yield from _big_vision_blocks("img/Transformer", "visual/")
    yield from _flax("img/Transformer/encoder_norm", "visual/ln_post", "scale")
    source, target = "img/MAPHead_0", "visual/attnpool"
    attention = f"{source}/MultiHeadDotProductAttention_0"
    yield Rule(f"{source}/probe", f"{target}/probe")
    for name in ("query", "key", "value"):
        yield from _flax(f"{attention}/{name}", f"{target}/attn/{name[0]}_proj")
    yield from _flax(f"{attention}/out", f"{target}/attn/c_proj")
    yield from _flax(f"{source}/LayerNorm_0", f"{target}/ln", "scale")
    yield from _flax(f"{source}/MlpBlock_0/Dense_0", f"{target}/mlp/c_fc")
    yield from _flax(f"{source}/MlpBlock_0/Dense_1", f"{target}/mlp/c_proj")
    yield Rule("t", "logit_scale")
    yield Rule("b", "logit_bias")


def _big_vision_blocks(source: str, target: str) -> Iterator[Rule]:
    source, target = f"{source}/encoderblock_*", f"{target}transformer/resblocks/*"
    attention = f"{source}/MultiHeadDotProductAttention_0"
    yield from _flax(f"{source}/LayerNorm_0", f"{target}/ln_1", "scale")
    yield from _flax(f"{source}/LayerNorm_1", f"{target}/ln_2", "scale")
    # Joined along the outputs, the kernels' last axis.
    yield Rule(f"{attention}/{{query,key,value}}/kernel", f"{target}/attn/in_proj/kernel", LINEAR)
    yield Rule(f"{attention}/{{query,key,value}}/bias", f"{target}/attn/in_proj/bias")
    yield from _flax(f"{attention}/out", f"{target}/attn/out_proj")
    yield from _flax(f"{source}/MlpBlock_0/Dense_0", f"{target}/mlp/c_fc")
    yield from _flax(f"{source}/MlpBlock_0/Dense_1", f"{target}/mlp/c_proj")


def _flax(source: str, target: str, weight: str = "kernel") -> Iterator[Rule]:
    for name in (weight, "bias"):
        yield Rule(f"{source}/{name}", f"{target}/{name}")


RULES: Table = tuple(_official())
# OpenCLIP's text arrays are at the root, or all below a prefix.
OPEN_CLIP: Table = tuple(_open_clip(""))
OPEN_CLIP_PREFIXED: Table = tuple(_open_clip("text."))
HUGGING_FACE: Table = tuple(_huggingface())
OPEN_CLIP_SIGLIP: Table = tuple(_timm())
BIG_VISION: Table = tuple(_big_vision())


def source_to_target(name: str, table: Table = RULES) -> tuple[Rule, str] | None:
    """Returns the rule for a library's name, and our path; None if there is no rule."""
    return _first((rule, _rename(name, rule.source, rule.target)) for rule in table)


def target_to_source(path: str, table: Table = RULES) -> tuple[Rule, str] | None:
    """Returns the rule for one of our paths, and the library's name; None if there is no rule."""
    return _first((rule, _rename(path, rule.target, rule.source)) for rule in table)


def _first(renamed: Iterator[tuple[Rule, str | None]]) -> tuple[Rule, str] | None:
    return next(((rule, name) for rule, name in renamed if name is not None), None)


def _rename(name: str, pattern: str, template: str) -> str | None:
    match = _compiled(pattern).fullmatch(name)
    if match is None:
        return None
    numbers = iter(match.groups())
    return re.sub(r"\*", lambda _: next(numbers), template)


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", "(0|[1-9][0-9]*)"))
