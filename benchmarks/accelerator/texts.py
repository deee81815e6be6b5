"""Section 4: captions a second, 20,000 of natural length, against PyTorch's text tower.

From token ids on the host to embeddings on it. Ours computes each at about its own length, which
the causal mask allows; PyTorch's takes 77 columns, as the tokenizer pads them, or the columns of
the longest caption in its batch.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.accelerator import keep, models, ours
from benchmarks.accelerator.cases import Case
from benchmarks.accelerator.timing import TINY, Contender, alone, beside
from benchmarks.captions import captions

UNIT = "captions/s"
DTYPE = "bfloat16"
ENCODER = "clip_jax.Encoder"
STRINGS = "clip_jax.Encoder, from strings"
CUDNN = "clip_jax.Encoder, cuDNN attention"
EAGER = "PyTorch SDPA, 77 columns"
PADDED = "PyTorch SDPA, as long as the batch's longest"
COMPILED = "PyTorch SDPA, compiled, 77 columns"
# With the seconds that each takes at least.
CONTENDERS = {ENCODER: 40, COMPILED: 20, EAGER: 8, PADDED: 5, STRINGS: 3, CUDNN: 30}
# Captions of a call of PyTorch's, which are drawn from all.
PEERS_ROWS = 4096


def cases(tiny: bool) -> list[Case]:
    name, batch = models.B32, 16 if tiny else 256
    planned = []
    for contender, seconds in CONTENDERS.items():
        run = functools.partial(_run, name, contender, tiny)
        about = {"kind": "texts", "model": name, "dtype": DTYPE}
        what = f"{models.label(name, tiny)} texts, {DTYPE}, host to host"
        planned.append(Case(what, contender, run, batch, seconds=seconds, about=about))
    return planned


def _run(name: str, contender: str, tiny: bool, batch: int | None) -> dict[str, Any]:
    assert batch is not None
    turns = TINY if tiny else {}
    base = keep.once(("texts", batch), lambda: _made(name, ENCODER, batch, tiny))
    if contender == ENCODER:
        row = alone(base, UNIT, **turns)
        lengths = _tokens(name, tiny).argmax(axis=1) + 1
        row["note"] += f", {lengths.mean():.1f} tokens on average, {lengths.max()} at most"
        return row
    return beside(base, _made(name, contender, batch, tiny), UNIT, **turns)


def _texts(tiny: bool) -> list[str]:
    return keep.once("captions", lambda: captions(64 if tiny else 20_000))


def _tokens(name: str, tiny: bool) -> np.ndarray:
    import clip_jax

    context = models.config_of(name, tiny).text.context_length
    return keep.once("tokens", lambda: clip_jax.tokenize(_texts(tiny), context, truncate=True))


def _made(name: str, contender: str, batch: int, tiny: bool) -> Contender:
    tokens = _tokens(name, tiny)
    if contender in (ENCODER, STRINGS, CUDNN):
        encoder = _encoder(name, contender, batch, tiny)
        rows: Any = _texts(tiny) if contender == STRINGS else tokens
        return ours.from_host(contender, encoder.texts, rows, compiles=contender != STRINGS)
    from benchmarks.accelerator import peers

    torch = peers.torch()
    embed: Callable = peers.text_features(peers.model_of(name, tiny, DTYPE))
    if contender == COMPILED:
        embed = peers.compiled(embed, tiny)
    is_padded = contender == PADDED

    def encode(rows: np.ndarray) -> np.ndarray:
        found = []
        with torch.inference_mode():
            for begin in range(0, len(rows), batch):
                part = rows[begin : begin + batch]
                if is_padded:
                    part = part[:, : part.argmax(axis=1).max() + 1]
                ids = torch.from_numpy(part).to(peers.device(), non_blocking=True).long()
                found.append(embed(ids))
            return torch.cat(found).float().cpu().numpy()

    # Whole batches, so that the compiled one has one program; of the first features the same rows.
    count = max(batch, min(PEERS_ROWS, len(tokens)) // batch * batch)
    rows = np.take(tokens, np.arange(count), axis=0, mode="wrap")
    return ours.from_host(contender, encode, rows, compiles=contender == COMPILED)


def _encoder(name: str, contender: str, batch: int, tiny: bool) -> Any:
    from benchmarks.accelerator.cases import NotHere

    options: dict[str, Any] = {"dtype": DTYPE, "precision": "default", "whole_batches": True}
    if contender == CUDNN:
        import jax

        if jax.default_backend() != "gpu":
            raise NotHere("cuDNN's attention needs an NVIDIA GPU")
        options["attention"] = "cudnn"
    return ours.encoder(models.model_of(name, tiny), batch, **options)
