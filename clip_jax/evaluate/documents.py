"""The figures of an evaluation as a document, for JSON."""

from typing import Any

from clip_jax.evaluate.provenance import Provenance
from clip_jax.evaluate.results import (
    ClassificationResult,
    LeftOut,
    ProbeResult,
    RetrievalResult,
    ZeroShotResult,
)


def classification_document(result: ClassificationResult) -> dict[str, Any]:
    """Returns what `zeroshot` or `probe` returns as plain JSON."""
    scores = result.scores
    document: dict[str, Any] = {
        "count": scores.count,
        "classes": len(result.class_names),
        "top1": scores.top1,
        "top1_interval": list(scores.interval),
        "top5": scores.top5,
        "mean_per_class": scores.mean_per_class,
        "per_class": result.per_class,
    }
    if isinstance(result, ZeroShotResult):
        document["templates"] = list(result.templates)
    if isinstance(result, ProbeResult):
        trials = result.sweep.trials if result.sweep else ()
        document |= {
            "fitted": result.num_fitted,
            "C": result.probe.C,
            "sweep": [
                {"C": trial.C, "accuracy": trial.accuracy, "mean_per_class": trial.mean_per_class}
                for trial in trials
            ],
        }
    return document | _left_out(result.left_out) | _origin(result.provenance)


def retrieval_document(result: RetrievalResult) -> dict[str, Any]:
    """Returns what `retrieval` returns as plain JSON."""
    return {
        "images": result.num_images,
        "texts": result.num_texts,
        **_left_out(result.left_out),
        **{
            direction: {str(k): share for k, share in recalls.items()}
            for direction, recalls in result.recalls.items()
        },
        **_origin(result.provenance),
    }


def _left_out(left_out: LeftOut) -> dict[str, Any]:
    return {
        "unreadable": len(left_out.problems) + left_out.missing,
        "files_without_parts": left_out.unknown,
    }


def _origin(provenance: Provenance | None) -> dict[str, Any]:
    if provenance is None:
        return {}
    return {
        "data": provenance.source,
        "model": provenance.model,
        "model_fingerprint": provenance.fingerprint,
        "pixels": dict(provenance.pixels),
        "date": provenance.date,
        "version": provenance.version,
    }
