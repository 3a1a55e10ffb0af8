"""One step of training: (state, batch) -> (state, metrics)."""

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
from ddpm_jax.training.settings import DataConfig, EmaConfig, LoopConfig, OptimizerConfig, TrainConfig
from ddpm_jax.types import Array, PyTree

QUARTERS = 4
HISTORY = 10  # losses kept of each timestep (Nichol & Dhariwal 2021, section 3.3)
UNIFORM_SHARE = 0.001  # of the timesteps is drawn uniformly, as in their code


class Plan(NamedTuple):
    """What a step is compiled for: the network, and the settings of its training."""

    network: Config
    settings: TrainConfig

    def of_the_step(self) -> "Plan":
        """Return the plan with only those settings that the step's program depends on.

        Runs that differ in others, as in their folder or in how often they save, then share a program in one process.
        """
        loop, optimizer = self.settings.loop, self.settings.optimizer
        steps = LoopConfig().steps if optimizer.lr_schedule == "constant" else loop.steps
        settings = TrainConfig(
            data=DataConfig(data=""),
            objective=self.settings.objective,
            optimizer=optimizer,
            ema=self.settings.ema,
            loop=LoopConfig(seed=loop.seed, sharding=loop.sharding, steps=steps),
        )
        return Plan(self.network, settings)


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes: what a checkpoint holds.

    Attributes:
        step: number of optimiser steps done.
        weights: the network's, float32, as are the averages.
        opt_state: optax's.
        ema: the plain average.
        power_emas: one power-function average for each length of `power_ema`.
        history: with importance sampling, the last losses of each timestep [T, 10] and their number [T]; else None.
    """

    step: PyTree
    weights: PyTree
    opt_state: PyTree
    ema: PyTree
    power_emas: PyTree
    history: PyTree


class Metrics(NamedTuple):
    """What a step reports. Losses by quarter of t, from the least noisy, are sums [4] and counts [4]."""

    loss: PyTree
    grad_norm: PyTree
    learning_rate: PyTree
    quarter_sums: PyTree
    quarter_counts: PyTree


def learning_rate(settings: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the number of updates done before.

    In the warm-up it is proportional to that number, so the first update has rate 0 (as in hojonathanho/diffusion and
    diffusers).

    Args:
        settings: of the optimiser.
        steps: of the whole run, at which "linear" and "cosine" reach 0.

    Example:
        >>> schedule = learning_rate(OptimizerConfig(learning_rate=2e-4, warmup_steps=5000), 800_000)
        >>> [f"{schedule(step):.2g}" for step in (0, 1, 2500, 5000)]
        ['0', '4e-08', '0.0001', '0.0002']
    """
    peak, rest = settings.learning_rate, max(steps - settings.warmup_steps, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
    }[settings.lr_schedule]()
    if settings.warmup_steps == 0:
        return after
    rising = optax.linear_schedule(0.0, peak, settings.warmup_steps)
    return optax.join_schedules([rising, after], [settings.warmup_steps])


@functools.cache
def optimizer(plan: Plan) -> optax.GradientTransformation:
    """Return a plan's optimiser: clip the gradient's global norm, then Adam; fixed weights are not updated."""
    settings = plan.settings.optimizer
    rate = learning_rate(settings, plan.settings.loop.steps)
    moments: dict[str, Any] = dict(b1=settings.adam_b1, b2=settings.adam_b2, eps=settings.adam_eps)
    adam = optax.adam(rate, **moments)
    if settings.optimizer == "adamw":
        adam = optax.adamw(rate, **moments, weight_decay=settings.weight_decay)
    chain = optax.chain(optax.clip_by_global_norm(settings.clip_norm), adam) if settings.clip_norm else adam

    def trained_or_fixed(weights: PyTree) -> PyTree:
        mask = trainable_mask(Params(weights, plan.network)).weights
        return jax.tree.map(lambda trained: "trained" if trained else "fixed", mask)

    return optax.partition({"trained": chain, "fixed": optax.set_to_zero()}, trained_or_fixed)


def create(plan: Plan, weights: PyTree, mesh: Mesh) -> TrainState:
    """Return the state before the first step, each array made where it stays.

    Args:
        plan: what is trained and how.
        weights: the network's first weights, on the host; no device ever holds more than its share.
        mesh: the devices.
    """
    plan = plan.of_the_step()
    like = abstract(plan, mesh)
    weights = jax.tree.map(lambda leaf, like: sharding.put(leaf, like.sharding), weights, like.weights)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(_fresh, static_argnums=0, out_shardings=shardings)(plan, weights)


def abstract(plan: Plan, mesh: Mesh) -> TrainState:
    """Return the shapes, dtypes and shardings of a state. An array of a weight's shape has that weight's sharding."""
    state = jax.eval_shape(lambda weights: _fresh(plan, weights), layout(plan.network.unet).weights)
    shardings = sharding.weight_shardings(state, mesh, split=plan.settings.loop.sharding == "fsdp")
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, shardings
    )


def _fresh(plan: Plan, weights: PyTree) -> TrainState:
    copy = lambda: jax.tree.map(jnp.copy, weights)
    total = plan.network.schedule.num_train_timesteps
    importance = plan.settings.objective.timestep_sampling == "importance"
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        weights=copy(),
        opt_state=optimizer(plan).init(weights),
        ema=copy(),
        power_emas=tuple(copy() for _ in plan.settings.ema.power_ema),
        history=(jnp.zeros((total, HISTORY)), jnp.zeros(total, jnp.int32)) if importance else None,
    )


def compiled(plan: Plan, state: TrainState, mesh: Mesh) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return the step as a compiled function (state, images, labels) -> (state, metrics). The input state is donated.

    Args:
        plan: what is trained and how.
        state: of the run, for its shardings.
        mesh: the devices.
    """
    loop = plan.settings.loop  # all its steps, not those that are left: a resumed run must do the same to the bit
    gradients = cpu_gradients.choose(plan.network.unet, loop.batch_size // mesh.size, loop.steps)
    plan, everywhere = plan.of_the_step(), NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = compilation.jit(
        _step_with(gradients), static_argnums=(0, 1), donate_argnums=2, out_shardings=(shardings, everywhere)
    )
    return lambda state, images, labels: step(plan, mesh, state, images, labels)


@functools.cache
def _step_with(gradients: cpu_gradients.Choice) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return `train_step` with chosen gradients: one function for each choice, so that runs share their programs."""

    @functools.wraps(train_step)
    def step(*arguments):
        with cpu_gradients.using(gradients):
            return train_step(*arguments)

    return step


def train_step(
    plan: Plan, mesh: Mesh | None, state: TrainState, images: Array, labels: Array | None
) -> tuple[TrainState, Metrics]:
    """Do one step.

    What is drawn for an image depends on the seed, the step's number and the image's place in the batch alone.

    Args:
        plan: what is trained and how.
        mesh: the devices that the batch is split over.
        state: before the step.
        images: [b, h, w, c], uint8.
        labels: [b] classes, or None.

    Returns:
        The state after the step, and its metrics.
    """
    settings, total = plan.settings, plan.network.schedule.num_train_timesteps
    key = jax.random.fold_in(key_from_seed(settings.loop.seed), state.step)
    loss_key, dropout_key, timestep_key = jax.random.split(key, 3)
    indices = jnp.arange(images.shape[0])
    t, weight_of_t = draw_weighted_timesteps(settings.objective, state.history, timestep_key, indices, total)
    batch = (images, labels, t, weight_of_t, indices)
    loss, values, gradient = _loss_and_gradient(plan, mesh, state.weights, batch, loss_key, dropout_key)
    updates, opt_state = optimizer(plan).update(gradient, state.opt_state, state.weights)
    weights = optax.apply_updates(state.weights, updates)
    average, power_emas = _averages(settings.ema, state, weights)
    new = TrainState(
        step=state.step + 1,
        weights=weights,
        opt_state=opt_state,
        ema=average,
        power_emas=power_emas,
        history=None if state.history is None else remembered(state.history, t, values),
    )
    return new, _metrics(plan, state.step, t, loss, values, gradient)


def _loss_and_gradient(
    plan: Plan, mesh: Mesh | None, weights: PyTree, batch: tuple, loss_key: jax.Array, dropout_key: jax.Array
) -> tuple[jax.Array, jax.Array, PyTree]:
    """Return the mean loss of a batch, the loss of each image [b], and the gradient, in parts if the settings say so.

    `batch` is (images, labels, t, weight of t, indices), each [b, ...].
    """
    network, settings = plan.network, plan.settings

    def mean_loss(weights: PyTree, part: tuple) -> tuple[jax.Array, jax.Array]:
        images, labels, t, weight_of_t, indices, number = part
        x_0 = data_from_bytes(images, network.schedule.data_range)
        dropout = jax.random.fold_in(dropout_key, number) if network.unet.dropout else None
        static = (network, settings.objective)
        values, _ = traced_per_image(static, weights, loss_key, x_0, labels, dropout, t, indices)
        return (values * weight_of_t).mean(), values

    gradient_of = jax.value_and_grad(mean_loss, has_aux=True)
    count = settings.optimizer.accumulate
    if count == 1:
        (loss, values), gradient = gradient_of(weights, (*batch, 0))
        return loss, values, gradient

    def add(total: tuple, part: tuple) -> tuple[tuple, jax.Array]:
        (loss, values), gradient = gradient_of(weights, part)
        return jax.tree.map(lambda sum, new: sum + new / count, total, (loss, gradient)), values

    parts = jax.tree.map(lambda array: _parts(array, count, mesh), batch)
    nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, weights))
    (loss, gradient), values = jax.lax.scan(add, nothing, (*parts, jnp.arange(count)))
    return loss, values.swapaxes(0, 1).reshape(-1), gradient


def _averages(settings: EmaConfig, state: TrainState, weights: PyTree) -> tuple[PyTree, tuple[PyTree, ...]]:
    """Return the plain and the power-function averages after an update that has led to `weights`."""
    decay = ema.decay_at(state.step, settings.ema_decay, settings.ema_inv_gamma, settings.ema_power)
    power_emas = tuple(
        ema.update(average, weights, ema.power_decay_at(state.step, ema.gamma_from_length(length)))
        for average, length in zip(state.power_emas, settings.power_ema, strict=True)
    )
    return ema.update(state.ema, weights, decay), power_emas


def _metrics(
    plan: Plan, step: jax.Array, t: jax.Array, loss: jax.Array, values: jax.Array, gradient: PyTree
) -> Metrics:
    """Return the metrics of a step from the timesteps [b] and losses [b] of its images."""
    rate = learning_rate(plan.settings.optimizer, plan.settings.loop.steps)
    quarter = t * QUARTERS // plan.network.schedule.num_train_timesteps
    is_in = (quarter[None] == jnp.arange(QUARTERS)[:, None]).astype(jnp.float32)
    return Metrics(
        loss=loss,
        grad_norm=optax.tree.norm(gradient),
        learning_rate=jnp.asarray(rate(step), jnp.float32),
        quarter_sums=(is_in * values[None]).sum(1),
        quarter_counts=is_in.sum(1),
    )


def _parts(array: jax.Array, count: int, mesh: Mesh | None) -> jax.Array:
    """Cut a batch into parts [count, b / count, ...], each split over the devices as the batch is."""
    parts = array.reshape(array.shape[0] // count, count, *array.shape[1:]).swapaxes(0, 1)
    return sharding.constrain(parts, mesh)


def draw_weighted_timesteps(
    objective: Objective, history: Any, key: jax.Array, indices: Array, total: int
) -> tuple[jax.Array, jax.Array]:
    """Draw the timesteps t [b] of a batch, and the weight [b] of each loss that keeps the mean unbiased.

    With a history, t is drawn with probability p proportional to the root mean square of its last losses, mixed with a
    share of 0.001 of uniform draws; the weight is 1 / (T p) (Nichol & Dhariwal 2021, section 3.3). Until each timestep
    has its ten losses, draws are uniform and the weights 1.

    Args:
        objective: its `timestep_sampling` without a history.
        history: of the state, or None.
        key: of this draw.
        indices: [b] places in the batch.
        total: T.
    """
    if history is None:
        t = draw_timesteps(key, indices, total, antithetic=objective.timestep_sampling == "antithetic")
        return t, jnp.ones(indices.shape)
    losses, counts = history
    share = jnp.sqrt((losses**2).mean(1))
    share = (1 - UNIFORM_SHARE) * share / jnp.maximum(share.sum(), 1e-30) + UNIFORM_SHARE / total
    share = jnp.where((counts >= HISTORY).all(), share, 1 / total)
    keys = image_keys(key, indices)
    t = jax.vmap(lambda key: jax.random.categorical(key, jnp.log(share)))(keys)
    return t, 1 / (total * share[t])


def remembered(history: tuple[Array, Array], t: Array, values: Array) -> tuple[Array, Array]:
    """Add losses [b] at timesteps t [b] to a history, image by image. The oldest loss of a full row falls out."""

    def put(history, new):
        (losses, counts), (t, value) = history, new
        full = counts[t] >= HISTORY
        row = jnp.where(full, jnp.roll(losses[t], -1), losses[t])
        row = row.at[jnp.minimum(counts[t], HISTORY - 1)].set(value)
        return (losses.at[t].set(row), counts.at[t].set(jnp.minimum(counts[t] + 1, HISTORY))), None

    history, _ = jax.lax.scan(put, history, (t, values))
    return history
