"""Comparison of a model's results in JAX with those in PyTorch, stage by stage."""

from clip_jax.parity.comparison import Row as Row
from clip_jax.parity.comparison import compare as compare
from clip_jax.parity.comparison import first_difference as first_difference
from clip_jax.parity.inputs import CAPTIONS as CAPTIONS
from clip_jax.parity.inputs import pictures as pictures
from clip_jax.parity.pytorch import Reference as Reference
from clip_jax.parity.pytorch import load_reference as load_reference
from clip_jax.parity.subject import Subject as Subject
from clip_jax.parity.subject import find_subject as find_subject
