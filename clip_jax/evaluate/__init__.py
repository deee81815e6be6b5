"""The evaluations that CLIP is known by: zero-shot classification, retrieval, the linear probe."""

from clip_jax.evaluate.c_sweep import Sweep as Sweep
from clip_jax.evaluate.c_sweep import Trial as Trial
from clip_jax.evaluate.c_sweep import sweep as sweep
from clip_jax.evaluate.probe import ConvergenceWarning as ConvergenceWarning
from clip_jax.evaluate.probe import LinearProbe as LinearProbe
from clip_jax.evaluate.retrieval import recall_at_k as recall_at_k
from clip_jax.evaluate.zeroshot import ZeroShotClassifier as ZeroShotClassifier
