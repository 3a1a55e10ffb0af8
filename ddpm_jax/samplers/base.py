"""Samplers, and the one `lax.scan` that runs the table of any.

`scan_rows` does three things in each row: `predict` (the network, x_0_hat and eps_hat), `mix` (the next state) and
`record` (what is seen of the run). `Hooks` step in between. What a row's numbers mean stands in `samplers.table`.

A sampler sees `net_fn(x, t) -> raw output` and never `Params`.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax import reverse
from ddpm_jax.config import ScheduleConfig
from ddpm_jax.random_keys import image_keys
from ddpm_jax.samplers.table import Rows, Switches, Table
from ddpm_jax.types import Array, ImageKeys, Images, NetFn, RandomKey
from ddpm_jax.validation import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler(abc.ABC):
    """A sampler: a frozen dataclass of its knobs with one method, `table`.

    Attributes:
        order: order of convergence to the flow's solution as num_steps grows; 1 for stochastic ones, in distribution.
    """

    order: ClassVar[int] = 1

    @abc.abstractmethod
    def table(self, schedule: ScheduleConfig) -> Table:
        """Return the rows that `run` executes."""


class Hooks(NamedTuple):
    """Functions that step into every row of a run: guidance, editing and inverse problems with any sampler.

    They are static, as a network is: other functions are another program. What they work with is `hook_data`, a tree of
    arrays that is an argument of the program: another mask, image or strength compiles nothing. Norms and step lengths
    are to be taken for each image, never for the batch, so that image i depends on (key, i) alone.

    Attributes:
        denoise: denoise(x_t, row, net, data) -> x_0_hat, instead of the network's. x_t is [b, h, w, c]; `row` is a
            `Rows` of this row alone, (signal, sigma) of x_t being row.levels[0]; net(x) -> x_0_hat is the network at
            this row, clipped or thresholded where the sampler does that, and may be differentiated (`jax.vjp`). The
            sampler uses what it returns as it is, and eps_hat = (x_t - signal x_0_hat) / sigma.
        after: after(x_s, row, keys, data) -> x_s, in rows that end a step, on the image that the row leads to,
            whose (signal, sigma) is row.levels[1]. `keys` are one for each image and row, to draw from; they are
            fold_in(fold_in(image_key, row.index + 1), 1).

    A learned variance is the network's own: it is evaluated for that besides. Samplers that continue from an earlier
    image (UniPC's corrector, the singlestep forms) see what `after` did only through the network.

    Example:
        >>> keep = lambda x_t, row, net, data: jnp.where(data["mask"], data["image"], net(x_t))
        >>> image = jnp.full((1, 2, 2, 1), 0.5)
        >>> data = {"mask": jnp.arange(4).reshape(1, 2, 2, 1) < 2, "image": image}
        >>> table = ddpm_jax.samplers.DDIM(num_steps=10).table(ScheduleConfig())
        >>> start, key = jnp.ones((1, 2, 2, 1)), jax.random.key(0)
        >>> x_0 = run(lambda x, t: x, table, start, key, hooks=Hooks(denoise=keep), hook_data=data)
        >>> x_0[0, 0].ravel().tolist()
        [0.5, 0.5]
    """

    denoise: Callable[[jax.Array, Rows, Callable[[jax.Array], jax.Array], Any], jax.Array] | None = None
    after: Callable[[jax.Array, Rows, ImageKeys, Any], jax.Array] | None = None


NO_HOOKS = Hooks()


def draw_noise(image_keys: ImageKeys, index: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draw the `index`-th noise of each image: 0 is x_T, r + 1 belongs to row r."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(_folded(image_keys, index))


def _folded(keys: ImageKeys, number: Any) -> ImageKeys:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def run(
    net_fn: NetFn,
    table: Table,
    x_T: Images,
    key: RandomKey,
    *,
    noise: Any = None,
    indices: Any = None,
    hooks: Hooks = NO_HOOKS,
    hook_data: Any = None,
) -> Images:
    """Run a sampler's table on any network: x_T to x_0.

    A plain traceable function: jit, vmap and differentiate it as you like. Let `net_fn` close over weights only inside
    jit; outside they would become constants of the program.

    Args:
        net_fn: net_fn(x, t) -> raw output; x is [b, h, w, c], t a scalar. For variances that are learned
            the output has twice the channels.
        table: from `Sampler.table`, or made by hand.
        x_T: unit-variance noise [b, h, w, c]; the table scales it. Its dtype is the state's. For a part of a table that
            begins later: the noisy image that its first row sees.
        key: a key of `jax.random`, of any generator and style; image i draws from fold_in(key, indices[i]) alone.
        noise: [num_rows, b, h, w, c] to be used instead of drawing.
        indices: [b] the images' numbers in their set; 0 .. b-1 if None.
        hooks: functions that step into every row.
        hook_data: a tree of arrays, handed to the hooks.

    Returns:
        The last state, [b, h, w, c], on the scale of the data. Not clipped.

    Raises:
        ValueError: noise of another shape; a part of a table that needs images of rows before it; a hook that returns
            another shape.

    Example:
        >>> table = ddpm_jax.samplers.DDIM(num_steps=10).table(ScheduleConfig())
        >>> x_T = jnp.ones((1, 2, 2, 1))
        >>> run(lambda x, t: x, table, x_T, jax.random.key(0)).shape
        (1, 2, 2, 1)
    """
    x_T = jnp.asarray(x_T)
    if noise is not None and jnp.shape(noise) != (table.num_rows, *x_T.shape):
        raise ValueError(f"`noise` has shape {jnp.shape(noise)}; the table wants {(table.num_rows, *x_T.shape)}.")
    rows = table.rows(x_T.dtype)
    check(
        not table.looks_back(),
        f"`table` begins with row {rows.index[0]} of a multistep method, which uses images of the rows before it. "
        "Begin at another row, or let the sampler make a table that begins there, by its `timesteps`.",
    )
    indices = jnp.arange(x_T.shape[0]) if indices is None else indices
    noise = None if noise is None else jnp.asarray(noise, x_T.dtype)
    state = initial_state(table.switches, jnp.asarray(table.init_scale, x_T.dtype), x_T)
    keys = image_keys(key, indices)
    state, _ = scan_rows(net_fn, table.switches, rows, state, keys, noise=noise, hooks=hooks, hook_data=hook_data)
    return state[0]


def initial_state(switches: Switches, init_scale: Any, x_T: Array) -> jax.Array:
    """Return the stack of images a run begins with: the scaled noise, then zeros."""
    rest = jnp.zeros((switches.num_images - 1, *x_T.shape), x_T.dtype)
    return jnp.concatenate([(init_scale * x_T)[None], rest])


class Frame(NamedTuple):
    """What is seen of a run in between: the network's input, and the clean image it led to."""

    x_t: jax.Array
    x_0_hat: jax.Array


def scan_rows(
    net_fn: Callable[[jax.Array, Any], jax.Array],
    switches: Switches,
    rows: Rows,
    state: jax.Array,
    keys: ImageKeys | None,
    *,
    cond: Any = None,
    noise: Any = None,
    slots: Any = None,
    num_frames: int = 0,
    hooks: Hooks = NO_HOOKS,
    hook_data: Any = None,
) -> tuple[jax.Array, Frame]:
    """Run some rows of a table; the loop behind `run` and behind everything in `sampling`.

    Args:
        net_fn: net_fn(x, one row of cond) -> raw output.
        switches, rows: of the table.
        state: [k, b, h, w, c].
        keys: [b] of the images; None for rows that use no noise: it is 0.
        cond: what `net_fn` is told instead of the rows' t: a tree of arrays with a first axis of rows.
        noise: [n, b, h, w, c] to be used instead of drawing.
        slots: [n] the frame in which each row is recorded; `num_frames` means that it is not.
        num_frames: frames to record. Those that no row names are zero.
        hooks, hook_data: as in `run`.

    Returns:
        The state after the last row, and the frames [num_frames, b, h, w, c].
    """
    blank = jnp.zeros((num_frames, *state.shape[1:]), state.dtype)
    draws = noise is None and switches.draws

    def body(carry, inputs):
        state, frames = carry
        row, told, row_noise, slot = inputs
        x_t = state[0]
        if draws:
            row_noise = _noise_of_row(keys, row, x_t)

        def predicted(x_t):
            return predict(lambda x: net_fn(x, told), switches, row, x_t, hooks, hook_data)

        if switches.skips:
            nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(predicted, x_t))
            x_0_hat, eps_hat, std = jax.lax.cond(row.evaluates, predicted, lambda _: nothing, x_t)
        else:
            x_0_hat, eps_hat, std = predicted(x_t)
        state = mix(switches, row, state, x_0_hat, eps_hat, row_noise if std is None else std * row_noise)
        if hooks.after is not None:
            state = state.at[0].set(_after_step(hooks.after, row, state[0], keys, hook_data))
        if num_frames:
            frames = record(frames, slot, x_t, x_0_hat)
        return (state, frames), None

    rows = jax.tree.map(jnp.asarray, rows)
    cond = rows.t if cond is None else cond
    carry, _ = jax.lax.scan(body, (state, Frame(blank, blank)), (rows, cond, noise, slots))
    return carry


def predict(
    net_fn: Callable[[jax.Array], jax.Array], switches: Switches, row: Rows, x_t: jax.Array, hooks: Hooks, data: Any
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Return x_0_hat and eps_hat of a row, and the noise's standard deviation where the network learnt it."""
    channels = x_t.shape[-1]
    learned = switches.variance != "fixed"  # a network that learnt its variance may do without it

    def output(x: jax.Array) -> jax.Array:
        return net_fn(jnp.multiply(row.in_scale, x) if switches.scales_input else x).astype(x.dtype)

    def clean(x: jax.Array, out: jax.Array) -> jax.Array:
        x_0_hat = row.x_0_coefs[0] * x + row.x_0_coefs[1] * out[..., :channels]
        return _transformed(switches.transform, x_0_hat, row.limits)

    def std_of(out: jax.Array) -> jax.Array:
        least, greatest = row.log_variance
        return reverse.learned_std(switches.variance, least, greatest, out[..., channels:])

    if hooks.denoise is None:
        out = output(x_t)
        std = std_of(out) if learned else None
        return clean(x_t, out), row.eps_coefs[0] * x_t + row.eps_coefs[1] * out[..., :channels], std
    std = std_of(output(x_t)) if learned else None
    x_0_hat = hooks.denoise(x_t, row, lambda x: clean(x, output(x)), data)
    x_0_hat = _same_shape("denoise", x_0_hat, x_t)
    signal, sigma = row.levels[0]
    return x_0_hat, (x_t - signal * x_0_hat) / sigma, std


def mix(
    switches: Switches, row: Rows, state: jax.Array, x_0_hat: jax.Array, eps_hat: jax.Array, noise: jax.Array | None
) -> jax.Array:
    """Return the next state: sums of images by the row's weights, and a Langevin step where the row is one.

    `noise` is None in rows that draw none.
    """
    images = (*state, x_0_hat, eps_hat) if noise is None else (*state, x_0_hat, eps_hat, noise)
    mixed = jnp.stack(
        [sum(row.mix[i, j] * image for j, image in enumerate(images)) for i in range(switches.num_images)]
    )
    if switches.langevin and noise is not None:  # without noise the step has length 0
        mixed = mixed.at[0].add(_langevin_step(state[0], x_0_hat, noise, row.langevin))
    return mixed


def record(frames: Frame, slot: jax.Array, x_t: jax.Array, x_0_hat: jax.Array) -> Frame:
    """Return the frames with one of them set; a slot beyond the last sets none."""
    return Frame(frames.x_t.at[slot].set(x_t, mode="drop"), frames.x_0_hat.at[slot].set(x_0_hat, mode="drop"))


def _noise_of_row(keys: ImageKeys | None, row: Rows, x_t: jax.Array) -> jax.Array:
    return jnp.zeros_like(x_t) if keys is None else draw_noise(keys, row.index + 1, x_t.shape[1:], x_t.dtype)


def _after_step(after: Callable, row: Rows, x_s: jax.Array, keys: ImageKeys | None, data: Any) -> jax.Array:
    hook_keys = None if keys is None else _folded(_folded(keys, row.index + 1), 1)
    changed = lambda x_s: _same_shape("after", after(x_s, row, hook_keys, data), x_s)
    return jax.lax.cond(row.ends_step, changed, lambda x_s: x_s, x_s)


def _same_shape(hook: str, images: Any, like: jax.Array) -> jax.Array:
    """Return what a hook made in the dtype of the state."""
    shape = jnp.shape(images)
    check(shape == like.shape, f"The hook `{hook}` returned images of shape {shape}; they must be {like.shape}.")
    return jnp.asarray(images, like.dtype)


def _langevin_step(x_t: jax.Array, x_0_hat: jax.Array, noise: jax.Array, numbers: Array) -> jax.Array:
    """Return step score + sqrt(2 step) noise, step = 2 (snr |noise| / |score|)^2 with the norms of each image.

    (Song et al. 2021, algorithm 4, for a process whose signal is 1.)
    """
    snr, sigma = numbers
    score = (x_0_hat - x_t) / sigma**2
    norm = lambda image: jnp.sqrt(jnp.sum(image**2, axis=(1, 2, 3), keepdims=True))
    step = 2 * (snr * norm(noise) / norm(score)) ** 2
    return step * score + jnp.sqrt(2 * step) * noise


def _transformed(transform: str, x_0_hat: jax.Array, limits: Array) -> jax.Array:
    if transform == "clip":
        return jnp.clip(x_0_hat, -limits[0], limits[0])
    if transform == "threshold":  # Saharia et al. 2022, section 2.3; per image
        magnitudes = jnp.abs(x_0_hat).reshape(x_0_hat.shape[0], -1)
        limit = jnp.quantile(magnitudes, limits[0], axis=1)
        limit = jnp.minimum(jnp.maximum(limit, 1.0), limits[1])[:, None, None, None]
        return jnp.clip(x_0_hat, -limit, limit) / limit
    return x_0_hat
