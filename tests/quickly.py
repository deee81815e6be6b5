"""Programs compiled in a third of the time, since most of the tests' time went there.

By XLA's least effort, which changes how fast a program runs and the last bits of its results. All
tests run so, unless XLA_FLAGS is set; with XLA_FLAGS= they run what users run, but for trainings,
whose tests ask for it themselves: there are many, and a step takes longest. `.ci/run` runs both.
"""

import functools

import jax

OPTIONS: dict[str, bool | int] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # later there is no other emitter
    OPTIONS["xla_cpu_use_fusion_emitters"] = False

# For processes as a whole.
ENVIRONMENT = {"XLA_FLAGS": " ".join(f"--{name}={value}" for name, value in OPTIONS.items())}

jit = functools.partial(jax.jit, compiler_options=OPTIONS)
