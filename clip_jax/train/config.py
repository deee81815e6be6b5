"""The configuration of a training run: read from TOML, overridden and checked."""

import dataclasses
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from clip_jax.config import Activation, CLIPConfig, NumHeads
from clip_jax.config_fields import build
from clip_jax.sources import Columns, Where
from clip_jax.train.augment import AugmentConfig
from clip_jax.train.optimizer import OptimizerConfig
from clip_jax.train.step import StepConfig

# Fields that may change when a run is resumed, because they don't affect the parameters.
FREE = ("checkpoint_every", "keep_checkpoints", "log_every", "max_skipped", "num_threads")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training data.

    Attributes:
        train: shards (a path or pattern ending in .tar), tables of captions, a folder with such a
            table, or with pictures that have their captions beside them in .txt files.
        image_column: the column of a table that holds pictures, or their paths.
        caption_column: the column that holds captions.
        key_column: the column that tells pairs apart.
        text_length: length of the token rows, at most the context length; 0 for that.
        templates: sentences with `{}`; one of them is put around each caption.
        spread: whether to keep pairs with the same first caption apart, so that few are in one
            batch.
        where: conditions that a pair must fit, such as "width>=256" or "lang in en,de": on the
            columns of a table, or the fields of shards' .json members.
        max_skipped: the fraction of pairs above which the run stops if they are faulty: without
            caption or picture, or with one that can't be read.
        num_threads: threads that read and decode.
    """

    train: str
    image_column: str = Columns.image
    caption_column: str = Columns.caption
    key_column: str = Columns.key
    text_length: int = 0
    templates: tuple[str, ...] = ("{}",)
    spread: bool = False
    where: tuple[str, ...] = ()
    max_skipped: float = 0.01
    num_threads: int = 4

    def __post_init__(self):
        """Checks the conditions.

        Raises:
            ValueError: one is malformed.
        """
        Where.of(self.where)

    def columns(self) -> Columns:
        """Returns the names of a table's columns."""
        return Columns(self.image_column, self.caption_column, self.key_column)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Batch size, seed, and how often to log and save.

    Attributes:
        batch_size: pairs of a batch, over all devices of all processes.
        seed: seed of the initial parameters, the order of the data and the augmentation.
        whole_steps: how many of the last steps ignore `step.patch_dropout`, so that the model ends
            on whole pictures, as in use (Li et al. 2023, section 3).
        log_every: steps between lines of `metrics.jsonl`.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the latest checkpoints to keep.
    """

    batch_size: int
    seed: int = 0
    whole_steps: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 3

    def __post_init__(self):
        """Checks the fields.

        Raises:
            ValueError: a number is out of range.
        """
        for name in ("batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1. Got {getattr(self, name)}.")
        if self.whole_steps < 0:
            raise ValueError(f"whole_steps must be 0 or more. Got {self.whole_steps}.")
        if not 0 <= self.seed < 1 << 63:  # JAX's limit
            raise ValueError(f"seed must be from 0 to 2**63 - 1. Got {self.seed}.")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model to start from, with what a bare file doesn't say; as for `clip_jax.load`.

    Attributes:
        path: its name or path.
        activation: the activation of a bare file.
        num_heads: the attention heads of a bare file.
        image_size: another side of its images.
        position_resize: how positions are resized for it.
        drop_remainder: whether it may be no multiple of the patches' size.
    """

    path: str
    activation: Activation | None = None
    num_heads: NumHeads | None = None
    image_size: int | None = None
    position_resize: str | None = None
    drop_remainder: bool = False


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        out: the folder of its checkpoints, metrics, plot and model.
        model: a name or path to start from, with what a bare file doesn't say; or a new model's
            architecture.
        data: the training data.
        run: batch size, seed, logging and checkpoints.
        augment: the augmentation of the pictures.
        optimizer: the optimiser and its schedule.
        step: the loss and how a step computes.
    """

    out: str
    model: str | Pretrained | CLIPConfig
    data: DataConfig
    run: RunConfig
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    step: StepConfig = StepConfig()

    def __post_init__(self):
        """Checks the fields.

        Raises:
            ValueError: `out` is empty.
        """
        if not self.out:
            raise ValueError("out must be a folder's path. Got ''.")

    def identity(self) -> dict[str, Any]:
        """Returns the settings that must not change on resume, as plain JSON by dotted names.

        The paths of the run, its data and its initial model are not among them.
        """
        document = dataclasses.asdict(self)
        del document["out"], document["data"]["train"]
        if not isinstance(self.model, CLIPConfig):
            del document["model"]
        return _settings(document)

    def defaults(self) -> dict[str, Any]:
        """Returns the defaults of those settings that have one."""
        return _settings(_defaults(self))


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads the configuration of a run from a TOML file.

    Args:
        path: the file. `[model]` has either `from`, a name or path, with `activation` and
            `num_heads` where that is a bare file, and maybe another `image_size`; or the fields of
            a model's `config.json`. `[data]`, `[augment]`, `[optimizer]`, `[step]` and `[run]` have
            the fields of the classes of these names; `out` stands before the tables. Paths are
            relative to the current folder.
        overrides: `key=value` with dotted keys and TOML values (a bare word is a string).

    Raises:
        ValueError: the file is not TOML, or a field is missing, unknown, of a wrong type or out of
            range.
        FileNotFoundError: there is no such file.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8, as TOML must be: save it as that") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    for override in overrides:
        _override(document, override)
    return parse_config(document)


def parse_config(document: Mapping[str, Any]) -> TrainConfig:
    """Builds the configuration of a run from nested dictionaries.

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


# Names of TOML's types, for messages.
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    ...: "...",
}


def _model(fields: Mapping[str, Any]) -> str | Pretrained | CLIPConfig:
    if "from" not in fields:
        # JSON has no dates: as strings they are refused with the name of their field.
        return CLIPConfig.from_json(json.dumps(fields, default=str))
    hints = {name: kind for name, kind in get_type_hints(Pretrained).items() if name != "path"}
    told = {name: value for name, value in fields.items() if name in hints}
    if len(fields) > 1 + len(told):
        raise ValueError(
            "there is `from`, so there must be nothing else, but for the activation and num_heads "
            "of a bare file and another image_size."
        )
    _check_types(fields, {"from": str, **hints})
    heads = told.get("num_heads")
    if isinstance(heads, list):
        told["num_heads"] = (heads[0], heads[1])
    return Pretrained(fields["from"], **told) if told else fields["from"]


def _check_types(fields: Mapping[str, Any], annotations: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in annotations and not _fits(value, annotations[name]):
            raise ValueError(f"{name} must be {_words(annotations[name])}. Got {value!r}.")


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value has a type; a list counts as a tuple, which TOML doesn't have."""
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
    if isinstance(value, bool):  # a subclass of int in Python
        return annotation is bool
    return isinstance(value, int | float if annotation is float else annotation)


def _words(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        words = [_words(one) for one in inner if one is not types.NoneType]
        return " or ".join(dict.fromkeys(words))
    if origin is Mapping:
        return f"a table ({_words(inner[0])} = {_words(inner[1])})"
    if origin is tuple:
        return f"a list ({', '.join(map(_words, inner))})"
    return _WORDS.get(annotation, "a table")


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"expected key=value, such as run.batch_size=64. Got {override!r}")
    if "\n" in text:  # further lines would be other keys, and be dropped
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
    """Returns the defaults of a dataclass's fields, nested ones included."""
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
