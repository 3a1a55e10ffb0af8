"""Sums over pixels as matrix products, and the gradients that are made of them: faster on a CPU.

The gradients of a group norm, a bias and a time embedding are sums over the pixels of an image. XLA fuses the
elementwise work before such a sum into it (the gradient of a SiLU, say), and the fused loop takes two to four times as
long as one after the other. The operand of a product is materialised, so a product with ones is the faster sum.
"""

import contextvars
import functools

import jax
import jax.numpy as jnp

# Whether the network that is being traced uses them; see `models.cpu_gradients`.
products = contextvars.ContextVar("products", default=False)


def add_to_pixels(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Add a row of channels [b, c] to every pixel of its image [b, h, w, c]."""
    return add(x, rows) if products.get() else x + rows[:, None, None, :]


def pixel_sum(x: jax.Array) -> jax.Array:
    """Sum over all axes but the first and the last, as a product with ones: [b, ..., c] -> [b, c].

    Example:
        >>> pixel_sum(jnp.ones((2, 4, 4, 3))).tolist()
        [[16.0, 16.0, 16.0], [16.0, 16.0, 16.0]]
    """
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    ones = jnp.ones((x.shape[0], 1, x.shape[1]), x.dtype)  # batched: without the first axis it is slower
    return jax.lax.dot_general(ones, x, (((2,), (1,)), ((0,), (0,))))[:, 0]


@jax.custom_vjp
def add(x: jax.Array, rows: jax.Array) -> jax.Array:
    """Add a row of channels [b, c] to all that lies between the first and the last axis of x [b, ..., c]."""
    return x + rows.reshape(rows.shape[0], *[1] * (x.ndim - 2), rows.shape[1])


add.defvjp(lambda x, rows: (add(x, rows), None), lambda _, d: (d, pixel_sum(d)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float) -> jax.Array:
    """Normalise groups of neighbouring channels: y = (x - mean) / sqrt(var + epsilon) scale + bias.

    By two passes, as `layers.group_norm`. Its gradient, with x_hat = (x - mean) / sqrt(var + epsilon), d that of y and
    means over a group's pixels and channels:

        (scale d - mean(scale d) - x_hat mean(scale d x_hat)) / sqrt(var + epsilon)

    (as that of batch normalisation, Ioffe & Szegedy 2015, with the means of a group).

    Example:
        >>> x = jnp.arange(4.0).reshape(1, 2, 1, 2)
        >>> group_norm(x, jnp.ones(2), jnp.zeros(2), 1, 0.25).ravel().round(1)
        Array([-1.2, -0.4,  0.4,  1.2], dtype=float32)
    """
    mean, rstd = _statistics(x, groups, epsilon)
    return (x - _pixels(mean)) * _pixels(rstd * scale[None]) + _pixels(bias[None])


def _statistics(x: jax.Array, groups: int, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """Return the mean and 1 / sqrt(var + epsilon) of each channel's group: [b, c] twice."""
    mean = _group_mean(pixel_sum(x), x, groups)
    return mean, jax.lax.rsqrt(_group_mean(pixel_sum((x - _pixels(mean)) ** 2), x, groups) + epsilon)


def _forward(x, scale, bias, groups, epsilon):
    return group_norm(x, scale, bias, groups, epsilon), (x, scale[None], *_statistics(x, groups, epsilon))


def _gradients(groups, epsilon, kept, d):
    x, scale, mean, rstd = kept
    x_hat = (x - _pixels(mean)) * _pixels(rstd)
    of_bias, of_scale = pixel_sum(d), pixel_sum(d * x_hat)
    shift, slope = _group_mean(of_bias * scale, x, groups), _group_mean(of_scale * scale, x, groups)
    of_x = _pixels(rstd) * (_pixels(scale) * d - _pixels(shift) - x_hat * _pixels(slope))
    return of_x, of_scale.sum(0), of_bias.sum(0)


group_norm.defvjp(_forward, _gradients)


def _group_mean(sums: jax.Array, x: jax.Array, groups: int) -> jax.Array:
    """Return the means over groups of channels, for each channel: sums over pixels [b, c] -> [b, c]."""
    batch, channels = sums.shape
    means = sums.reshape(batch, groups, -1).sum(-1) * (batch * groups / x.size)
    return jnp.repeat(means, channels // groups, axis=1)


def _pixels(rows: jax.Array) -> jax.Array:
    return rows[:, None, None, :]
