"""What `benchmarks.encode` measured, as Markdown and as a chart."""

import itertools
import statistics
from pathlib import Path
from typing import Any

from benchmarks import report

ENCODER, MODEL = "clip_jax.Encoder", "clip_jax model"
EAGER, CHANNELS_LAST = "PyTorch eager", "PyTorch eager, channels_last"
COMPILE, ONNX = "torch.compile", "ONNX Runtime"
FUSED, HALF = ", cuDNN attention", ", bfloat16"
PEERS = (EAGER, CHANNELS_LAST, COMPILE, ONNX)
NOT_MEASURED = "not measured"

Record = dict[str, Any]


def _records(documents: list[dict]) -> list[Record]:
    return [record for document in documents for record in document["records"]]


def markdown(documents: list[dict]) -> str:
    """The report of what the files of `benchmarks.encode` hold, one of each machine."""
    records = _records(documents)
    parts = ["# Encoding"]
    for document in documents:
        dates = [line for line in document["runs"] if line.startswith("- Date")]
        commands = [line for line in document["runs"] if line not in dates]
        parts.append("\n".join([*dates, *document["same"], *commands]))
    if others := max((record.get("others", 0) for record in records), default=0):
        parts.append(f"Other processes took at most {others:.1%} of the CPU time in a measurement.")
    parts += ["## In short", _figures(records)]
    makers = {"images": _images, "texts": _texts, "start": _starts}
    for (kind, make), backend in itertools.product(makers.items(), ("cpu", "gpu")):
        some = [
            record for record in records if (record["kind"], record["backend"]) == (kind, backend)
        ]
        if some:
            title, *tables = make(some)
            parts += [f"## {title}, {backend.upper()}", *tables]
    missing = {
        f"{name} ({record['backend'].upper()}): {reason}"
        for record in records
        for name, reason in record["missing"].items()
    }
    if not any(record["backend"] == "gpu" for record in records):
        missing.add("GPU: there was none")
    if missing:
        parts += ["## Not measured", "\n".join(f"- {line}" for line in sorted(missing))]
    return "\n\n".join(parts)


def _rate(record: Record, name: str) -> float:
    result = record["contenders"][name]
    return result["rows"] / statistics.median(result["seconds"])


def _best_peer(record: Record, suffix: str = "") -> str | None:
    """The name of the fastest peer in the same dtype."""
    peers = [name + suffix for name in PEERS if name + suffix in record["contenders"]]
    return max(peers, key=lambda name: _rate(record, name), default=None)


def _ratio(record: Record, ours: str, peer: str | None) -> float | None:
    """How many times as fast, the median over the rounds."""
    if peer not in record["contenders"] or ours not in record["contenders"]:
        return None
    ours, theirs = record["contenders"][ours], record["contenders"][peer]
    per_round = zip(ours["seconds"], theirs["seconds"], strict=True)
    scale = ours["rows"] / theirs["rows"]
    return statistics.median(scale * b / a for a, b in per_round)


def _share(record: Record, name: str) -> float | None:
    """Of the matmul peak of the same dtype in the same process."""
    if name not in record["contenders"]:
        return None
    peak = record["peak"][record["contenders"][name]["dtype"]]
    return record["gflops"] * _rate(record, name) / peak


def _difference(record: Record, name: str) -> str:
    return f"{record['contenders'][name]['difference']:.1e}"


def _figures(records: list[Record]) -> str:
    def some(kind: str, backend: str, batch: int | None = None, model: str = "") -> list[Record]:
        return [
            record
            for record in records
            if (record["kind"], record["backend"]) == (kind, backend)
            and record["model"].startswith(model)
            and (batch is None or record["batch"] == batch)
        ]

    def to_best(records: list[Record]) -> dict[str, float | None]:
        return {r["model"]: _ratio(r, ENCODER, _best_peer(r)) for r in records}

    def share(records: list[Record], name: str) -> dict[str, float | None]:
        return {r["model"]: _share(r, name) for r in records}

    half = ENCODER + HALF
    large = some("images", "gpu", 256, "ViT-L/14")
    compiled = {r["model"]: _ratio(r, half, COMPILE + HALF) for r in large}
    starts = {r["model"]: _first(r, ENCODER) for r in some("start", "cpu")}
    vits = some("images", "cpu", 32, "ViT")
    resnets = to_best(some("images", "cpu", 32, "RN50"))
    ones = some("images", "cpu", 1)
    rows = [
        ("CPU, images, ViT models, batch 32, against the best peer", to_best(vits)),
        ("CPU, images, RN50, batch 32, against the best peer", resnets),
        ("CPU, one image, against the best peer", to_best(ones)),
        ("CPU, texts of natural length, against the best peer", to_best(some("texts", "cpu"))),
        (
            "CPU, ViT images, batch 32: share of the measured float32 matmul peak",
            share(vits, ENCODER),
        ),
        (
            "GPU, ViT-L/14 images, bfloat16, batch 256: against torch compiled + SDPA",
            compiled,
        ),
        ("GPU, same: share of the measured bfloat16 matmul peak", share(large, half)),
        ("CPU, time to first embedding, fresh process, against the reference's", starts),
    ]
    return report.table([_figure(*row) for row in rows], ("what", "measured"))


def _first(record: Record, name: str) -> float | None:
    """Time to the first embedding over the reference's."""
    if not {name, EAGER} <= set(record["contenders"]):
        return None
    ours, theirs = (record["contenders"][n]["seconds"] for n in (name, EAGER))
    return statistics.median(ours) / statistics.median(theirs)


def _figure(what: str, measured: dict[str, float | None]) -> tuple[str, str]:
    found = {model: value for model, value in measured.items() if value is not None}
    shown = ", ".join(f"{model} {value:.2f}" for model, value in found.items())
    return what, shown or NOT_MEASURED


def _names(records: list[Record]) -> list[str]:
    """The contenders of some records, ours first."""
    order = (ENCODER, ENCODER + FUSED, MODEL, *PEERS)
    names = [name + suffix for suffix in ("", HALF) for name in order]
    return [name for name in names if any(name in record["contenders"] for record in records)]


def _images(records: list[Record]) -> list[str]:
    names = _names(records)
    rates, ratios, shares, differences = [], [], [], []
    for record in records:
        results = record["contenders"]
        who = record["model"], record["batch"]
        for rows, value in ((rates, _rate), (shares, _share), (differences, _difference)):
            measured = [value(record, n) if n in results else NOT_MEASURED for n in names]
            rows.append((*who, *measured))
        for suffix, dtype in (("", "float32"), (HALF, "bfloat16")):
            ours, peer = ENCODER + suffix, _best_peer(record, suffix)
            if ours not in results:
                continue
            milliseconds = [
                1e3 * statistics.median(results[n]["seconds"]) for n in (ours, peer) if n
            ]
            ratio = f"{_ratio(record, ours, peer):.2f}" if peer else NOT_MEASURED
            ratios.append(
                (
                    *who,
                    dtype,
                    milliseconds[0],
                    peer or NOT_MEASURED,
                    milliseconds[1] if peer else NOT_MEASURED,
                    ratio,
                    record["peak"][dtype],
                    record["programs"][dtype],
                )
            )
    columns = ("model", "batch", *names)
    rounds = sorted({record["rounds"] for record in records})
    return [
        "Images",
        "Images a second, from host to host, float32 unless it says otherwise; medians of "
        f"{'/'.join(map(str, rounds))} rounds. `{MODEL}` is `model.encode_image`. On a CPU the "
        "input is normalised floats in the layout of each, on a GPU bytes.",
        report.table(rates, columns),
        "Against the best peer of the same dtype: the median of the ratios of each round. "
        "Peak: the best 2048³ product of the dtype in JAX (8192³ on a GPU) between the turns.",
        report.table(
            ratios,
            (
                "model",
                "batch",
                "dtype",
                "ours, ms a call",
                "best peer",
                "its ms",
                "times as fast",
                "peak, GFLOP/s",
                "programs compiled",
            ),
        ),
        "Share of that peak: the architecture's GFLOPs (2 a multiply-add) over the time.",
        report.table(shares, columns),
        f"Difference of the features from those of `{EAGER}`: relative L2.",
        report.table(differences, columns),
    ]


def _texts(records: list[Record]) -> list[str]:
    rows = []
    for record in records:
        for name in _names([record]):
            result = record["contenders"][name]
            suffix = HALF if name.endswith(HALF) else ""
            ratio = _ratio(record, name, _best_peer(record, suffix))
            rows.append(
                (
                    record["model"],
                    name,
                    _rate(record, name),
                    f"{ratio:.2f}" if ratio else NOT_MEASURED,
                    result["batch"] or "its own",
                    _difference(record, name),
                    record["programs"][result["dtype"]] if name.startswith(ENCODER) else "-",
                )
            )
    record = records[0]
    lengths = record["lengths"]
    examples = "\n".join(f"    {caption}" for caption in record["examples"])
    return [
        "Texts",
        f"{record['captions']:,} captions, tokenised beforehand. Their lengths with start and end: "
        f"mean {lengths['mean']:.1f}, a tenth up to {lengths['10']}, half up to {lengths['50']}, "
        f"nine tenths up to {lengths['90']}, all up to {lengths['100']}. Ours encodes all of them "
        "in every round. The others take 77 columns as they come, so that their time doesn't "
        "depend on the caption: each round they encode another share of the captions, all of them "
        "in all rounds, in the better of two batch sizes. "
        f"`{MODEL}` is `model.encode_text` with 77 columns. For example:",
        examples,
        report.table(
            rows,
            (
                "model",
                "contender",
                "texts a second",
                "times the best peer",
                "batch",
                "difference",
                "programs compiled",
            ),
        ),
    ]


def _starts(records: list[Record]) -> list[str]:
    rows = []
    for record in records:
        for name, result in record["contenders"].items():
            ratio = _first(record, name)
            rows.append(
                (
                    record["model"],
                    name,
                    f"{statistics.median(result['seconds']):.2f}",
                    len(result["seconds"]),
                    f"{ratio:.2f}" if ratio else "-",
                    round(statistics.median(result["memory"])),
                )
            )
    columns = ("model", "contender", "first embedding, s", "processes")
    return [
        "Start and memory",
        "From the start of a fresh `python -c` until the first image's embedding is on the host: "
        "ours from a native folder, PyTorch from its archive, ONNX Runtime from its file; "
        "alternating, medians; torch.compile without its cache, once. Then a batch of 32, and the "
        "process's peak memory (ru_maxrss, mapped files and libraries included).",
        report.table(rows, (*columns, "times the reference's", "peak memory, MB")),
    ]


COLORS = {
    ENCODER: "#d1495b",
    MODEL: "#edae49",
    EAGER: "#30638e",
    COMPILE: "#5b8fb9",
    ONNX: "#9db4c0",
}


def chart(documents: list[dict], path: Path) -> None:
    """A panel for each model and batch, with a scale of its own, ours on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        _panel(record) for record in _records(documents) if record["kind"] in ("images", "texts")
    ]
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    height = sum(max(len(bars) for _, bars in panels) * 0.3 + 0.6 for _ in range(rows))
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(5 * columns, height), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, bars) in zip(axes.flat, panels, strict=False):
        axis.set_title(title, fontsize=10, loc="left", fontweight="bold")
        colors = [COLORS[name.split(",")[0]] for name in bars]
        container = axis.barh(list(bars), list(bars.values()), color=colors)
        labels = [f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" for rate in bars.values()]
        axis.bar_label(container, labels, padding=3, fontsize=9)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.15 * max(bars.values()))
        axis.set_xticks([])
        axis.tick_params(axis="y", length=0, labelsize=9)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle("Rows a second, longer is better", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _panel(record: Record) -> tuple[str, dict[str, float]]:
    """Title and rates; of the two layouts of PyTorch's the faster one."""
    if record["kind"] == "texts":
        title = f"{record['model']}, {record['captions']:,} texts"
    else:
        title = f"{record['model']}, batch {record['batch']}"
    bars: dict[str, float] = {}
    for name in _names([record]):
        label = EAGER if name == CHANNELS_LAST else name
        bars[label] = max(_rate(record, name), bars.get(label, 0.0))
    return f"{title}, {record['backend'].upper()}", bars
