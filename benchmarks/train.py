"""A training step beside PyTorch's: the same weights, the same batch, the same AdamW.

    python -m benchmarks.train --out benchmarks/results/train.md
    python -m benchmarks.train --model emoji --batch 384 --out benchmarks/results/train_emoji.md

Pairs a second, ours and a plain PyTorch loop over the reference model taking turns in one process;
and the peak memory of each in a process of its own, with and without rematerialisation. The texts
are captions of natural length: PyTorch's model takes them at 77 columns and no fewer, ours in
groups of their lengths, as `clip-jax train` does it, and at 77 columns besides.
"""

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import clip_jax
from benchmarks import report
from benchmarks.captions import captions
from clip_jax.catalog import lookup
from clip_jax.parity import load_reference
from clip_jax.train import (
    OptimizerConfig,
    StepConfig,
    compiler_options,
    group_by_length,
    init_state,
    make_step,
)

OURS, REMATERIALIZED = "clip_jax", "clip_jax, rematerialize"
HALVED = "clip_jax, half of each picture's patches"  # another step, whose loss is another
UNTRIMMED, THEIRS = "clip_jax, texts of 77 columns", "PyTorch"
CONTENDERS = (OURS, REMATERIALIZED, HALVED, UNTRIMMED, THEIRS)
# No warm-up, so that the first step moves something and the losses of the second can be compared.
OPTIMIZER = OptimizerConfig(learning_rate=1e-5, warmup_steps=0, total_steps=100)

Step = Callable[[], float]  # takes a step, gives the loss before it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B/32")
    parser.add_argument("--batch", type=int, default=64, metavar="PAIRS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="a Markdown file to write the table to")
    parser.add_argument("--memory", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        step = make(arguments.memory, arguments.model, arguments.batch)
        losses = [step() for _ in range(2)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"megabytes": peak * 1024 / 1e6, "losses": losses}))
        return 0

    measured = [_memory(name, arguments.model, arguments.batch) for name in CONTENDERS]
    seconds, losses = take_turns(arguments.model, arguments.batch, arguments.rounds)
    rows = []
    for name, memory in zip(CONTENDERS, measured, strict=True):
        ratios = [theirs / own for own, theirs in zip(seconds[name], seconds[THEIRS], strict=True)]
        rows.append(
            (
                name,
                arguments.batch / statistics.median(seconds[name]),
                f"{statistics.median(ratios):.2f}",
                f"{memory['megabytes']:,.0f}",
                ", ".join(f"{loss:.6f}" for loss in losses[name][:2]),
            )
        )
    tokens = _tokens(arguments.batch)
    lengths = tokens.argmax(1) + 1
    groups = group_by_length({"tokens": tokens})["tokens"]
    notes = (
        f"{arguments.model}, float32, {arguments.batch} pairs, AdamW with decay of matrices, "
        "gradients cut to a norm of 1; from arrays on the host to the loss on the host. Medians of "
        f"{arguments.rounds} steps each, alternating; ratios round by round. Memory: ru_maxrss of "
        "a process that takes two steps, libraries included. Texts: captions as "
        "benchmarks/captions.py makes them, "
        f"{lengths.mean():.1f} tokens on average and {lengths.max()} at most, in groups of "
        f"{' and '.join(f'{len(x)} with {x.shape[1]} columns' for x in groups)}."
    )
    columns = (
        "contender",
        "pairs a second",
        "times PyTorch's",
        "peak memory, MB",
        "loss, first two steps",
    )
    text = ["# A training step", report.header(), notes, report.table(rows, columns)]
    report.write(arguments.out, "\n\n".join(text))
    return 0


def take_turns(model: str, batch: int, rounds: int) -> tuple[dict, dict]:
    """Seconds and losses of each contender's steps."""
    steps = {name: make(name, model, batch) for name in CONTENDERS}
    losses = {name: [step()] for name, step in steps.items()}  # compiles, and warms up
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for i in range(rounds):
        turn = list(steps) if i % 2 == 0 else list(steps)[::-1]
        for name in turn:
            begin = time.perf_counter()
            losses[name].append(steps[name]())
            seconds[name].append(time.perf_counter() - begin)
        print(f"  round {i + 1}: { {n: round(s[-1], 2) for n, s in seconds.items()} }", flush=True)
    return seconds, losses


def make(name: str, model: str, batch: int) -> Step:
    """A contender's step, on the weights and the batch of all."""
    network = clip_jax.CLIP(lookup(model).config, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    size = network.config.vision.image_size
    images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
    pairs = {"images": images, "tokens": _tokens(batch)}
    if name == THEIRS:
        return _theirs(network, **pairs)
    if name != UNTRIMMED:
        pairs = group_by_length(pairs)
    how = StepConfig(
        rematerialize=name == REMATERIALIZED,
        patch_dropout=0.5 if name == HALVED else 0.0,
        precision="highest",
    )
    return _ours(network, pairs, how)


def _tokens(batch: int) -> np.ndarray:
    return clip_jax.tokenize(captions(batch))


def _ours(network: Any, pairs: dict[str, Any], how: StepConfig) -> Step:
    step = jax.jit(
        make_step(network.config, OPTIMIZER, how),
        donate_argnums=0,
        compiler_options=compiler_options(),
    )
    state, key = init_state(network, OPTIMIZER), jax.random.key(0)

    def take() -> float:
        nonlocal state
        state, metrics = step(state, jax.tree.map(jnp.asarray, pairs), key)
        return float(metrics["loss"])

    return take


def _theirs(network: Any, images: np.ndarray, tokens: np.ndarray) -> Step:
    with tempfile.TemporaryDirectory() as folder:
        clip_jax.save(network, Path(folder) / "model")
        reference = load_reference(Path(folder) / "model")
    torch, model = reference.torch, reference.model.train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=OPTIMIZER.learning_rate,
        betas=(OPTIMIZER.b1, OPTIMIZER.b2),
        eps=OPTIMIZER.eps,
        weight_decay=OPTIMIZER.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, OPTIMIZER.total_steps)
    normalize = functools.partial(torch.nn.functional.normalize, dim=1)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in (clip_jax.nn.pixels.MEAN, clip_jax.nn.pixels.STD)
    )

    def take() -> float:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        pixels = (pixels / 255 - mean) / std
        image = normalize(model.encode_image(pixels))
        text = normalize(model.encode_text(torch.from_numpy(tokens)))
        logits = model.logit_scale.exp() * image @ text.T
        own = torch.arange(len(logits))
        entropy = torch.nn.functional.cross_entropy
        loss = (entropy(logits, own) + entropy(logits.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, OPTIMIZER.max_gradient_norm)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))
        return float(loss.detach())

    return take


def _memory(name: str, model: str, batch: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.train", "--memory", name]
    command += ["--model", model, "--batch", str(batch)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
