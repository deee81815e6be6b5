"""Batch embedding that goes on where it was stopped, and exact search over what it leaves."""

from clip_jax.embed.gaps import Incomplete as Incomplete
from clip_jax.embed.index import read_embeddings as read_embeddings
from clip_jax.embed.job import embed as embed
from clip_jax.embed.nearest import search as search
from clip_jax.embed.page import contact_sheet as contact_sheet
from clip_jax.embed.watch import Summary as Summary
from clip_jax.sources import Columns as Columns
