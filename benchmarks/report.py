"""What every benchmark says of itself: a Markdown header, tables, and where they are written."""

import datetime
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "jax jaxlib flax numpy pillow ftfy regex torch torchvision clip-anytorch open_clip_torch"
    " transformers scikit-learn onnx onnxruntime"
).split()


def header(device: str | None = None) -> str:
    """Date, hardware, versions and command, as a Markdown list.

    Args:
        device: what was computed on; where it isn't given, JAX is asked if it is in use.
    """
    spec = sys.modules["__main__"].__spec__
    program = (
        ["-m", spec.name.removesuffix(".__main__")] if spec else [os.path.relpath(sys.argv[0])]
    )
    command = shlex.join(["python", *program, *sys.argv[1:]])
    return "\n".join(
        [
            f"- Date: {datetime.date.today().isoformat()}",
            f"- Hardware: {_hardware(device)}",
            f"- Versions: {_versions()}",
            f"- Command: `{command}`",
        ]
    )


def table(rows: Iterable[Sequence[object]], columns: Sequence[str]) -> str:
    """A Markdown table. Floats get three significant digits; format others beforehand."""
    lines = [columns, ["---"] * len(columns), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: str | Path | None, text: str) -> None:
    """Print a report, and write it to a file where a path is given."""
    print(text.rstrip())
    if path is not None:
        _write(path, text)


def write_section(path: str | Path | None, text: str) -> None:
    """Print a report; where a path is given, put it into that file of several.

    It replaces the report that begins with the same line, or follows the others.
    """
    reports = [] if path is None or not Path(path).exists() else _reports(Path(path).read_text())
    text = text.strip()
    title = text.splitlines()[0]
    titles = [other.splitlines()[0] for other in reports]
    if title in titles:
        reports[titles.index(title)] = text
    else:
        reports.append(text)
    print(text)
    if path is not None:
        _write(path, "\n\n".join(reports))


def _write(path: str | Path, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text.rstrip() + "\n")


def _reports(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?m)^(?=# )", text) if part.strip()]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if type(value) is int else str(value)


def _hardware(device: str | None) -> str:
    parts = [f"{_processor()}, {len(os.sched_getaffinity(0))} cores"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    parts.append(f"{memory / 2**30:.0f} GiB memory")
    if device is not None:
        parts.append(device)
    elif jax := sys.modules.get("jax"):  # a benchmark without JAX should not start it
        devices = jax.devices()
        parts.append(f"JAX on {len(devices)} x {devices[0].device_kind}")
    return ", ".join(parts)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
