"""A training run, which can be killed at any moment and resumed."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from clip_jax.config import CLIPConfig
from clip_jax.image_size import shown_size
from clip_jax.nn import build, parameters
from clip_jax.preprocess import FITS
from clip_jax.progress import announce, remark
from clip_jax.sentence_piece import AnyTokenizer
from clip_jax.sources import open_pairs
from clip_jax.sources.stand_ins import warn_of_stand_ins
from clip_jax.train.checkpoints import Checkpoints
from clip_jax.train.config import Pretrained, TrainConfig
from clip_jax.train.data import Skipped, batches, group_by_length
from clip_jax.train.identity import identity_of
from clip_jax.train.metrics import Metrics
from clip_jax.train.step import TrainState, compiler_options, init_state, make_step, model_of
from clip_jax.train.stopping import GRACE, stopping
from clip_jax.train.together import total
from clip_jax.weights import load, save_parameters
from clip_jax.weights.opened import LoadOptions, Opened, open_model

AXIS = "data"


def train(
    config: TrainConfig,
    *,
    progress: bool = True,
    more_steps: bool = False,
    grace: float = GRACE,
) -> Path:
    """Trains a model, or resumes an earlier call that was stopped.

    Whenever it was stopped, the final parameters are the same to the bit on the same devices. With
    several processes, all must call this with the same configuration.

    Args:
        config: the configuration of the run.
        progress: whether to show a bar on standard error with step, loss and pairs per second.
        more_steps: whether it is meant that `optimizer.total_steps` has grown since the run began.
            Without it a finished run goes on with a warning, and one that hasn't finished is
            refused. Its learning rates are from then on those of a run of so many steps.
        grace: on the command line, the seconds after SIGTERM in which the process ends, with the
            step under way saved if there is time for that.

    Returns:
        The folder of the finished model, `model` in `config.out`, which `clip_jax.load` takes.
        Beside it are `metrics.jsonl`, `training.png` and the last checkpoints.

    Raises:
        ValueError: the configuration, the data or the folder doesn't fit; the loss or a parameter
            isn't finite; no checkpoint is intact, or too many pictures can't be read.
        OSError: another process trains in the folder; a checkpoint can't be written (the message
            names the last good one); or the machine has run out of memory or descriptors.
        KeyboardInterrupt: Ctrl-C or, on the command line, SIGTERM; the current step is saved first.
        ModuleNotFoundError: training needs the extra `train`.
    """
    out = Path(config.out)
    opened = _opened(config)
    model = opened.model
    mesh = Mesh(np.array(jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))
    rows = _share(config.run.batch_size, mesh)
    text_length = config.data.text_length or model.config.text.context_length
    if text_length > model.config.text.context_length:
        raise ValueError(
            f"text_length must be at most the context, {model.config.text.context_length}. "
            f"Got {text_length}."
        )
    if text_length < model.config.text.context_length and not model.config.text.can_be_cut:
        raise ValueError(
            f"text_length must be 0 or the context, {model.config.text.context_length}: this "
            f"model's texts depend on their padding. Got {text_length}."
        )
    opened.check_strings()
    opened.check_ends()
    if not isinstance(size := model.config.vision.image_size, int):
        raise ValueError(
            f"training crops squares from pictures. Got a model of images of {shown_size(size)}: "
            f"give image_size as one number."
        )
    pairs = open_pairs(
        config.data.train,
        config.data.columns(),
        max_skipped=config.data.max_skipped,
        where=config.data.where,
    )
    is_first = jax.process_index() == 0
    remark(str(pairs.left_out), show=progress and is_first)
    if is_first:
        warn_of_stand_ins(pairs, config.data.train)
    iterator, skipped = batches(
        pairs,
        batch_size=rows,
        image_size=size,
        text_length=text_length,
        augmentation=config.augment,
        templates=config.data.templates,
        spread=config.data.spread,
        seed=config.run.seed,
        process=jax.process_index(),
        num_processes=jax.process_count(),
        num_threads=config.data.num_threads,
        max_skipped=config.data.max_skipped,
        tokenizer=_within(opened, text_length),
    )
    identity = identity_of(config, pairs, model, opened.own_ids)
    state = init_state(model, config.optimizer, config.step.loss)
    whole = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() > 1:  # arrays on one process's device can't be put on all
        state = jax.tree.map(np.asarray, state)
    state = jax.device_put(state, whole)
    architecture, tokenizer_files = model.config, opened.tokenizer_files
    del model, opened
    step_at = _make_steps(config, architecture, mesh)

    with (
        contextlib.closing(iterator),  # else its thread would read on, even at Python's exit
        Checkpoints(
            out, identity, keep=config.run.keep_checkpoints, more_steps=more_steps
        ) as checkpoints,
    ):
        try:
            state = checkpoints.restore(state, iterator)
            metrics = Metrics(out, int(state.step))
            state = _loop(
                config,
                architecture,
                state,
                step_at,
                iterator,
                checkpoints,
                metrics,
                mesh,
                progress=progress and is_first,
                skipped=skipped,
                grace=grace,
            )
            checkpoints.wait()
        except KeyboardInterrupt as stop:
            step = checkpoints.last_step()
            where = "begins at the first step" if step is None else f"goes on from step {step}"
            stop.add_note(f"the same command {where}, in {out}")
            raise
        trained = model_of(state, architecture)
        if is_first:
            save_parameters(
                _finished(trained.config, config),
                parameters(trained),
                out / "model",
                tokenizer_files=tokenizer_files,
            )
            for sentence in skipped.losses.sentences("scale_16_bit = true in [augment]"):
                remark(sentence, show=progress)
            metrics.plot()
    return out / "model"


def _opened(config: TrainConfig) -> Opened:
    source = config.model
    if isinstance(source, CLIPConfig):
        return open_model(build(source, rngs=nnx.Rngs(config.run.seed)), LoadOptions())
    if isinstance(source, Pretrained):
        options = LoadOptions.of(dataclasses.asdict(source))
        return open_model(source.path, options, load)
    return open_model(source, LoadOptions(), load)


def _within(opened: Opened, text_length: int) -> AnyTokenizer | None:
    """Returns the model's tokenizer if it isn't CLIP's, for rows of that length."""
    own = opened.tokenizer
    return own and dataclasses.replace(own, context_length=text_length)


def _finished(model: CLIPConfig, config: TrainConfig) -> CLIPConfig:
    """Returns the configuration of the finished model: it is shown pictures as in training."""
    if config.augment.fit is None:
        return model
    pixels = dataclasses.replace(model.pixels, resize=FITS[config.augment.fit])
    return dataclasses.replace(model, pixels=pixels)


def _share(batch_size: int, mesh: Mesh) -> int:
    if batch_size % mesh.size:
        raise ValueError(
            f"batch_size must be a multiple of the {mesh.size} devices. Got {batch_size}."
        )
    return batch_size // jax.process_count()


def _make_steps(config: TrainConfig, model: CLIPConfig, mesh: Mesh) -> Callable[[int], Callable]:
    """Returns a function from a step's number to its program; the last ones drop no patches."""
    whole = dataclasses.replace(config.step, patch_dropout=0.0)
    early, late = (
        jax.jit(
            make_step(model, config.optimizer, step, mesh=mesh),
            donate_argnums=0,
            compiler_options=compiler_options(mesh.devices.flat[0].platform),
        )
        for step in (config.step, whole)
    )
    last = config.optimizer.total_steps - config.run.whole_steps
    return lambda number: early if number <= last else late


def _loop(
    config: TrainConfig,
    model: CLIPConfig,
    state: TrainState,
    step_at: Callable[[int], Callable],
    iterator: Any,
    checkpoints: Checkpoints,
    metrics: Metrics,
    mesh: Mesh,
    *,
    progress: bool,
    skipped: Skipped,
    grace: float,
) -> TrainState:
    begin, end = int(state.step), config.optimizer.total_steps
    compiled: set[Callable] = set()
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    key = jax.random.key(config.run.seed)
    waiting: list[tuple[int, dict]] = []
    since = time.monotonic()
    with (
        tqdm(total=end, initial=begin, unit="step", disable=not progress) as bar,
        stopping(grace) as asked,
    ):
        for i in range(begin + 1, end + 1):
            arrays = next(iterator)
            tried = int(arrays.pop("positions")[-1]) + 1
            # With several processes, none knows the lengths of the others' texts.
            if jax.process_count() == 1 and model.text.can_be_cut:
                arrays = group_by_length(arrays, multiple=mesh.size * config.step.micro_batches)
            batch = jax.tree.map(
                functools.partial(jax.make_array_from_process_local_data, split), arrays
            )
            step = step_at(i)
            if step not in compiled:
                compiled.add(step)
                announce("compiling the step", progress)
            state, measured = step(state, batch, jax.random.fold_in(key, i))
            waiting.append((i, measured))
            stop = asked(i)
            is_checkpoint = i % config.run.checkpoint_every == 0 or i == end or stop is not None
            if i % config.run.log_every == 0 or is_checkpoint:
                seconds, since = time.monotonic() - since, time.monotonic()
                fetched = [(at, jax.device_get(values)) for at, values in waiting]
                waiting = []
                _check_loss(fetched, checkpoints)
                count = total(tried) - i * config.run.batch_size
                for reason in skipped.new():
                    remark(f"skipped: {reason}", show=progress)
                checkpoints.check_claimed()
                record = _record(fetched, config.run.batch_size, seconds, count)
                metrics.add(record)
                bar.update(i - bar.n)
                bar.set_postfix_str(
                    f"loss {record['loss']:.3f}, accuracy {record['accuracy']:.0%}, "
                    f"{record['pairs_per_second']:.0f} pairs/s"
                )
            if is_checkpoint:
                checkpoints.save(i, state, iterator)
            if stop is not None:
                checkpoints.wait()
                raise stop
    return state


def _record(
    fetched: list[tuple[int, dict]], batch_size: int, seconds: float, skipped: int
) -> dict[str, Any]:
    """Returns a line of metrics: the means over the steps since the last one."""
    names = fetched[0][1]
    means = {name: float(np.mean([values[name] for _, values in fetched])) for name in names}
    return {
        "step": fetched[-1][0],
        **means,
        "pairs_per_second": len(fetched) * batch_size / seconds,
        "skipped": skipped,
    }


def _check_loss(fetched: list[tuple[int, dict]], checkpoints: Checkpoints) -> None:
    for step, values in fetched:
        if not np.isfinite(values["loss"]):
            raise checkpoints.diverged(f"the loss is {values['loss']} at step {step}")
