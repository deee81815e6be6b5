"""A table of official names and layouts and ours, used in both directions."""

import dataclasses
import functools
import re
from collections.abc import Iterator

import numpy as np

# Permutations from PyTorch's axes to ours.
SAME: tuple[int, ...] = ()
LINEAR = (1, 0)  # (out, in) -> (in, out)
CONV = (2, 3, 1, 0)  # (out, in, h, w) -> (h, w, in, out)


@dataclasses.dataclass(frozen=True)
class Rule:
    """An official name, our path, and the order of our axes; `*` stands for a number."""

    source: str
    target: str
    axes: tuple[int, ...] = SAME

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Returns a view of an array in our layout."""
        return array.transpose(self.axes) if self.axes else array

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Returns a view of an array in PyTorch's layout."""
        return array.transpose(np.argsort(self.axes)) if self.axes else array

    def shape_to_theirs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns PyTorch's shape, given ours."""
        return tuple(shape[axis] for axis in np.argsort(self.axes)) if self.axes else shape


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


def _transformer(source: str, target: str) -> Iterator[Rule]:
    source, target = f"{source}transformer.resblocks.*", f"{target}transformer/resblocks/*"
    yield from _norm(f"{source}.ln_1", f"{target}/ln_1")
    yield from _norm(f"{source}.ln_2", f"{target}/ln_2")
    yield Rule(f"{source}.attn.in_proj_weight", f"{target}/attn/in_proj/kernel", LINEAR)
    yield Rule(f"{source}.attn.in_proj_bias", f"{target}/attn/in_proj/bias")
    yield from _linear(f"{source}.attn.out_proj", f"{target}/attn/out_proj")
    yield from _linear(f"{source}.mlp.c_fc", f"{target}/mlp/c_fc")
    yield from _linear(f"{source}.mlp.c_proj", f"{target}/mlp/c_proj")


def _rules() -> Iterator[Rule]:
    # Text, at the root.
    yield Rule("token_embedding.weight", "token_embedding/embedding")
    yield Rule("positional_embedding", "positional_embedding")
    yield from _transformer("", "")
    yield from _norm("ln_final", "ln_final")
    yield Rule("text_projection", "text_projection")
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


RULES = tuple(_rules())


def source_to_target(name: str) -> tuple[Rule, str] | None:
    """Returns the rule for an official name, and our path; None if there is no rule."""
    return _first((rule, _rename(name, rule.source, rule.target)) for rule in RULES)


def target_to_source(path: str) -> tuple[Rule, str] | None:
    """Returns the rule for one of our paths, and the official name; None if there is no rule."""
    return _first((rule, _rename(path, rule.target, rule.source)) for rule in RULES)


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
