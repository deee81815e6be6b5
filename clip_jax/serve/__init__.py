"""A page and an interface over HTTP to search the output of an embedding job."""

from clip_jax.serve.server import serve as serve
