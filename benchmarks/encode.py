"""Encoding side by side: ours, PyTorch eager, torch.compile and ONNX Runtime, in one run.

The same random weights and the same inputs for all. Each model and batch size has a process of its
own, in which the contenders take turns; its result is added to a JSON file at once, so that an
interrupted run, started again, goes on from there.

    python -m benchmarks.encode --out benchmarks/results/encode.md \
        --chart benchmarks/results/encode.png

The report and the chart are made anew from such files by `--from FILE.json ...`. Those in results/
are of `--from` encode-d3944d9.json encode-l14.json encode-b32.json encode-a4a23f9.json.
"""

import argparse
import copy
import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import report
from benchmarks.captions import captions
from benchmarks.encode_report import (
    CHANNELS_LAST,
    COMPILE,
    EAGER,
    ENCODER,
    FUSED,
    HALF,
    MODEL,
    ONNX,
    chart,
    markdown,
)
from benchmarks.peak import matmul_gflops

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("ViT-B/32", "ViT-B/16", "ViT-L/14", "RN50")
CORES = len(os.sched_getaffinity(0))

Implementation = Literal["xla", "cudnn"]
Spec = dict[str, Any]  # what a process is asked for
Record = dict[str, Any]  # what it answers; in the file together with the question


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--batches", nargs="*", type=int, help="1 32; on a GPU 1 32 256")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=2000, metavar="N", help="captions")
    parser.add_argument("--no-texts", dest="texts", action="store_const", const=0)
    parser.add_argument("--no-start", dest="start", action="store_false")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--half", action="store_true", help="images in bfloat16 on a CPU, too")
    parser.add_argument("--out", type=Path, help="Markdown; the raw numbers go beside it as JSON")
    parser.add_argument("--chart", type=Path, help="a PNG or SVG file")
    parser.add_argument("--from", dest="sources", nargs="+", type=Path, help="measure nothing")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure["kind"]](arguments.measure)))
        return 0
    if arguments.out and arguments.out.suffix != ".md":
        parser.error(f"--out must end in .md: the raw numbers become .json. Got {arguments.out}")
    if arguments.sources:
        documents = [json.loads(path.read_text()) for path in arguments.sources]
    else:
        documents = [_measure_all(arguments)]
    report.write(arguments.out, markdown(documents))
    if arguments.chart:
        chart(documents, arguments.chart)
    return 0


# --- the processes, and what they answered


def _measure_all(arguments: argparse.Namespace) -> dict:
    machine = _run({"kind": "machine"})
    document = _document(arguments.out, machine["device"])
    for spec in _specs(arguments, machine["backend"]):
        if any(_is_answer(record, spec) for record in document["records"]):
            print("kept:", json.dumps(spec), file=sys.stderr, flush=True)
            continue
        print(json.dumps(spec), file=sys.stderr, flush=True)
        begin = time.monotonic()
        record = MEASURES_HERE.get(spec["kind"], _run)(spec)
        print(f"  {time.monotonic() - begin:.0f} s in all", file=sys.stderr, flush=True)
        record |= {**spec, "backend": machine["backend"]}
        subject = {key: spec[key] for key in ("kind", "model", "batch") if key in spec}
        others = [r for r in document["records"] if not _is_answer(r, subject)]
        document["records"] = [*others, record]
        if arguments.out:
            path = arguments.out.with_suffix(".json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document, indent=1) + "\n")
    return document


def _specs(arguments: argparse.Namespace, backend: str) -> Iterable[Spec]:
    common = {"rounds": arguments.rounds, "compile": arguments.compile}
    batches = arguments.batches or ([1, 32] if backend == "cpu" else [1, 32, 256])
    if arguments.start:
        yield {"kind": "start", "model": "ViT-B/32", **common}
    half = {"half": True} if arguments.half or backend == "gpu" else {}
    for model, batch in itertools.product(arguments.models, batches):
        yield {"kind": "images", "model": model, "batch": batch, **half, **common}
    if arguments.texts:
        from clip_jax.catalog import lookup

        # Most models have the same text tower, so one of them will do.
        towers = {lookup(model).config.text: model for model in reversed(arguments.models)}
        for model in reversed(towers.values()):
            yield {"kind": "texts", "model": model, "captions": arguments.texts, **common}


def _is_answer(record: Record, spec: Spec) -> bool:
    return all(record.get(key) == value for key, value in spec.items())


def _document(out: Path | None, device: str) -> dict:
    """What was measured before by the same code on the same machine, or a new document."""
    date, hardware, versions, command = report.header().splitlines()
    digest = hashlib.sha256()
    for path in sorted((ROOT / "clip_jax").rglob("*.py")):
        digest.update(path.read_bytes())
    same = [f"{hardware}; JAX on {device}", versions, f"- Code: {digest.hexdigest()[:12]}"]
    document = {"same": same, "runs": [], "records": []}
    if out and out.with_suffix(".json").exists():
        earlier = json.loads(out.with_suffix(".json").read_text())
        document = earlier if earlier["same"] == same else document
    document["runs"] = list(dict.fromkeys([*document["runs"], date, command]))
    return document


def _run(spec: Spec) -> Record:
    """The answer of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.encode", "--measure", json.dumps(spec)]
    # JAX would take most of a GPU's memory, which PyTorch needs, too.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.4"}
    result = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    return json.loads(result.stdout.splitlines()[-1])


def machine(spec: Spec) -> Record:
    import jax

    devices = jax.devices()
    device = f"{len(devices)} x {devices[0].device_kind}"
    return {"backend": jax.default_backend(), "device": device}


# --- taking turns


@dataclasses.dataclass
class Contender:
    """Something that encodes a number of rows a call.

    Attributes:
        run: gives the features of its first rows when it is called first.
        rows: of a call.
        dtype: in which it computes.
        batch: rows of a batch, where that is its own choice.
    """

    run: Callable[[], np.ndarray]
    rows: int
    dtype: str = "float32"
    batch: int | None = None


def take_turns(
    makers: dict[str, Callable[[], Contender]],
    rounds: int,
    peak: Callable[[str], float] | None = None,
) -> Record:
    """Seconds a call of each in every round, and how far the features are from the first one's.

    Args:
        makers: of the contenders by name, the one with the true features first. One that can't be
            made here is left out, with the reason.
        rounds: how often everybody has a turn.
        peak: measures the machine's GFLOP/s for a dtype, in every round.
    """
    from tests.models import relative_error

    contenders, repeats, answer, missing, expected = {}, {}, {}, {}, None
    for name, make in makers.items():
        begin = time.perf_counter()
        try:
            contender = make()
            features = contender.run()
        except Exception as error:  # a peer that isn't installed, or doesn't work here
            if name.startswith("clip_jax") and FUSED not in name:
                raise
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"  {name}: {missing[name]}", file=sys.stderr, flush=True)
            continue
        first = time.perf_counter() - begin
        expected = features if expected is None else expected
        rows = min(len(features), len(expected))
        begin = time.perf_counter()
        contender.run()
        seconds = time.perf_counter() - begin
        contenders[name], repeats[name] = contender, max(1, min(50, round(0.4 / seconds)))
        answer[name] = {
            "rows": contender.rows,
            "dtype": contender.dtype,
            "batch": contender.batch,
            "first": round(first, 2),
            "difference": relative_error(features[:rows], expected[:rows]),
            "seconds": [],
        }
        print(f"  {name}: ready in {first:.1f} s", file=sys.stderr, flush=True)
    peaks = {contender.dtype: [] for contender in contenders.values()} if peak else {}
    begun, others = time.perf_counter(), _others()
    for turn in range(rounds):
        for name in sorted(contenders, key=list(contenders).index, reverse=turn % 2 == 1):
            run, calls = contenders[name].run, repeats[name]
            if calls > 1:
                run()  # wakes its threads; the last one's may not have gone to sleep yet
            begin = time.perf_counter()
            for _ in range(calls):
                run()
            answer[name]["seconds"].append((time.perf_counter() - begin) / calls)
            for dtype in peaks:
                peaks[dtype].append(peak(dtype))
    others = (_others() - others) / (time.perf_counter() - begun) / CORES
    print(f"  other processes took {others:.0%} of the CPU", file=sys.stderr, flush=True)
    for name, result in answer.items():
        rate = result["rows"] / statistics.median(result["seconds"])
        print(f"  {name}: {rate:.2f} rows/s", file=sys.stderr, flush=True)
    return {
        "contenders": answer,
        "missing": missing,
        "others": round(max(0.0, others), 3),
        "peak": {dtype: max(measured) for dtype, measured in peaks.items()},
    }


def _others() -> float:
    """Seconds of all cores that other processes, and the host, have taken so far."""
    line = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def _matmul_peak(dtype: str) -> float:
    import jax

    size, calls = (2048, 1) if jax.default_backend() == "cpu" else (8192, 10)
    return matmul_gflops(dtype, size, calls)


# --- the contenders


def images(spec: Spec) -> Record:
    import jax
    import jax.numpy as jnp

    import clip_jax
    from clip_jax.catalog import lookup
    from tests.models import random_images, to_float

    entry, batch = lookup(spec["model"]), spec["batch"]
    on_gpu = jax.default_backend() == "gpu"
    theirs, model = _models(entry.config)
    # Several batches a call, where the next can be on its way while one is computed.
    rows = 4 * batch if on_gpu and batch > 1 else batch
    pixels = random_images(rows, entry.config.vision.image_size)
    # From host to host; on a GPU everybody takes bytes and normalises there.
    host = pixels if on_gpu else np.array(to_float(pixels))
    parts = [jnp.asarray(host[i : i + batch]) for i in range(0, rows, batch)]
    encoders = {}

    def encoder(dtype: str, attention: Implementation = "xla") -> Contender:
        precision = "highest" if dtype == "float32" else "default"
        made = clip_jax.Encoder(
            model, batch_size=batch, dtype=dtype, precision=precision, attention=attention
        )
        encoders[dtype] = made
        return Contender(lambda: made.images(host), rows, dtype)

    def bare() -> Contender:
        return Contender(
            lambda: np.concatenate(jax.device_get([model.encode_image(p) for p in parts])), rows
        )

    ours = {ENCODER: lambda: encoder("float32"), MODEL: bare}
    if spec.get("half"):
        ours[ENCODER + HALF] = lambda: encoder("bfloat16")
    if on_gpu:
        ours[ENCODER + FUSED + HALF] = lambda: encoder("bfloat16", "cudnn")
        peers = _gpu_images
    else:
        peers = functools.partial(_cpu_images, half=bool(spec.get("half")))
    others = peers(theirs, host, batch, spec["compile"]) if theirs else _ABSENT
    answer = take_turns({**others, **ours}, spec["rounds"], _matmul_peak)
    programs = {dtype: encoder.num_compilations for dtype, encoder in encoders.items()}
    return {**answer, "gflops": entry.gflops, "programs": programs}


def texts(spec: Spec) -> Record:
    import jax

    import clip_jax
    from clip_jax.catalog import lookup

    on_gpu = jax.default_backend() == "gpu"
    theirs, model = _models(lookup(spec["model"]).config)
    tokens = clip_jax.tokenize(captions(spec["captions"]))
    lengths = np.sort(tokens.argmax(axis=1) + 1)
    sizes = (32, 256) if on_gpu else (8, 32)
    # In a call of a peer, for which all captions are as long: as many as make all in all rounds.
    share = -(-len(tokens) // spec["rounds"] // sizes[-1]) * sizes[-1]
    encoders = {}

    def encoder(dtype: str, attention: Implementation = "xla") -> Contender:
        precision = "highest" if dtype == "float32" else "default"
        made = clip_jax.Encoder(model, dtype=dtype, precision=precision, attention=attention)
        encoders[dtype] = made
        return Contender(lambda: made.texts(tokens), len(tokens), dtype)

    def calls(size: int) -> Iterable[list[np.ndarray]]:
        """The batches of one call after the other, going round and round."""
        for begin in itertools.count(step=share):
            rows = np.take(tokens, np.arange(begin, begin + share), axis=0, mode="wrap")
            yield [rows[i : i + size] for i in range(0, share, size)]

    def bare() -> Contender:
        batches = calls(sizes[-1])
        return Contender(
            lambda: np.concatenate(jax.device_get(list(map(model.encode_text, next(batches))))),
            share,
            batch=sizes[-1],
        )

    def best(make: Callable[[int], Callable], dtype: str = "float32") -> Callable[[], Contender]:
        """A maker of a peer, with the batch size that suits it."""

        def maker() -> Contender:
            embeds = {size: make(size) for size in sizes}
            some = [np.take(tokens, np.arange(2 * sizes[-1]), axis=0, mode="wrap")]
            taken = {}
            for size, embed in embeds.items():
                batches = [some[0][i : i + size] for i in range(0, len(some[0]), size)]
                embed(batches[:2])
                begin = time.perf_counter()
                embed(batches)
                taken[size] = time.perf_counter() - begin
            size = min(taken, key=taken.get)
            batches = calls(size)
            return Contender(lambda: embeds[size](next(batches)), share, dtype, size)

        return maker

    ours = {ENCODER: lambda: encoder("float32"), MODEL: bare}
    if on_gpu:
        ours[ENCODER + HALF] = lambda: encoder("bfloat16")
        ours[ENCODER + FUSED + HALF] = lambda: encoder("bfloat16", "cudnn")
    peers = {}
    if theirs and on_gpu:
        theirs = theirs.cuda()
        half = _half(theirs)
        peers[EAGER] = best(lambda _: over(theirs.encode_text, "cuda"))
        peers[EAGER + HALF] = best(lambda _: over(half.encode_text, "cuda"), "bfloat16")
        if spec["compile"]:
            compiled = torch_compiled(half.encode_text)
            peers[COMPILE + HALF] = best(lambda _: over(compiled, "cuda"), "bfloat16")
    elif theirs:
        peers[EAGER] = best(lambda _: over(theirs.encode_text))
        if spec["compile"]:
            compiled = torch_compiled(theirs.encode_text)
            peers[COMPILE] = best(lambda _: over(compiled))
        peers[ONNX] = best(lambda size: _onnx(theirs.encode_text, tokens[:1].repeat(size, 0)))
    answer = take_turns({**(peers or _ABSENT), **ours}, spec["rounds"])
    return {
        **answer,
        "programs": {dtype: encoder.num_compilations for dtype, encoder in encoders.items()},
        "examples": captions(5),
        "lengths": {
            "mean": float(lengths.mean()),
            **{str(p): int(np.percentile(lengths, p)) for p in (10, 50, 90, 100)},
        },
    }


def _absent() -> Contender:
    raise ModuleNotFoundError("PyTorch or the reference is not installed")


_ABSENT = {EAGER: _absent}


def _models(config: Any) -> tuple[Any, Any]:
    """The reference's model, None where PyTorch is not installed, and ours of the same weights."""
    from clip_jax.convert import from_pytorch
    from clip_jax.nn import from_parameters
    from tests import reference
    from tests.models import random_parameters, reference_numbers

    if not reference.available():
        return None, from_parameters(config, random_parameters(config))
    theirs = reference.randomize(reference.build(reference_numbers(config)), seed=0)
    reference.torch().set_num_threads(CORES)
    state = {name: array.numpy() for name, array in theirs.state_dict().items()}
    return theirs, from_parameters(*from_pytorch(state))


def _cpu_images(model: Any, images: np.ndarray, batch: int, compiled: bool, half: bool):
    """Makers of the peers, each with its input in the layout it likes."""
    from tests import reference

    visual, torch = model.visual, reference.torch()
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    last = torch.from_numpy(planes).to(memory_format=torch.channels_last)

    def make(embed: Callable, inputs: Any, dtype: str = "float32") -> Contender:
        return Contender(lambda: embed([inputs]), len(images), dtype)

    def in_half(wrap: Callable = lambda network: network) -> Contender:
        network = wrap(_half(visual))
        return make(over(lambda x: network(x.bfloat16())), planes, "bfloat16")

    def channels_last() -> Contender:
        moved = copy.deepcopy(visual).to(memory_format=torch.channels_last)
        return make(over(moved), last)

    makers = {EAGER: lambda: make(over(visual), planes), CHANNELS_LAST: channels_last}
    if compiled:
        makers[COMPILE] = lambda: make(over(torch_compiled(visual)), planes)
    makers[ONNX] = lambda: make(_onnx(visual, planes), planes)
    if half:
        makers[EAGER + HALF] = in_half
        if compiled:
            makers[COMPILE + HALF] = lambda: in_half(torch_compiled)
    return makers


def _gpu_images(model: Any, pixels: np.ndarray, batch: int, compiled: bool):
    from clip_jax.nn import MEAN, STD
    from tests import reference

    torch = reference.torch()
    torch.backends.cudnn.allow_tf32 = False
    mean, std = (torch.tensor(value, device="cuda") for value in (MEAN, STD))
    parts = [pixels[i : i + batch] for i in range(0, len(pixels), batch)]

    def network(dtype: Any) -> Callable:
        visual = model.visual if dtype == torch.float32 else _half(model.visual)
        visual = copy.deepcopy(visual).to("cuda", memory_format=torch.channels_last)

        def embed(pixels: Any) -> Any:
            normalised = (pixels.float() / 255 - mean) / std
            return visual(normalised.to(dtype).permute(0, 3, 1, 2))

        return embed

    def make(embed: Callable, dtype: str) -> Contender:
        embed = over(embed, "cuda")
        return Contender(lambda: embed(parts), len(pixels), dtype)

    half = torch.bfloat16
    makers = {
        EAGER: lambda: make(network(torch.float32), "float32"),
        EAGER + HALF: lambda: make(network(half), "bfloat16"),
    }
    if compiled:
        makers[COMPILE + HALF] = lambda: make(torch_compiled(network(half)), "bfloat16")
    return makers


def _half(model: Any) -> Any:
    """A copy in bfloat16, but for LayerNorm, which the reference computes in float32."""
    from tests import reference

    model = copy.deepcopy(model).bfloat16()
    for module in model.modules():
        if isinstance(module, reference.torch().nn.LayerNorm):
            module.float()
    return model


def over(network: Callable, device: str = "cpu") -> Callable[[list], np.ndarray]:
    """A PyTorch network over batches, from the host to the host."""
    from tests import reference

    torch = reference.torch()

    def embed(batches: list) -> np.ndarray:
        tensors = (torch.as_tensor(batch).to(device, non_blocking=True) for batch in batches)
        with torch.inference_mode():
            return torch.cat([network(tensor) for tensor in tensors]).float().cpu().numpy()

    return embed


def torch_compiled(network: Callable) -> Callable:
    from tests import reference

    return reference.torch().compile(network, dynamic=False)


def _onnx(network: Callable, example: np.ndarray) -> Callable[[list], np.ndarray]:
    """ONNX Runtime over batches of the example's shape."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        _export_onnx(network, example, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = CORES
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda batches: np.concatenate([session.run(None, {"x": x})[0] for x in batches])


def _export_onnx(network: Callable, example: np.ndarray, path: str, **options: Any) -> None:
    from tests import reference

    torch = reference.torch()

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.owner = getattr(network, "__self__", network)  # so that its weights are known

        def forward(self, x: Any) -> Any:
            return network(x)

    with reference.quiet(), torch.inference_mode():
        torch.onnx.export(
            Network().eval(),
            (torch.from_numpy(example),),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["y"],
            **options,
        )


# --- fresh processes

_BEGIN = """
import json, resource, sys, time
import numpy as np
weights, pixels, reference = sys.argv[1:]
pixels = np.load(pixels)
"""
_OURS = """
import clip_jax
model, _ = clip_jax.load(weights)
encode = clip_jax.Encoder(model).images
"""
# Without clip_jax, whose import would count against the reference.
_REFERENCE = """
import runpy, torch
clip = runpy.run_path(reference)["import_reference"]()
device = "cuda" if torch.cuda.is_available() else "cpu"
model, _ = clip.load(weights, device=device, jit=False)
pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
def encode(x):
    with torch.inference_mode():
        return network(torch.from_numpy(x).to(device, model.dtype)).cpu().numpy()
"""
_SESSION = """
import onnxruntime
session = onnxruntime.InferenceSession(weights, providers=["CPUExecutionProvider"])
pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
encode = lambda x: session.run(None, {"x": x})[0]
"""
_END = """
encode(pixels[:1])
first = time.monotonic()
encode(pixels)
print(json.dumps([first, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""
_STARTS = {
    ENCODER: ("native", _OURS),
    EAGER: ("archive.pt", _REFERENCE + "network = model.encode_image"),
    COMPILE: ("archive.pt", _REFERENCE + "network = torch.compile(model.encode_image)"),
    ONNX: ("model.onnx", _SESSION),
}


def start(spec: Spec) -> Record:
    """Seconds from a process's start to its first embedding, and its memory after a batch."""
    if not importlib.util.find_spec("torch"):
        return {"contenders": {}, "missing": {EAGER: "PyTorch is not installed"}}
    answer, missing = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        _run({**spec, "kind": "prepare", "folder": folder})
        for turn, (name, (weights, code)) in itertools.product(
            range(spec["rounds"] + 1), _STARTS.items()
        ):
            if name in missing or (name == COMPILE and (turn != 1 or not spec["compile"])):
                continue  # minutes of compiling, once
            command = [sys.executable, "-c", _BEGIN + code + _END, f"{folder}/{weights}"]
            command += [f"{folder}/pixels.npy", str(ROOT / "clip_jax" / "reference.py")]
            # What an earlier process has compiled doesn't count.
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
            begin = time.monotonic()
            result = subprocess.run(
                command, capture_output=True, text=True, cwd=ROOT, env=environment
            )
            if result.returncode:
                if name == ENCODER:
                    raise RuntimeError(result.stderr)
                missing[name] = result.stderr.strip().splitlines()[-1]
                print(f"  {name}: {missing[name]}", file=sys.stderr, flush=True)
                continue
            if not turn:
                continue  # the files were not in the system's memory yet
            first, memory = json.loads(result.stdout.splitlines()[-1])
            measured = answer.setdefault(name, {"seconds": [], "memory": []})
            measured["seconds"].append(first - begin)
            measured["memory"].append(memory * 1024 / 1e6)
            print(f"  {name}: {first - begin:.2f} s", file=sys.stderr, flush=True)
    return {"contenders": answer, "missing": missing}


def prepare(spec: Spec) -> Record:
    """Writes the same weights as everybody likes to have them."""
    import clip_jax
    from clip_jax.catalog import lookup
    from tests import reference
    from tests.models import random_images, reference_numbers, to_float, unsaid

    config, folder = lookup(spec["model"]).config, spec["folder"]
    model = reference.randomize(reference.build(reference_numbers(config)), seed=0)
    reference.save_torchscript(model, f"{folder}/archive.pt")
    archive = clip_jax.load(f"{folder}/archive.pt", **unsaid(config))[0]
    clip_jax.save(archive, f"{folder}/native")
    images = np.array(to_float(random_images(32, config.vision.image_size)))
    np.save(f"{folder}/pixels.npy", images)
    if importlib.util.find_spec("onnxruntime"):
        planes = np.ascontiguousarray(images[:1].transpose(0, 3, 1, 2))
        axes = {"x": {0: "b"}, "y": {0: "b"}}
        _export_onnx(model.visual, planes, f"{folder}/model.onnx", dynamic_axes=axes)
    return {}


MEASURES = {f.__name__: f for f in (machine, images, texts, prepare)}
MEASURES_HERE = {"start": start}


if __name__ == "__main__":
    sys.exit(main())
