"""`python -m clip_jax` is `clip-jax`."""

from clip_jax.cli import program

if __name__ == "__main__":
    program()
