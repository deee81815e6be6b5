"""Search over what an embedding job has left, exact or by an index, and HTML pages of results."""

from clip_jax.search.approximate import ApproximateIndex as ApproximateIndex
from clip_jax.search.approximate import has_index as has_index
from clip_jax.search.approximate import open_index as open_index
from clip_jax.search.build import Built as Built
from clip_jax.search.build import build_index as build_index
from clip_jax.search.exact import search as search
from clip_jax.search.page import contact_sheet as contact_sheet
