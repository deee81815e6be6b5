"""The mathematics of CLIP and SigLIP as Flax NNX modules, without any input or output."""

from clip_jax.nn.clip import CLIP as CLIP
from clip_jax.nn.clip import normalize as normalize
from clip_jax.nn.outputs import ImageOutput as ImageOutput
from clip_jax.nn.outputs import TextOutput as TextOutput
from clip_jax.nn.siglip import SigLIP as SigLIP
from clip_jax.nn.siglip import build as build
from clip_jax.nn.tree import flatten as flatten
from clip_jax.nn.tree import from_parameters as from_parameters
from clip_jax.nn.tree import misfits as misfits
from clip_jax.nn.tree import model_digest as model_digest
from clip_jax.nn.tree import parameters as parameters
from clip_jax.nn.tree import set_parameters as set_parameters
from clip_jax.nn.tree import unflatten as unflatten
from clip_jax.pixel_config import MEAN as MEAN
from clip_jax.pixel_config import STD as STD
