"""`python -m clip_jax` is `clip-jax`."""

import sys

from clip_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
