"""What a training run holds, and one step of it: state and batch in, state and metrics out."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax import compilation, sharding
from ddpm_jax.config import Config
from ddpm_jax.losses import Objective, draw_timesteps, traced_per_image
from ddpm_jax.models import cpu_gradients
from ddpm_jax.models.layout import layout
from ddpm_jax.params import Params, trainable_mask
from ddpm_jax.pixels import data_from_bytes
from ddpm_jax.random_keys import image_keys, key_from_seed
from ddpm_jax.training import ema
from ddpm_jax.training.settings import OptimizerConfig, TrainConfig
from ddpm_jax.types import Array, PyTree

QUARTERS = 4
HISTORY = 10  # losses kept of each timestep (Nichol & Dhariwal 2021, section 3.3)
LEAST_SHARE = 0.001  # of the timesteps is drawn uniformly, as in their code


class Run(NamedTuple):
    """What a step is compiled for."""

    network: Config
    config: TrainConfig


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes, and nothing else: what a checkpoint holds.

    Attributes:
        step: optimiser steps done.
        weights: of the network, float32, as are the averages.
        opt_state: optax's.
        ema: the plain average.
        power_emas: a power-function average for each of `power_ema`.
        history: with importance sampling, the last losses of each timestep [T, 10] and how many there are [T].
    """

    step: PyTree
    weights: PyTree
    opt_state: PyTree
    ema: PyTree
    power_emas: PyTree
    history: PyTree


class Metrics(NamedTuple):
    """What a step says of itself; losses by quarter of t, from the least noisy, as sums and counts."""

    loss: PyTree
    grad_norm: PyTree
    learning_rate: PyTree
    quarter_sums: PyTree
    quarter_counts: PyTree


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate of an update, by the number of updates before it.

    It rises in proportion to that number, from 0 in the first update (as in hojonathanho/diffusion and diffusers).

    Example:
        >>> schedule = learning_rate(OptimizerConfig(learning_rate=2e-4, warmup_steps=5000), 800_000)
        >>> [f"{schedule(step):.2g}" for step in (0, 1, 2500, 5000)]
        ['0', '4e-08', '0.0001', '0.0002']
    """
    peak, rest = config.learning_rate, max(steps - config.warmup_steps, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
    }[config.lr_schedule]()
    if config.warmup_steps == 0:
        return after
    rising = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([rising, after], [config.warmup_steps])


def make_optimizer(run: Run) -> optax.GradientTransformation:
    """Return the optimiser: clip the gradient's global norm, then Adam; fixed weights stay as they are."""
    config = run.config.optimizer
    rate = learning_rate(config, run.config.run.steps)
    moments = dict(b1=config.adam_b1, b2=config.adam_b2, eps=config.adam_eps)
    adam = optax.adam(rate, **moments)
    if config.optimizer == "adamw":
        adam = optax.adamw(rate, **moments, weight_decay=config.weight_decay)
    chain = optax.chain(optax.clip_by_global_norm(config.clip_norm), adam) if config.clip_norm else adam

    def trained_or_fixed(weights: PyTree) -> PyTree:
        mask = trainable_mask(Params(weights, run.network)).weights
        return jax.tree.map(lambda trained: "trained" if trained else "fixed", mask)

    return optax.partition({"trained": chain, "fixed": optax.set_to_zero()}, trained_or_fixed)


def create(run: Run, weights: PyTree, mesh: Mesh) -> TrainState:
    """Return the state before the first step, every array of it made where it belongs.

    `weights` lie on the host; no device ever holds more than its share.
    """
    like = abstract(run, mesh)
    weights = jax.tree.map(lambda leaf, like: sharding.put(leaf, like.sharding), weights, like.weights)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(_fresh, static_argnums=0, out_shardings=shardings)(run, weights)


def abstract(run: Run, mesh: Mesh) -> TrainState:
    """Return the shapes, dtypes and places of a state: what has the shape of a weight lies as that weight does."""
    state = jax.eval_shape(lambda weights: _fresh(run, weights), layout(run.network.unet).weights)
    shardings = sharding.weight_shardings(state, mesh, split=run.config.run.sharding == "fsdp")
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, shardings
    )


def _fresh(run: Run, weights: PyTree) -> TrainState:
    copy = lambda: jax.tree.map(jnp.copy, weights)
    total = run.network.schedule.num_train_timesteps
    importance = run.config.objective.timestep_sampling == "importance"
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        weights=copy(),
        opt_state=make_optimizer(run).init(weights),
        ema=copy(),
        power_emas=tuple(copy() for _ in run.config.ema.power_ema),
        history=(jnp.zeros((total, HISTORY)), jnp.zeros(total, jnp.int32)) if importance else None,
    )


def compiled(run: Run, state: TrainState, mesh: Mesh) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return the step as a compiled function (state, images, labels) -> (state, metrics); it takes the state's memory.

    Args:
        run: what is trained and how.
        state: of the run, for its shapes.
        mesh: the devices.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    loop = run.config.run  # all its steps, and not those that are left: a resumed run is to do the same to the bit
    gradients = cpu_gradients.choose(run.network.unet, loop.batch_size // mesh.size, loop.steps)

    @functools.wraps(train_step)
    def chosen(*arguments):
        with cpu_gradients.using(gradients):
            return train_step(*arguments)

    step = compilation.jit(chosen, static_argnums=(0, 1), donate_argnums=2, out_shardings=(shardings, everywhere))
    return lambda state, images, labels: step(run, mesh, state, images, labels)


def train_step(
    run: Run, mesh: Mesh | None, state: TrainState, images: Array, labels: Array | None
) -> tuple[TrainState, Metrics]:
    """Do one step.

    What it draws depends on the seed, the step's number and the image's place in the batch alone.

    Args:
        run: what is trained and how.
        mesh: the devices that the batch is split over.
        state: before the step.
        images: [b, h, w, c], uint8.
        labels: [b] classes, or None.
    """
    config, schedule = run.config, run.network.schedule
    key = jax.random.fold_in(key_from_seed(config.run.seed), state.step)
    loss_key, dropout_key, timestep_key = jax.random.split(key, 3)
    indices = jnp.arange(images.shape[0])
    t, weights_of_t = _timesteps(config.objective, state.history, timestep_key, indices, schedule.num_train_timesteps)

    def mean_loss(weights, part):
        images, labels, t, weight_of_t, indices, number = part
        x_0 = data_from_bytes(images, schedule.data_range)
        dropout = jax.random.fold_in(dropout_key, number) if run.network.unet.dropout else None
        static = (run.network, config.objective)
        values, _ = traced_per_image(static, weights, loss_key, x_0, labels, dropout, t, indices)
        return (values * weight_of_t).mean(), values

    gradient_of = jax.value_and_grad(mean_loss, has_aux=True)
    count = config.optimizer.accumulate
    if count == 1:
        part = (images, labels, t, weights_of_t, indices, 0)
        (loss, values), gradient = gradient_of(state.weights, part)
    else:
        parts = jax.tree.map(lambda array: _parts(array, count, mesh), (images, labels, t, weights_of_t, indices))

        def add(total, part):
            (loss, values), gradient = gradient_of(state.weights, part)
            return jax.tree.map(lambda sum, new: sum + new / count, total, (loss, gradient)), values

        nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.weights))
        (loss, gradient), values = jax.lax.scan(add, nothing, (*parts, jnp.arange(count)))
        values = values.swapaxes(0, 1).reshape(-1)

    optimizer = make_optimizer(run)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.weights)
    weights = optax.apply_updates(state.weights, updates)
    averages = config.ema
    decay = ema.decay_at(state.step, averages.ema_decay, averages.ema_inv_gamma, averages.ema_power)
    power_emas = tuple(
        ema.update(average, weights, ema.power_decay_at(state.step, ema.gamma_from_length(length)))
        for average, length in zip(state.power_emas, averages.power_ema, strict=True)
    )
    quarter = t * QUARTERS // schedule.num_train_timesteps
    is_in = (quarter[None] == jnp.arange(QUARTERS)[:, None]).astype(jnp.float32)
    metrics = Metrics(
        loss=loss,
        grad_norm=optax.tree.norm(gradient),
        learning_rate=jnp.asarray(learning_rate(config.optimizer, config.run.steps)(state.step), jnp.float32),
        quarter_sums=(is_in * values[None]).sum(1),
        quarter_counts=is_in.sum(1),
    )
    state = TrainState(
        step=state.step + 1,
        weights=weights,
        opt_state=opt_state,
        ema=ema.update(state.ema, weights, decay),
        power_emas=power_emas,
        history=None if state.history is None else _remembered(state.history, t, values),
    )
    return state, metrics


def _parts(array: Array, count: int, mesh: Mesh | None) -> Array:
    """Cut a batch into parts [count, b / count, ...], each of them spread over the devices as the batch is."""
    parts = array.reshape(array.shape[0] // count, count, *array.shape[1:]).swapaxes(0, 1)
    return sharding.constrain(parts, mesh)


def _timesteps(
    objective: Objective, history: Any, key: jax.Array, indices: Array, total: int
) -> tuple[jax.Array, jax.Array]:
    """Draw the timesteps of a batch, and what each loss is multiplied with so that its mean stays what it was."""
    if history is None:
        t = draw_timesteps(key, indices, total, antithetic=objective.timestep_sampling == "antithetic")
        return t, jnp.ones(indices.shape)
    losses, counts = history
    share = jnp.sqrt((losses**2).mean(1))
    share = (1 - LEAST_SHARE) * share / jnp.maximum(share.sum(), 1e-30) + LEAST_SHARE / total
    share = jnp.where((counts >= HISTORY).all(), share, 1 / total)
    keys = image_keys(key, indices)
    t = jax.vmap(lambda key: jax.random.categorical(key, jnp.log(share)))(keys)
    return t, 1 / (total * share[t])


def _remembered(history: tuple[Array, Array], t: Array, values: Array) -> tuple[Array, Array]:
    """Put new losses into the history, image by image, the oldest falling out."""

    def put(history, new):
        (losses, counts), (t, value) = history, new
        full = counts[t] >= HISTORY
        row = jnp.where(full, jnp.roll(losses[t], -1), losses[t])
        row = row.at[jnp.minimum(counts[t], HISTORY - 1)].set(value)
        return (losses.at[t].set(row), counts.at[t].set(jnp.minimum(counts[t] + 1, HISTORY))), None

    history, _ = jax.lax.scan(put, history, (t, values))
    return history
