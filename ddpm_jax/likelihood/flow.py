"""The likelihood of images by the probability flow, an ODE between noise and images (Song et al. 2021, appendix D.2).

With x = signal x_0 + sigma eps, r = sigma / signal and u = log r:

    dx/du = sigma (eps_hat - sigma x),        log p(x) = log N(x_T; 0, I) + integral over u of div(dx/du)

Between the timesteps of the schedule, t is linear in u, as on the samplers' grids. The flow begins at timestep 0, whose
noise (sigma 0.01 of most schedules) is the least that the network has seen: the density is that of x / signal there.
"""

import functools
import math
from typing import Any, Literal, NamedTuple, SupportsIndex

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ddpm_jax import compilation
from ddpm_jax.config import ScheduleConfig, UNetConfig
from ddpm_jax.extras import need
from ddpm_jax.likelihood.job import BETWEEN, prepare
from ddpm_jax.models import hoist
from ddpm_jax.params import Params
from ddpm_jax.random_keys import image_keys
from ddpm_jax.schedule import alphas_cumprod
from ddpm_jax.types import Array, Float, Images, Labels, Number, PyTree, RandomKey
from ddpm_jax.validation import as_positive, check, is_number

TRACES = ("rademacher", "gaussian", "exact")
DEQUANTISATIONS = ("uniform", "none")
_AT_ONCE = 32  # columns of the Jacobian that an exact trace computes together
Trace = Literal["rademacher", "gaussian", "exact"]
Dequantisation = Literal["uniform", "none"]


class FlowLikelihood(NamedTuple):
    """The likelihood of each image by the probability flow.

    Attributes:
        log_likelihood: [b] log p(x) in nats, a density of the image on the scale of the data.
        bits_per_dim: [b] -log p(x) / (d ln 2) + log2(127.5): of the 256 levels, which are 1 / 127.5 apart.
        standard_error: [b] of `bits_per_dim` by the probes' spread; 0 for an exact trace, NaN for a single probe.
        num_evals: [b] evaluations of the network.
    """

    log_likelihood: Array
    bits_per_dim: Array
    standard_error: Array
    num_evals: Array


def log_likelihood(
    params: Params,
    key: RandomKey,
    x_0: Images,
    class_labels: Labels = None,
    *,
    dequantisation: Dequantisation = "uniform",
    trace: Trace = "rademacher",
    num_probes: SupportsIndex = 1,
    rtol: Number = 1e-5,
    atol: Number = 1e-5,
    max_steps: SupportsIndex = 4096,
    first_index: SupportsIndex = 0,
    mesh: Mesh | None = None,
) -> Float[Array, " b"]:
    """Return log p(x_0) in nats by the probability flow: that of `flow_likelihood`, which says more.

    Args:
        params, key, x_0, class_labels, dequantisation, trace, num_probes, rtol, atol, max_steps, first_index, mesh: as
            in `flow_likelihood`.

    Raises:
        MissingExtra, TypeError, ValueError, RuntimeError: as `flow_likelihood`.

    Example:
        >>> log_likelihood(params, key, np.full((2, 8, 8, 1), -1.0, np.float32)).shape  # doctest: +SKIP
        (2,)
    """
    return flow_likelihood(
        *(params, key, x_0, class_labels),
        dequantisation=dequantisation,
        trace=trace,
        num_probes=num_probes,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        first_index=first_index,
        mesh=mesh,
    ).log_likelihood


def flow_likelihood(
    params: Params,
    key: RandomKey,
    x_0: Images,
    class_labels: Labels = None,
    *,
    dequantisation: Dequantisation = "uniform",
    trace: Trace = "rademacher",
    num_probes: SupportsIndex = 1,
    rtol: Number = 1e-5,
    atol: Number = 1e-5,
    max_steps: SupportsIndex = 4096,
    first_index: SupportsIndex = 0,
    mesh: Mesh | None = None,
) -> FlowLikelihood:
    """Return the likelihood of images by the probability flow, which diffrax solves (Tsit5); needs the extra `eval`.

    Every image has its own steps: its value depends on (key, first_index + i) alone. The divergence is estimated by
    e^T J e for random probes e (Hutchinson; Grathwohl et al. 2019), which are kept along the flow, or exactly.

    Args:
        params, class_labels, first_index, mesh: as in `bits_per_dim`.
        key: draws the dequantisation and the probes.
        x_0: [b, h, w, c] images on the scale of the data, [-1, 1]; with "uniform" of 256 levels, bytes / 127.5 - 1.
        dequantisation: "uniform" adds noise between the levels, as wide as they are apart, so that `bits_per_dim` is
            an upper bound on that of the levels under the flow's density. "none" takes x_0 as it is: a density of
            continuous data.
        trace: "rademacher" or "gaussian" probes, or "exact": the trace itself, for as many evaluations of the
            derivative as an image has values.
        num_probes: probes of each image.
        rtol, atol: tolerances of the solver.
        max_steps: largest number of its steps.

    Raises:
        MissingExtra: diffrax is not installed.
        TypeError: params is no `Params`, the key no key.
        ValueError: as `bits_per_dim`; an option out of its range.
        RuntimeError: the solver needs more than `max_steps`, or meets numbers that are not finite.

    score_sde (yang-song/score_sde, likelihood.py) starts its flow below the least noise that a discrete network has
    seen, and takes levels 1/128 apart: its offset is 7 bits, here log2(127.5) = 6.994.

    Example:
        >>> found = flow_likelihood(params, key, np.full((2, 8, 8, 1), -1.0, np.float32))  # doctest: +SKIP
        >>> found.bits_per_dim.shape  # doctest: +SKIP
        (2,)
    """
    need("diffrax", "eval", "The likelihood by the probability flow")
    _check_options(dequantisation, trace, rtol, atol)
    num_probes, max_steps = as_positive("num_probes", num_probes), as_positive("max_steps", max_steps)
    check(
        trace != "exact" or num_probes == 1,
        f"`num_probes` {num_probes!r} would do nothing: an exact trace has no probes. Leave one of them out.",
    )
    uniform = dequantisation == "uniform"
    batch = prepare(*(params, key, x_0, class_labels, first_index, mesh), on_levels=uniform)
    config = params.config
    static = Static(*(config.unet, config.schedule.prediction_type, batch.count, uniform, trace, num_probes, max_steps))
    images = (batch.weights, batch.key, batch.indices, batch.x_0, batch.labels)
    numbers = (log_ratios(config.schedule), np.float32(rtol), np.float32(atol))
    found = compilation.call(run_flow, static, *images, *numbers)
    _check_solved(found, max_steps)
    values = math.prod(x_0.shape[1:])
    nats = found.log_likelihood
    bits = -nats / (values * math.log(2)) - math.log2(BETWEEN)
    error = found.spread / (values * math.log(2))
    return FlowLikelihood(nats, bits, error, found.num_evals)


class Static(NamedTuple):
    """What the flow's program is compiled for, besides the shapes of its arguments."""

    unet: UNetConfig
    prediction_type: str
    batch_size: int
    dequantises: bool
    trace: str
    num_probes: int
    max_steps: int


class Solved(NamedTuple):
    """What the flow's program returns, arrays [b].

    Attributes:
        log_likelihood: in nats.
        spread: standard error of it, by its probes.
        num_evals: evaluations of the network.
        ended: whether the solver reached the end.
    """

    log_likelihood: jax.Array
    spread: jax.Array
    num_evals: jax.Array
    ended: jax.Array


@functools.lru_cache(maxsize=16)
def log_ratios(schedule: ScheduleConfig) -> np.ndarray:
    """Return log(sigma / signal) of the timesteps that have signal, float32."""
    alpha_bar = alphas_cumprod(schedule)
    alpha_bar = alpha_bar[alpha_bar > 0]
    return (np.log1p(-alpha_bar) / 2 - np.log(alpha_bar) / 2).astype(np.float32)


def run_flow(
    static: Static,
    weights: PyTree,
    key: jax.Array,
    indices: Array,
    x_0: jax.Array,
    labels: Array | None,
    table: Array,
    rtol: Array,
    atol: Array,
) -> Solved:
    """Solve the flow of each image on its own, all of them at once.

    Args:
        static: see there.
        weights, key, indices, x_0, labels: of a batch.
        table: of `log_ratios`.
        rtol, atol: tolerances.
    """
    weights = hoist.cast_weights(static.unet, weights)
    solve = functools.partial(_solve, static, weights, jnp.asarray(table), rtol, atol)
    solved = jax.vmap(solve)(image_keys(key, indices), x_0, labels)
    return jax.tree.map(lambda array: array[: static.batch_size], solved)


def _solve(static: Static, weights, table, rtol, atol, key, x_0, label) -> Solved:
    """Solve the flow of one image [h, w, c]."""
    import diffrax

    noise_key, probe_key = jax.random.split(key)
    x = x_0
    if static.dequantises:
        x = x + BETWEEN * (jax.random.uniform(noise_key, x.shape, x.dtype) - 0.5)
    signal = 1 / jnp.sqrt(1 + jnp.exp(2 * table[0]))
    probes = _probes(static, probe_key, x)
    labels = None if label is None else label[None]
    times = jnp.arange(len(table), dtype=table.dtype)

    def field(u, state, _):
        x, _ = state
        ratio = jnp.exp(u)
        signal = 1 / jnp.sqrt(1 + ratio**2)
        sigma = ratio * signal
        t = jnp.interp(u, table, times)
        t = jnp.round(t) if static.unet.time_embedding_type == "learned" else t  # one row for each whole timestep

        def net(x):
            out = hoist.run(static.unet, weights, x[None], t[None], labels)[0]
            return out[..., : x.shape[-1]]

        from_x, from_out = _slope(static.prediction_type, signal, sigma)
        out, traces = _traces(static, net, x, probes)
        return from_x * x + from_out * out, from_x + from_out * traces / x.size

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        t0=table[0],
        t1=table[-1],
        dt0=None,
        y0=(signal * x, jnp.zeros(len(probes), x.dtype)),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=_norm),
        max_steps=static.max_steps,
        throw=False,
    )
    x_T, integrals = jax.tree.map(lambda values: values[-1], solution.ys)
    prior = -(x_T**2).mean() / 2 - math.log(2 * math.pi) / 2
    a_value = prior + integrals + jnp.log(signal)  # log-densities a value, one for each probe
    spread = jnp.zeros(()) if static.trace == "exact" else a_value.std(ddof=1) / math.sqrt(static.num_probes)
    steps = solution.stats["num_steps"]
    ended = diffrax.is_successful(solution.result) & jnp.isfinite(a_value).all()
    return Solved(x.size * a_value.mean(), x.size * spread, 6 * steps + 1, ended)


def _slope(prediction_type: str, signal: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (a, b) with dx/du = a x + b out: sigma (eps_hat - sigma x) with the network's output put in.

    In no type does sigma come from 1 - alpha_bar, nor a large number from a difference.
    """
    if prediction_type == "epsilon":
        return -(sigma**2), sigma
    if prediction_type == "sample":
        return signal**2, -signal
    return jnp.zeros_like(sigma), sigma * signal


def _probes(static: Static, key: jax.Array, x: jax.Array) -> jax.Array:
    """Return probes [num_probes, h, w, c]; for an exact trace one that is not used."""
    shape = (static.num_probes, *x.shape)
    if static.trace == "gaussian":
        return jax.random.normal(key, shape, x.dtype)
    return jax.random.rademacher(key, shape, x.dtype)


def _traces(static: Static, net: Any, x: jax.Array, probes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the network's output, and the trace of its Jacobian by each probe."""
    out, push = jax.linearize(net, x)
    if static.trace != "exact":
        return out, jax.vmap(lambda probe: (probe * push(probe)).sum())(probes)

    def diagonal(index: jax.Array) -> jax.Array:
        column = jnp.zeros(x.size, x.dtype).at[index].set(1).reshape(x.shape)
        return push(column).reshape(-1)[index]

    columns = jax.lax.map(diagonal, jnp.arange(x.size), batch_size=min(_AT_ONCE, x.size))
    return out, columns.sum()[None]


def _norm(state: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the larger size of the image's values and the integrals', which a mean over all would hide."""
    x, integrals = state
    return jnp.sqrt(jnp.maximum((x**2).mean(), (integrals**2).max()))


def _check_options(dequantisation: Any, trace: Any, rtol: Any, atol: Any) -> None:
    check(
        dequantisation in DEQUANTISATIONS,
        f"`dequantisation` must be one of {list(DEQUANTISATIONS)}, not {dequantisation!r}.",
    )
    check(trace in TRACES, f"`trace` must be one of {list(TRACES)}, not {trace!r}.")
    for name, value in (("rtol", rtol), ("atol", atol)):
        check(is_number(value) and 0 < value < 1, f"`{name}` must be a number between 0 and 1, not {value!r}.")


def _check_solved(found: Solved, max_steps: int) -> None:
    if isinstance(found.ended, jax.core.Tracer):
        return
    failed = np.flatnonzero(~np.asarray(found.ended))
    if failed.size:
        raise RuntimeError(
            f"The flow of {failed.size} of {len(found.ended)} images (the first is number {failed[0]} of the batch) "
            f"did not reach its end in {max_steps} steps (`max_steps`), or its numbers are not finite. Give larger "
            "`rtol` and `atol` or more `max_steps`, and look at those images and at the weights."
        )
