"""What the contenders are called in rows; the table of defaults goes by these."""

# As the public encoder computes on this device, by `clip_jax.backends.defaults`.
OURS = "clip_jax"
XLA = "clip_jax, XLA attention"
CUDNN = "clip_jax, cuDNN attention"
TOKAMAX = "clip_jax, tokamax attention"
ALL_ROWS = "clip_jax, all rows of the last block"
SINGLE_QUERY = "clip_jax, single-query last block"
SCANNED = "clip_jax, blocks scanned"
FLOATS = "clip_jax, floats in"
PLAIN = "clip_jax, norms and activations of clip_jax.nn"
TRITON = "clip_jax, Triton's products"
ENCODER = "clip_jax.Encoder, host to host"

EAGER = "PyTorch SDPA"
COMPILED = "PyTorch SDPA, compiled"
REDUCED = "PyTorch SDPA, compiled, reduce-overhead"
COMPILED_HOST = "PyTorch SDPA, compiled, host to host"
