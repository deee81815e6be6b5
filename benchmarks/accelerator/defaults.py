"""What a run's rows argue for: the figures that were to be reached, and a line for each default."""

from collections.abc import Iterator
from typing import Any

from benchmarks import report
from benchmarks.accelerator import embedding, first, models, texts, training
from benchmarks.accelerator.names import (
    ALL_ROWS,
    COMPILED,
    CUDNN,
    FLOATS,
    OURS,
    PLAIN,
    SCANNED,
    SINGLE_QUERY,
    TOKAMAX,
    TRITON,
    XLA,
)
from benchmarks.accelerator.rows import OK, Row

# A choice has to be faster by so much to be worth another default.
WORTH = 1.02
NOT_MEASURED = "not measured"

# Ours that differ in their attention alone, which their rows name.
_CHOICES = (OURS, XLA, CUDNN, TOKAMAX)


def figures_to_reach(rows: list[Row]) -> str:
    """A table of what was asked for and what was measured, by our fastest where there are many."""
    cells = []
    for what, value, reach, is_least, *by in _figures(rows):
        if value is None:
            cells.append((what, _plain(reach, is_least), NOT_MEASURED, "-"))
            continue
        reached = value >= reach if is_least else value <= reach
        shown = ", ".join([f"{value:.1e}" if value < 1e-2 else f"{value:.2f}", *by])
        cells.append((what, _plain(reach, is_least), shown, "yes" if reached else "NO"))
    return report.table(cells, ("what", "reach", "measured", "reached"))


def _figures(rows: list[Row]) -> Iterator[tuple]:
    """What, as measured, what to reach, whether that is the least, and by which of our choices."""
    errors = [
        row["value"]
        for row in _of(rows, kind="parity")
        if row["contender"] == "clip_jax, float32 highest"
    ]
    yield 'features at float32 "highest" against the CPU', max(errors, default=None), 1e-5, False
    for model, batch in ((models.L14, 256), (models.B32, 256), (models.B32, 1024)):
        best = _best(rows, model, batch)
        alike = {"kind": "images", "model": model, "size": batch, "dtype": "bfloat16"}
        theirs = _row(rows, **alike, contender=COMPILED)
        by = best["contender"] if best else ""
        # Both against the base that they took turns with.
        value = (best.get("ratio") or 1.0) / theirs["ratio"] if best and theirs else None
        what = f"{model} images, bfloat16, batch {batch}, against PyTorch SDPA compiled"
        yield what, value, 1.1, True, by
        if model == models.L14:
            share = best["share"] if best else None
            for reach in (0.6, 0.7):
                yield "the same, share of the measured bfloat16 peak", share, reach, True, by
    compiled = _row(rows, kind="texts", contender=texts.COMPILED)
    value = 1 / compiled["ratio"] if compiled else None
    yield "texts of natural length against PyTorch SDPA compiled", value, 4.0, True
    pair = [
        _row(rows, kind="training", model=models.L14, contender=name)
        for name in (training.OURS, training.TORCH)
    ]
    value = pair[0]["value"] / pair[1]["value"] if pair[0] and pair[1] else None
    yield "training step of ViT-L/14 against PyTorch with autocast", value, 1.0, True
    job = _row(rows, kind="job", model=models.L14, contender=embedding.JOB)
    value = job["ratio"] if job else None
    yield "embedding job against the encoder alone, ViT-L/14", value, 0.9, True


def lines(rows: list[Row]) -> str:
    """One line for each default, as a Markdown list."""
    makers = (
        _attention,
        _attention_of_texts,
        _last_block,
        _layers,
        _inputs,
        _blocks,
        _batch_size,
        _precision,
        _rematerialisation,
        _cache,
    )
    return "\n".join(f"- {line}" for maker in makers for line in maker(rows))


def _attention(rows: list[Row]) -> Iterator[str]:
    """The fastest for each length of the sequences, at the largest batch of 256 at most."""
    measured: dict[int, dict[str, float]] = {}
    for row in _of(rows, kind="images", dtype="bfloat16"):
        if row["contender"] in _CHOICES and row.get("tokens") and row["size"] == row["case"][2]:
            if row["size"] == 256 or row["tokens"] not in measured:
                rates = measured.setdefault(row["tokens"], {})
                rates[row["attention"]] = row.get("ratio") or 1.0
    # All are against XLA's, whichever the base of the rows has.
    measured = {
        tokens: {name: rate / rates["xla"] for name, rate in rates.items() if name != "xla"}
        for tokens, rates in sorted(measured.items())
        if "xla" in rates
    }
    others = sorted({name for rates in measured.values() for name in rates})
    if not others:
        yield "attention: xla; no other was measured beside it"
        return
    for name in others:
        rates = {n: rates[name] for n, rates in measured.items() if name in rates}
        from_ = next(
            (n for n in rates if all(rate >= WORTH for m, rate in rates.items() if m >= n)), None
        )
        shown = ", ".join(f"{rate:.2f} times at {n}" for n, rate in rates.items())
        if from_ is None:
            yield f"attention: xla for bfloat16; {name} is {shown} tokens"
        else:
            yield f"attention: {name} for bfloat16 from {from_} tokens on; {shown} tokens"


def _attention_of_texts(rows: list[Row]) -> Iterator[str]:
    for row in _of(rows, kind="texts", contender=texts.CUDNN):
        word = "cudnn" if row["ratio"] >= WORTH else "xla"
        yield f"attention of texts: {word} for bfloat16; cudnn is {row['ratio']:.2f} times as fast"


def _last_block(rows: list[Row]) -> Iterator[str]:
    for row in _of(rows, kind="images", contender=ALL_ROWS):
        pooled = 1 / row["ratio"]
        word = "the wanted row alone" if pooled >= 1 else "all rows"
        yield f"last block, {row['model']}: {word}; pooled it is {pooled:.2f} times as fast"
    for row in _of(rows, kind="images", contender=SINGLE_QUERY):
        word = "no keys and values" if row["ratio"] >= WORTH else "keys and values as ever"
        yield (
            f"last block, {row['model']}: {word} for its one row; without them it is "
            f"{row['ratio']:.2f} times as fast"
        )


def _layers(rows: list[Row]) -> Iterator[str]:
    for contender, ours, theirs in (
        (PLAIN, "those of backends/gpu", "those of clip_jax.nn"),
        (TRITON, "cuBLAS alone", "Triton's, too"),
    ):
        what = "norms and activations" if contender == PLAIN else "products"
        for row in _of(rows, kind="images", contender=contender):
            gain = 1 / row["ratio"]
            word = ours if gain >= 1 else theirs
            yield (
                f"{what}, {row['model']} at {row['size']:,}: {word}; with {ours} it is "
                f"{gain:.2f} times as fast as with {theirs}"
            )


def _inputs(rows: list[Row]) -> Iterator[str]:
    for row in _of(rows, kind="images", contender=FLOATS):
        bytes_ = 1 / row["ratio"]
        word = "bytes" if bytes_ >= 1 / WORTH else "floats"
        yield (
            f"input, {row['model']}: {word}; on the device bytes are {bytes_:.2f} times as fast "
            "as floats, of which four times as much has to get there"
        )


def _blocks(rows: list[Row]) -> Iterator[str]:
    for row in _of(rows, kind="images", contender=SCANNED):
        alike = {key: row[key] for key in ("kind", "model", "size", "dtype")}
        base = _row(rows, **alike, contender=OURS)
        unrolled = 1 / row["ratio"]
        word = "unrolled" if unrolled >= WORTH else "scanned"
        took = f"{base['compile_seconds']:.1f} s" if base else NOT_MEASURED
        yield (
            f"blocks, {row['model']}: {word}; unrolled they are {unrolled:.2f} times as fast and "
            f"compile in {took} against {row['compile_seconds']:.1f} s"
        )


def _batch_size(rows: list[Row]) -> Iterator[str]:
    best = {
        size: row["value"]
        for size in {row["size"] for row in _of(rows, kind="images", model=models.B32)}
        if (row := _best(rows, models.B32, size))
    }
    if len(best) > 1:
        fastest = max(best, key=lambda size: best[size])
        shown = ", ".join(f"{rate:,.0f} images/s at {n:,}" for n, rate in sorted(best.items()))
        yield f"batch_size, {models.B32}: {fastest:,}; {shown}"


def _precision(rows: list[Row]) -> Iterator[str]:
    for contender in sorted({row["contender"] for row in _of(rows, kind="parity")}):
        errors = {
            row["model"]: row["value"] for row in _of(rows, kind="parity", contender=contender)
        }
        shown = ", ".join(f"{model} {error:.1e}" for model, error in errors.items())
        yield f"error of {contender}: {shown}"
    half = _best(rows, models.L14, 256)
    for row in _of(rows, kind="images", contender=OURS):
        if half and row.get("dtype") in ("TF32", "float32 highest"):
            yield (
                f"dtype, {row['model']}: bfloat16 is {half['value'] / row['value']:.1f} times "
                f"as fast as {row['dtype']}"
            )


def _rematerialisation(rows: list[Row]) -> Iterator[str]:
    ways = (training.CUDNN, training.REMATERIALIZED, training.MICRO, training.BOTH, training.TORCH)
    for model in (models.L14, models.B32):
        base = _row(rows, kind="training", model=model, contender=training.OURS)
        for way in ways:
            if row := _row(rows, kind="training", model=model, contender=way):
                against = f"{row['value']:,.0f} pairs/s at {row['size']:,}"
                if base:
                    against += (
                        f", {row['value'] / base['value']:.2f} times plain's at {base['size']:,}"
                    )
                yield f"training, {model}, {way}: {against}"


def _cache(rows: list[Row]) -> Iterator[str]:
    found: dict[str, dict[str, float]] = {}
    for row in _of(rows, kind="first"):
        found.setdefault(row["model"], {})[row["way"]] = row["value"]
    for model, seconds in found.items():
        if {first.NONE, first.FULL} <= set(seconds):
            saved = seconds[first.NONE] - seconds[first.FULL]
            yield (
                f"compile_cache, {model}: saves {saved:.1f} of {seconds[first.NONE]:.1f} s to the "
                "first embedding of a process"
            )


def _of(rows: list[Row], **wanted: Any) -> list[Row]:
    return [
        row
        for row in rows
        if row["status"] == OK and all(row.get(key) == value for key, value in wanted.items())
    ]


def _row(rows: list[Row], **wanted: Any) -> Row | None:
    """The last such row, which is of the largest size that fits where several were tried."""
    found = _of(rows, **wanted)
    return found[-1] if found else None


def _best(rows: list[Row], model: str, batch: int) -> Row | None:
    """Our fastest on the device in bfloat16."""
    found = [
        row
        for row in _of(rows, kind="images", model=model, size=batch, dtype="bfloat16")
        if row["contender"] in (*_CHOICES, SCANNED, SINGLE_QUERY)
    ]
    return max(found, key=lambda row: row["value"], default=None)


def _plain(reach: float, is_least: bool) -> str:
    number = f"{reach:.0e}" if reach < 1e-2 else f"{reach:.2f}"
    return f"at {'least' if is_least else 'most'} {number}"
