"""What makes two runs the same: settings, data, and the model that they start from."""

import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax

from clip_jax.messages import differences
from clip_jax.nn import CLIP, model_digest
from clip_jax.sources import Pairs
from clip_jax.train.config import FREE, TrainConfig

# Of how many pictures the bytes are looked at; of all others the name and the size.
SAMPLES = 256
_FINGERPRINT, _SAMPLES = "data.fingerprint", "data.samples"
_UNREADABLE = "-"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run and its continuation have in common; all by dotted names, as plain JSON.

    Attributes:
        settings: those that numbers depend on.
        defaults: what settings were before there were such.
        contents: of what lies outside of the configuration: the data, the model.
        places: where that lies. It may move: only runs of versions that noted no contents are told
            apart by it.
    """

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    contents: dict[str, Any] = dataclasses.field(default_factory=dict)
    places: dict[str, Any] = dataclasses.field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """What is noted of the run."""
        return {**self.settings, **self.contents}

    def digest(self) -> str:
        """The same in all processes that train together, if they were given the same."""
        shared = {name: v for name, v in self.document().items() if name != _SAMPLES}
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()

    def differences(self, noted: Mapping[str, Any]) -> list[str]:
        """In what another run differs, a line each.

        Args:
            noted: of the other one, by this version or an earlier one.
        """
        here = self.document()
        there = {n: v for n, v in noted.items() if n != "out" and n.rpartition(".")[2] not in FREE}
        there = {name: v for name, v in self.defaults.items() if name in here} | there
        if is_incomplete(noted):
            here, there = here | self.places, self.contents | there
        samples = [str(side.pop(_SAMPLES, "nothing")) for side in (there, here)]
        lines = differences(there, here)
        if count := _other_pictures(*samples):
            lines.append(f"- {_SAMPLES}: {count} of the pictures looked at have other bytes")
        return lines


def is_incomplete(noted: Mapping[str, Any]) -> bool:
    """Whether a version noted that run which looked at no contents."""
    return _FINGERPRINT not in noted


def identity_of(config: TrainConfig, pairs: Pairs, model: CLIP) -> Identity:
    """What a continuation must agree with.

    Args:
        config: of the run.
        pairs: what `config.data.train` holds; their keys, captions and sizes are looked at, and the
            bytes of up to `SAMPLES` pictures.
        model: what is trained, before the first step.
    """
    contents: dict[str, Any] = {"processes": jax.process_count(), **_of_data(pairs)}
    places: dict[str, Any] = {"data.train": config.data.train}
    if isinstance(config.model, str):
        contents["model.digest"] = model_digest(model)
        places["model"] = config.model
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
    except OSError:  # for this moment, perhaps
        return _UNREADABLE


def _other_pictures(there: str, here: str) -> int:
    pairs = list(zip(there.split(), here.split(), strict=False))
    return sum(_UNREADABLE not in pair and pair[0] != pair[1] for pair in pairs)
