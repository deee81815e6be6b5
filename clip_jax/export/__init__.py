"""Models as StableHLO programs beside their weights, for places without this package."""

from clip_jax.export.exporting import export as export
from clip_jax.export.loading import ExportedModel as ExportedModel
from clip_jax.export.loading import load as load
