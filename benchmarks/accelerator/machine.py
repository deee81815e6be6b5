"""What a run is measured on: the card, its driver, the versions."""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

_PROBE = """
import json, jax
device, *others = jax.devices()
stats = device.memory_stats() or {}
print(json.dumps({
    "platform": device.platform,
    "kind": device.device_kind,
    "devices": 1 + len(others),
    "memory": stats.get("bytes_limit"),
}))
"""
_SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def look() -> dict[str, Any]:
    """What JAX sees here, by a process of its own that leaves the device free.

    Raises:
        RuntimeError: JAX can't be imported, or none of its devices works; says what it said.
    """
    # The limit is that of a process that may have all there is.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, env=environment
    )
    if probe.returncode:
        words = probe.stderr.strip().splitlines()
        raise RuntimeError(words[-1] if words else f"status {probe.returncode}")
    found = json.loads(probe.stdout.splitlines()[-1])
    return {**found, "driver": _driver()}


def _driver() -> str | None:
    """What the driver says of the first card, where it is NVIDIA's."""
    if shutil.which(_SMI[0]) is None:
        return None
    answer = subprocess.run(_SMI, capture_output=True, text=True)
    return answer.stdout.splitlines()[0] if answer.returncode == 0 and answer.stdout else None


def card(machine: dict[str, Any]) -> str:
    """The device in words."""
    here = f"JAX on {machine['devices']} x {machine['kind']} ({machine['platform']})"
    if not machine["driver"]:
        return here
    name, driver, memory = machine["driver"].split(", ")
    return f"{name}, {memory}, driver {driver}; {here}"
