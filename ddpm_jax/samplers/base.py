"""A sampler is a table, and one `lax.scan` runs any table.

The state S of a run is a stack of k images. A row evaluates the network once, at S[0], and sets

    S'[i] = sum over j of mix[i, j] [S[0], .., S[k-1], x_0_hat, eps_hat, noise][j]

where x_0_hat = a S[0] + b out and eps_hat = c S[0] + d out, so that networks of any prediction type enter alike. All
numbers are data: another eta, grid or clip range runs the same compiled program. What is not linear is a `Switches`:
the transform of x_0_hat, noise scaled by the network's output, and Langevin steps whose length depends on norms.

A sampler sees `net_fn(x, t) -> raw output` and never `Params`.
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.config import ScheduleConfig
from ddpm_jax.random_keys import image_keys
from ddpm_jax.types import Array, ImageKeys, Images, NetFn, Number, RandomKey


class Switches(NamedTuple):
    """What is static about a run: each combination is a program of its own.

    Attributes:
        num_images: k, the images in the state.
        transform: what x_0_hat goes through: "none", "clip" or "threshold".
        variance: the noise's scale: "fixed" by the table; "learned" (the second half of the output's channels is the
            variance) or "learned_range" (it interpolates the row's two log-variances).
        langevin: whether rows may be Langevin steps.
    """

    num_images: int = 1
    transform: str = "none"
    variance: str = "fixed"
    langevin: bool = False


class Rows(NamedTuple):
    """The numbers of a run, one row an evaluation of the network."""

    index: Array  # [n], numbers the noise draws
    t: Array  # [n], what the network is told: a timestep, or a noise level
    x_0_coefs: Array  # [n, 2], a and b
    eps_coefs: Array  # [n, 2], c and d
    mix: Array  # [n, k, k + 3]
    log_variance: Array  # [n, 2], the least and the greatest, for learned variances
    limits: Array  # [n, 2], (clip range, -) or (quantile, greatest limit)
    langevin: Array  # [n, 2], (signal-to-noise ratio of a Langevin step, or 0; sigma)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """The float64 numbers of a sampler on a grid; see this module's head for what a row does.

    Attributes:
        t: [n] what the network is told in each row.
        x_0_coefs, eps_coefs: [n, 2] coefficients of the state and of the network's output.
        mix: [n, k, k + 3] what the next state is made of.
        ends_step: [n] whether a row ends a step of the grid; samplers may evaluate several times a step.
        init_scale: what unit noise x_T is multiplied with to begin.
        clip: x_0_hat is clipped to [-clip, clip]; None leaves it alone.
        threshold: (quantile, greatest limit) of dynamic thresholding, per image; or None.
        variance: see `Switches`.
        log_variance: [n, 2] bounds for `variance="learned_range"`.
        langevin: [n, 2] (snr, sigma) of rows that are Langevin steps, snr being 0 in the others; or None.

    Example:
        >>> table = ddpm_jax.samplers.DDIM(num_steps=50).table(ScheduleConfig())
        >>> table.num_evals, table.mix.shape
        (50, (50, 1, 4))
    """

    t: np.ndarray
    x_0_coefs: np.ndarray
    eps_coefs: np.ndarray
    mix: np.ndarray
    ends_step: np.ndarray
    init_scale: Number = 1.0
    clip: Number | None = None
    threshold: tuple[float, float] | None = None
    variance: str = "fixed"
    log_variance: np.ndarray | None = None
    langevin: np.ndarray | None = None

    def __post_init__(self):
        numbers = (self.x_0_coefs, self.eps_coefs, self.mix)
        if not all(np.all(np.isfinite(array)) for array in numbers):
            raise ValueError(
                "This grid visits a timestep at which the network's prediction says nothing about x_0 or eps (an "
                "epsilon network at zero terminal SNR), or is a grid of noise ratios that begins at an infinite one. "
                "Choose another `timestep_spacing` or `timesteps`; a v_prediction network can begin at zero SNR on "
                "leading, linspace, trailing and quadratic grids."
            )

    @property
    def num_evals(self) -> int:
        """Evaluations of the network."""
        return len(self.t)

    @property
    def switches(self) -> Switches:
        """What is static about a run of this table."""
        transform = "none" if self.clip is None else "clip"
        transform = "threshold" if self.threshold is not None else transform
        return Switches(self.mix.shape[1], transform, self.variance, self.langevin is not None)

    def rows(self, dtype: Any = np.float32) -> Rows:
        """Return the numbers in the dtype of the state."""
        count = self.num_evals
        limits = self.threshold if self.threshold is not None else (self.clip or 0.0, 0.0)
        log_variance = self.log_variance if self.log_variance is not None else np.zeros((count, 2))
        langevin = self.langevin if self.langevin is not None else np.zeros((count, 2))
        numbers = (
            *(self.t, self.x_0_coefs, self.eps_coefs, self.mix, log_variance),
            *(np.tile(np.asarray(limits), (count, 1)), langevin),
        )
        index = np.arange(count, dtype=np.int32)
        rows = Rows(index, *(np.asarray(array, dtype) for array in numbers))
        # half precision has no room for 999
        return rows._replace(t=np.asarray(self.t, jnp.promote_types(dtype, np.float32)))


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


def draw_noise(image_keys: ImageKeys, index: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draw the `index`-th noise of each image: 0 is x_T, r + 1 belongs to row r."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(image_keys)
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def run(
    net_fn: NetFn,
    table: Table,
    x_T: Images,
    key: RandomKey,
    *,
    noise: Any = None,
    indices: Any = None,
) -> Images:
    """Run a sampler's table on any network: x_T to x_0.

    A plain traceable function: jit, vmap and differentiate it as you like. Let `net_fn` close over weights only inside
    jit; outside they would become constants of the program.

    Args:
        net_fn: net_fn(x, t) -> raw output; x is [b, h, w, c], t a scalar. For variances that are learned
            the output has twice the channels.
        table: from `Sampler.table`, or made by hand.
        x_T: unit-variance noise [b, h, w, c]; the table scales it. Its dtype is the state's.
        key: a key of `jax.random`, of any generator and style; image i draws from fold_in(key, indices[i]) alone.
        noise: [num_evals, b, h, w, c] to be used instead of drawing.
        indices: [b] the images' numbers in their set; 0 .. b-1 if None.

    Returns:
        The last state, [b, h, w, c], on the scale of the data. Not clipped.

    Raises:
        ValueError: noise of another shape.

    Example:
        >>> table = ddpm_jax.samplers.DDIM(num_steps=10).table(ScheduleConfig())
        >>> x_T = jnp.ones((1, 2, 2, 1))
        >>> run(lambda x, t: x, table, x_T, jax.random.key(0)).shape
        (1, 2, 2, 1)
    """
    x_T = jnp.asarray(x_T)
    if noise is not None and jnp.shape(noise) != (table.num_evals, *x_T.shape):
        raise ValueError(f"`noise` has shape {jnp.shape(noise)}; the table wants {(table.num_evals, *x_T.shape)}.")
    indices = jnp.arange(x_T.shape[0]) if indices is None else indices
    noise = None if noise is None else jnp.asarray(noise, x_T.dtype)
    rows = table.rows(x_T.dtype)
    state = initial_state(table.switches, jnp.asarray(table.init_scale, x_T.dtype), x_T)
    keys = image_keys(key, indices)
    state, _ = scan_rows(net_fn, table.switches, rows, state, keys, noise=noise)
    return state[0]


def initial_state(switches: Switches, init_scale: Any, x_T: jax.Array) -> jax.Array:
    """Return the stack of images a run begins with: the scaled noise, then zeros."""
    rest = jnp.zeros((switches.num_images - 1, *x_T.shape), x_T.dtype)
    return jnp.concatenate([(init_scale * x_T)[None], rest])


class Frame(NamedTuple):
    """What is seen of a run in between: the network's input, and the clean image it led to."""

    x_t: jax.Array
    x_0_hat: jax.Array


def scan_rows(
    net_fn: NetFn,
    switches: Switches,
    rows: Rows,
    state: jax.Array,
    keys: ImageKeys,
    *,
    cond: Any = None,
    noise: Any = None,
    slots: Any = None,
    num_frames: int = 0,
) -> tuple[jax.Array, Frame]:
    """Run some rows of a table; the loop behind `run` and behind everything in `sampling`.

    `cond` is what `net_fn` is told instead of the rows' t: a tree of arrays with a first axis of rows.
    `slots` [n] says in which of `num_frames` frames a row is kept; num_frames stands for none. Frames that no row
    names are zero.
    """
    blank = jnp.zeros((num_frames, *state.shape[1:]), state.dtype)

    def body(carry, inputs):
        state, frames = carry
        row, told, given_noise, slot = inputs
        x_t = state[0]
        out = net_fn(x_t, told).astype(state.dtype)
        fresh = given_noise
        if fresh is None:
            fresh = draw_noise(keys, row.index + 1, state.shape[2:], state.dtype)
        if switches.variance == "fixed":
            out = out[..., : state.shape[-1]]  # a network that learnt its variance may do without it
        else:
            out, spread = jnp.split(out, 2, axis=-1)
            fresh = _learned_std(switches.variance, spread, row.log_variance) * fresh
        x_0_hat = row.x_0_coefs[0] * state[0] + row.x_0_coefs[1] * out
        x_0_hat = _transformed(switches.transform, x_0_hat, row.limits)
        eps_hat = row.eps_coefs[0] * state[0] + row.eps_coefs[1] * out
        images = (*state, x_0_hat, eps_hat, fresh)
        state = jnp.stack(
            [sum(row.mix[i, j] * image for j, image in enumerate(images)) for i in range(switches.num_images)]
        )
        if switches.langevin:
            state = state.at[0].add(_langevin_step(x_t, x_0_hat, fresh, row.langevin))
        if num_frames:
            frames = Frame(
                frames.x_t.at[slot].set(x_t, mode="drop"),
                frames.x_0_hat.at[slot].set(x_0_hat, mode="drop"),
            )
        return (state, frames), None

    rows = jax.tree.map(jnp.asarray, rows)
    cond = rows.t if cond is None else cond
    carry, _ = jax.lax.scan(body, (state, Frame(blank, blank)), (rows, cond, noise, slots))
    return carry


def _learned_std(variance: str, spread: jax.Array, log_bounds: jax.Array) -> jax.Array:
    if variance == "learned":
        return jnp.sqrt(jnp.maximum(spread, 0))  # a negative one in the last row must not become 0 NaN
    fraction = (spread + 1) / 2  # Nichol & Dhariwal 2021, eq. 15
    return jnp.exp(0.5 * (fraction * log_bounds[1] + (1 - fraction) * log_bounds[0]))


def _langevin_step(x_t: jax.Array, x_0_hat: jax.Array, noise: jax.Array, numbers: jax.Array) -> jax.Array:
    """Return step score + sqrt(2 step) noise, step = 2 (snr |noise| / |score|)^2 with the norms of each image.

    (Song et al. 2021, algorithm 4, for a process whose signal is 1.)
    """
    snr, sigma = numbers
    score = (x_0_hat - x_t) / sigma**2
    norm = lambda image: jnp.sqrt(jnp.sum(image**2, axis=(1, 2, 3), keepdims=True))
    step = 2 * (snr * norm(noise) / norm(score)) ** 2
    return step * score + jnp.sqrt(2 * step) * noise


def _transformed(transform: str, x_0_hat: jax.Array, limits: jax.Array) -> jax.Array:
    if transform == "clip":
        return jnp.clip(x_0_hat, -limits[0], limits[0])
    if transform == "threshold":  # Saharia et al. 2022, section 2.3; per image
        magnitudes = jnp.abs(x_0_hat).reshape(x_0_hat.shape[0], -1)
        limit = jnp.quantile(magnitudes, limits[0], axis=1)
        limit = jnp.minimum(jnp.maximum(limit, 1.0), limits[1])[:, None, None, None]
        return jnp.clip(x_0_hat, -limit, limit) / limit
    return x_0_hat
