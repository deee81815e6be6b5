"""The evaluations that CLIP is known by: zero-shot classification, retrieval, the linear probe.

`zeroshot`, `retrieval` and `probe` go from pictures, or from what `clip_jax.embed` has left, to
figures. `ZeroShotClassifier`, `recall_at_k`, `LinearProbe` and `sweep` are their parts, for arrays.
"""

from clip_jax.evaluate.c_sweep import Sweep as Sweep
from clip_jax.evaluate.c_sweep import Trial as Trial
from clip_jax.evaluate.c_sweep import sweep as sweep
from clip_jax.evaluate.classifier import ZeroShotClassifier as ZeroShotClassifier
from clip_jax.evaluate.jobs import retrieval as retrieval
from clip_jax.evaluate.jobs import zeroshot as zeroshot
from clip_jax.evaluate.linear_probe import ConvergenceWarning as ConvergenceWarning
from clip_jax.evaluate.linear_probe import LinearProbe as LinearProbe
from clip_jax.evaluate.probing import probe as probe
from clip_jax.evaluate.provenance import Provenance as Provenance
from clip_jax.evaluate.recall import recall_at_k as recall_at_k
from clip_jax.evaluate.report import write_report as write_report
from clip_jax.evaluate.results import ClassificationResult as ClassificationResult
from clip_jax.evaluate.results import LeftOut as LeftOut
from clip_jax.evaluate.results import ProbeResult as ProbeResult
from clip_jax.evaluate.results import RetrievalResult as RetrievalResult
from clip_jax.evaluate.results import ZeroShotResult as ZeroShotResult
from clip_jax.evaluate.retrieval_mistakes import RetrievalMistake as RetrievalMistake
from clip_jax.evaluate.scores import Scores as Scores
