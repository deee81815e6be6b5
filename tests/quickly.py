"""Programs compiled in a third of the time, for tests in which most of the time would go there.

XLA's least effort, which changes how fast a program runs and the last bits of its results. What is
compared with PyTorch, and the encoders, are compiled as their users have them.
"""

import functools

import jax

OPTIONS: dict[str, bool | int] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # later there is no other emitter
    OPTIONS["xla_cpu_use_fusion_emitters"] = False

# For processes of their own: what they add to their environment.
ENVIRONMENT = {"XLA_FLAGS": " ".join(f"--{name}={value}" for name, value in OPTIONS.items())}

jit = functools.partial(jax.jit, compiler_options=OPTIONS)
