"""Models as StableHLO programs or ONNX graphs, for places without this package."""

from clip_jax.export.exporting import export as export
from clip_jax.export.loading import ExportedModel as ExportedModel
from clip_jax.export.loading import load as load
from clip_jax.export.onnx_export import export_onnx as export_onnx
