"""A training run as a TOML file: read, overridden, checked, and told apart from another."""

import dataclasses
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from clip_jax.config import CLIPConfig, build
from clip_jax.train.augment import AugmentConfig
from clip_jax.train.optimizer import OptimizerConfig
from clip_jax.train.step import StepConfig

# What may change between a run and its continuation, because no number depends on it.
FREE = ("checkpoint_every", "keep_checkpoints", "log_every", "max_skipped", "num_threads")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the pairs are.

    Attributes:
        train: shards (a path or pattern that ends in .tar), a table of captions, or its folder.
        text_length: columns of tokens, at most the model's context; 0 is the context's.
        templates: sentences with `{}`, one of which is put around each caption.
        spread: whether the pairs of one first caption are kept apart, so that few of them meet in a
            batch: where several pictures have one.
        max_skipped: the share of pictures that may be unreadable before the run stops.
        num_threads: that read and decode.
    """

    train: str
    text_length: int = 0
    templates: tuple[str, ...] = ("{}",)
    spread: bool = False
    max_skipped: float = 0.01
    num_threads: int = 4


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How long and how often.

    Attributes:
        batch_size: pairs of a batch, over all devices of all processes.
        seed: of the parameters, the order, the augmentation.
        whole_steps: how many of the last steps leave out no patches, whatever `step.patch_dropout`
            says, so that the model sees pictures as it will be used (Li et al. 2023, section 3).
        log_every: steps between lines of `metrics.jsonl`.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: the last ones.
    """

    batch_size: int
    seed: int = 0
    whole_steps: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 3

    def __post_init__(self):
        """Refuses what can't be meant.

        Raises:
            ValueError: a number is out of range.
        """
        for name in ("batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1. Got {getattr(self, name)}.")
        if self.whole_steps < 0:
            raise ValueError(f"whole_steps must be 0 or more. Got {self.whole_steps}.")
        if not 0 <= self.seed < 1 << 63:  # as much as JAX takes
            raise ValueError(f"seed must be from 0 to 2**63 - 1. Got {self.seed}.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        out: the folder of its checkpoints, metrics, plot and model.
        model: a name or path to start from, or the architecture of a fresh model.
        data: where the pairs are.
        run: how long and how often.
        augment: of the pictures.
        optimizer: how far parameters are moved.
        step: how a step computes.
    """

    out: str
    model: str | CLIPConfig
    data: DataConfig
    run: RunConfig
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    step: StepConfig = StepConfig()

    def __post_init__(self):
        """Refuses what can't be meant.

        Raises:
            ValueError: there is no folder to write into.
        """
        if not self.out:
            raise ValueError("out must be a folder's path. Got ''.")

    def identity(self) -> dict[str, Any]:
        """The settings a continuation must agree with, as plain JSON by dotted names.

        Not among them is where the run, its data and the model it starts from lie: they may move.
        """
        document = dataclasses.asdict(self)
        del document["out"], document["data"]["train"]
        if isinstance(self.model, str):
            del document["model"]
        return _settings(document)

    def defaults(self) -> dict[str, Any]:
        """Of those settings that have a default, what it is."""
        return _settings(_defaults(self))


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A run from a TOML file.

    Args:
        path: the file. `[model]` has `from`, a name or path, or what `config.json` of a model
            holds; `[data]`, `[augment]`, `[optimizer]`, `[step]` and `[run]` are the fields of the
            classes of these names; `out` stands before them. Paths are from the current folder.
        overrides: `key=value` with dotted keys and TOML values (a bare word is a string).

    Raises:
        ValueError: it is no TOML, or a field is missing, unknown, of a wrong type or out of range.
        FileNotFoundError: there is no such file.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    for override in overrides:
        _override(document, override)
    return parse_config(document)


def parse_config(document: Mapping[str, Any]) -> TrainConfig:
    """A run from nested dictionaries.

    Raises:
        ValueError: a field is missing, unknown, of a wrong type or out of range.
    """
    fields = dict(document)
    for name, cls in _SECTIONS.items():
        if name not in fields:
            continue
        section = fields[name]
        if not isinstance(section, Mapping):
            raise ValueError(f"[{name}] must be a table. Got {section!r}.")
        try:
            _check_types(section, get_type_hints(cls))
            section = {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}
            fields[name] = build(cls, section)
        except ValueError as error:
            raise ValueError(f"[{name}] {error}") from None
    model = fields.get("model")
    if isinstance(model, Mapping):
        try:
            fields["model"] = _model(model)
        except ValueError as error:
            raise ValueError(f"[model] {error}") from None
    _check_types(fields, get_type_hints(TrainConfig))
    return build(TrainConfig, fields)


_SECTIONS = {
    "data": DataConfig,
    "run": RunConfig,
    "augment": AugmentConfig,
    "optimizer": OptimizerConfig,
    "step": StepConfig,
}


# What TOML's types are called; of None it has none.
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    ...: "...",
}


def _model(fields: Mapping[str, Any]) -> str | CLIPConfig:
    if "from" not in fields:
        # Dates are no JSON: as strings they are refused by the name of their field.
        return CLIPConfig.from_json(json.dumps(fields, default=str))
    if len(fields) > 1:
        raise ValueError("there is `from`, so there must be nothing else.")
    _check_types(fields, {"from": str})
    return fields["from"]


def _check_types(fields: Mapping[str, Any], annotations: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in annotations and not _fits(value, annotations[name]):
            raise ValueError(f"{name} must be {_words(annotations[name])}. Got {value!r}.")


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of a type; a list counts as the tuple that TOML doesn't have."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return value in inner
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(one, inner[1]) for key, one in value.items()
        )
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        each = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(each) and all(map(_fits, value, each))
    if isinstance(value, bool):  # which Python takes for a number
        return annotation is bool
    return isinstance(value, int | float if annotation is float else annotation)


def _words(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(_words(one) for one in inner if one is not types.NoneType)
    if origin is Mapping:
        return f"a table ({_words(inner[0])} = {_words(inner[1])})"
    if origin is tuple:
        return f"a list ({', '.join(map(_words, inner))})"
    return _WORDS.get(annotation, "a table")


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"expected key=value, such as run.batch_size=64. Got {override!r}")
    if "\n" in text:  # what follows would be keys of their own, and dropped
        raise ValueError(f"{key}: the value must be in one line. Got {text!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word
    *parents, leaf = key.split(".")
    node = document
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ValueError(f"{key}: {parent} is no table")
    node[leaf] = value


def _settings(document: Mapping[str, Any]) -> dict[str, Any]:
    flat = dict(_flatten(json.loads(json.dumps(document, default=str))))
    return {name: v for name, v in flat.items() if name.rpartition(".")[2] not in FREE}


def _defaults(config: Any) -> dict[str, Any]:
    """The defaults of a dataclass's fields, and of those in it."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found[field.name] = _defaults(value)
        elif field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def _flatten(document: Any, prefix: str = "") -> Any:
    for key, value in document.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
