"""Batch embedding that goes on where it was stopped, and exact search over what it leaves."""

from clip_jax.embed.job import embed as embed
from clip_jax.embed.watch import Summary as Summary
from clip_jax.sources import Columns as Columns
