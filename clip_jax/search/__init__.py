"""Exact search over the output of an embedding job, and HTML pages of the results."""

from clip_jax.search.exact import search as search
from clip_jax.search.page import contact_sheet as contact_sheet
