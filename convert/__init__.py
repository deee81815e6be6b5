"""Converts other libraries' checkpoints to our parameter tree and back."""

from clip_jax.convert.big_vision import from_big_vision as from_big_vision
from clip_jax.convert.huggingface import from_huggingface as from_huggingface
from clip_jax.convert.huggingface import to_huggingface as to_huggingface
from clip_jax.convert.open_clip import from_open_clip as from_open_clip
from clip_jax.convert.open_clip import to_open_clip as to_open_clip
from clip_jax.convert.pytorch import from_pytorch as from_pytorch
from clip_jax.convert.pytorch import to_pytorch as to_pytorch
from clip_jax.convert.reader import read_checkpoint as read_checkpoint
from clip_jax.convert.writer import write_pytorch as write_pytorch
