"""A run's identity: its settings, its data, and the model that it starts from."""

import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax

from clip_jax.config import CLIPConfig
from clip_jax.messages import differences
from clip_jax.nn import CLIP, model_digest
from clip_jax.sources import Pairs
from clip_jax.train.config import FREE, TrainConfig

# How many pictures get checksums; of the others only keys and sizes are compared.
SAMPLES = 256
_FINGERPRINT, _SAMPLES = "data.fingerprint", "data.samples"
_UNREADABLE = "-"
_TOTAL_STEPS, _CONTINUED = "optimizer.total_steps", "continued"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What must stay the same when a run is resumed; plain JSON by dotted names.

    Attributes:
        settings: the settings that affect the parameters.
        defaults: values of settings that a run of an earlier version has not recorded.
        contents: hashes and counts of the data and the initial model.
        places: their paths, which may change; compared only with runs that recorded no contents.
    """

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    contents: dict[str, Any] = dataclasses.field(default_factory=dict)
    places: dict[str, Any] = dataclasses.field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Returns the content of `run.json`."""
        return {**self.settings, **self.contents}

    def digest(self) -> str:
        """Returns a hash that is the same in all processes that train the same run."""
        shared = {name: v for name, v in self.document().items() if name != _SAMPLES}
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()

    @property
    def total_steps(self) -> int:
        """How many steps the run has."""
        return self.settings[_TOTAL_STEPS]

    def fewer_steps(self, noted: Mapping[str, Any]) -> int | None:
        """Returns how many steps a run had that is this one but for its having fewer.

        Args:
            noted: the document of the other run.

        Returns:
            Their number; None if the runs differ in something else, or in nothing.
        """
        before = {**self.defaults, **noted}.get(_TOTAL_STEPS)
        here = self.settings.get(_TOTAL_STEPS)
        if type(before) is not int or type(here) is not int or before >= here:
            return None
        return None if self.differences({**noted, _TOTAL_STEPS: here}) else before

    def continued(self, noted: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Returns the document of a run that has got more steps.

        Args:
            noted: its document before.
            step: the step after which it has.
        """
        before = {"after_step": step, "total_steps": {**self.defaults, **noted}[_TOTAL_STEPS]}
        return {**self.document(), _CONTINUED: [*noted.get(_CONTINUED, []), before]}

    def differences(self, noted: Mapping[str, Any]) -> list[str]:
        """Describes how another run differs, one line per difference.

        Args:
            noted: the document of the other run, written by this version or an earlier one.
        """
        here = self.document()
        there = {
            n: v
            for n, v in noted.items()
            if n not in ("out", _CONTINUED) and n.rpartition(".")[2] not in FREE
        }
        there = {name: v for name, v in self.defaults.items() if name in here} | there
        if is_incomplete(noted):
            here, there = here | self.places, self.contents | there
        samples = [str(side.pop(_SAMPLES, "nothing")) for side in (there, here)]
        lines = differences(there, here)
        if count := _other_pictures(*samples):
            lines.append(f"- {_SAMPLES}: {count} of the pictures looked at have other bytes")
        return lines


def is_incomplete(noted: Mapping[str, Any]) -> bool:
    """Whether a version wrote that document which didn't record contents."""
    return _FINGERPRINT not in noted


def identity_of(
    config: TrainConfig, pairs: Pairs, model: CLIP, own_ids: Mapping[str, Any] | None = None
) -> Identity:
    """Returns the identity of a run.

    Args:
        config: the configuration of the run.
        pairs: the pairs of `config.data.train`; all keys, captions and sizes are read, and up to
            `SAMPLES` pictures.
        model: the model before the first step.
        own_ids: what distinguishes the ids of its texts from those of CLIP's tokenizer, if they do.
    """
    contents: dict[str, Any] = {"processes": jax.process_count(), **_of_data(pairs)}
    places: dict[str, Any] = {"data.train": config.data.train}
    if not isinstance(config.model, CLIPConfig):
        contents["model.digest"] = model_digest(model)
        source = config.model
        places["model"] = source if isinstance(source, str) else source.path
    if own_ids:
        contents["tokenizer"] = json.dumps(own_ids)
    return Identity(config.identity(), config.defaults(), contents, places)


def _of_data(pairs: Pairs) -> dict[str, Any]:
    digest = hashlib.sha256()
    for i in range(len(pairs)):
        line = json.dumps([pairs.key(i), pairs.size(i), pairs.captions(i)])
        digest.update(line.encode() + b"\n")
    looked_at = range(0, len(pairs), math.ceil(len(pairs) / SAMPLES))
    return {
        "data.pairs": len(pairs),
        _FINGERPRINT: digest.hexdigest(),
        _SAMPLES: " ".join(_checksum(pairs, i) for i in looked_at),
    }


def _checksum(pairs: Pairs, index: int) -> str:
    try:
        return f"{zlib.crc32(pairs[index].image):08x}"
    except OSError:  # perhaps only now
        return _UNREADABLE


def _other_pictures(there: str, here: str) -> int:
    pairs = list(zip(there.split(), here.split(), strict=False))
    return sum(_UNREADABLE not in pair and pair[0] != pair[1] for pair in pairs)
