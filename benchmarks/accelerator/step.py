"""One way to train, in a process of its own, whose memory is then this way's alone.

    python -m benchmarks.accelerator.step '{"model": "ViT-B/32", "way": "clip_jax", ...}'

Prints what it has measured as JSON: pairs a second, from arrays on the device to the loss, and the
peak memory. Where the memory doesn't suffice it says so and ends with status 3.
"""

import functools
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.accelerator import keep, models
from benchmarks.accelerator.cases import NO_MEMORY, NOT_HERE, kind_of, line_of
from benchmarks.accelerator.processes import die_with_parent
from benchmarks.captions import captions

WARM_UP = 2
# Seconds of timed steps, about, and how many at least.
SECONDS, LEAST = 2.0, 3
# The statuses to end with where there is nothing to print.
STATUSES = {NO_MEMORY: 3, NOT_HERE: 4}

Step = Callable[[], float]  # takes a step, gives the loss before it


def main() -> int:
    die_with_parent()
    spec = json.loads(sys.argv[1])
    try:
        print(json.dumps(measure(spec)))
        return 0
    except Exception as error:
        traceback.print_exc()
        print(line_of(error))
        return STATUSES.get(kind_of(error), 1)


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Pairs a second and the peak memory of the way that the specification names."""
    make, peak = (_torch, _torch_peak) if spec["way"].startswith("PyTorch") else (_ours, _jax_peak)
    begin = time.perf_counter()
    step = make(spec)
    losses = [step()]
    first = time.perf_counter() - begin
    losses += [step() for _ in range(0 if spec["tiny"] else WARM_UP)]
    taken: list[float] = []
    while len(taken) < (1 if spec["tiny"] else LEAST) or sum(taken) < SECONDS * (not spec["tiny"]):
        begin = time.perf_counter()
        losses.append(step())
        taken.append(time.perf_counter() - begin)
    if not np.isfinite(losses).all():
        raise FloatingPointError(f"losses are not finite: {losses}")
    used, limit = peak()
    rate = spec["batch"] / statistics.median(taken)
    return {
        "rate": rate,
        "first": first,
        "peak_bytes": used,
        "limit_bytes": limit,
        "loss": losses[0],
    }


def _batch(spec: dict[str, Any]) -> dict[str, Any]:
    import clip_jax

    config, count = models.config_of(spec["model"], spec["tiny"]), spec["batch"]
    tokens = clip_jax.tokenize(captions(count), config.text.context_length, truncate=True)
    return {"images": models.pixels_of(config, count), "tokens": tokens}


def _ours(spec: dict[str, Any]) -> Step:
    import jax

    from clip_jax.train import (
        OptimizerConfig,
        StepConfig,
        compiler_options,
        group_by_length,
        init_state,
        make_step,
    )

    optimizer = OptimizerConfig(learning_rate=1e-5, warmup_steps=0, total_steps=1000)
    model = models.model_of(spec["model"], spec["tiny"])
    how = StepConfig(
        micro_batches=spec["micro_batches"],
        rematerialize=spec["rematerialize"],
        dtype="bfloat16",
        attention=spec.get("attention", "xla"),
    )
    state = init_state(model, optimizer)
    step = jax.jit(
        make_step(model.config, optimizer, how),
        donate_argnums=0,
        compiler_options=compiler_options(),
    )
    batch = group_by_length(_batch(spec), multiple=spec["micro_batches"])
    batch, key = jax.device_put(batch), jax.random.key(0)
    keep.forget()  # the model, whose arrays the state has copies of
    del model

    def take() -> float:
        nonlocal state
        state, metrics = step(state, batch, key)
        return float(metrics["loss"])

    return take


def _torch(spec: dict[str, Any]) -> Step:
    from benchmarks.accelerator import peers

    torch = peers.torch()
    where = peers.device()
    model = peers.model_of(spec["model"], spec["tiny"], "float32").train()
    parameters = list(model.parameters())
    fused = {"fused": True} if where == "cuda" else {}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.2},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-5,
        betas=(0.9, 0.98),
        eps=1e-6,
        **fused,
    )
    batch = _batch(spec)
    pixels = peers.planes(batch["images"], "float32")
    ids = torch.from_numpy(batch["tokens"]).long().to(where)
    own = torch.arange(len(ids), device=where)
    unit = functools.partial(torch.nn.functional.normalize, dim=1)
    images, texts = peers.image_features(model), peers.text_features(model)

    def forward() -> Any:
        image, text = unit(images(pixels)), unit(texts(ids))
        logits = model.logit_scale.exp() * image @ text.T
        entropy = torch.nn.functional.cross_entropy
        return (entropy(logits, own) + entropy(logits.T, own)) / 2

    if "compiled" in spec["way"]:
        forward = peers.compiled(forward, spec["tiny"])

    def take() -> float:
        with torch.autocast(where, torch.bfloat16):
            loss = forward()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))
        return float(loss.detach())

    return take


def _jax_peak() -> tuple[int | None, int | None]:
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use"), stats.get("bytes_limit")


def _torch_peak() -> tuple[int | None, int | None]:
    import torch

    if not torch.cuda.is_available():
        return None, None
    return torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]


if __name__ == "__main__":
    sys.exit(main())
