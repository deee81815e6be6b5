"""Exact search over what an embedding job leaves, and pages that show what was found."""

from clip_jax.search.exact import search as search
from clip_jax.search.page import contact_sheet as contact_sheet
