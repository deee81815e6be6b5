"""Contrastive training: losses over a global batch, the training step, the optimiser, runs."""

try:
    import optax as _optax  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "training updates parameters with Optax: pip install 'clip-jax-flax[train]'",
        name=error.name,
    ) from None

from clip_jax.train.config import TrainConfig as TrainConfig
from clip_jax.train.config import read_config as read_config
from clip_jax.train.data import group_by_length as group_by_length
from clip_jax.train.gradients import contrastive_gradients as contrastive_gradients
from clip_jax.train.losses import contrastive_loss as contrastive_loss
from clip_jax.train.losses import contrastive_metrics as contrastive_metrics
from clip_jax.train.losses import sigmoid_loss as sigmoid_loss
from clip_jax.train.losses import sigmoid_metrics as sigmoid_metrics
from clip_jax.train.optimizer import OptimizerConfig as OptimizerConfig
from clip_jax.train.optimizer import make_optimizer as make_optimizer
from clip_jax.train.optimizer import make_schedule as make_schedule
from clip_jax.train.run import train as train
from clip_jax.train.step import StepConfig as StepConfig
from clip_jax.train.step import TrainState as TrainState
from clip_jax.train.step import compiler_options as compiler_options
from clip_jax.train.step import init_state as init_state
from clip_jax.train.step import make_step as make_step
from clip_jax.train.step import model_of as model_of
