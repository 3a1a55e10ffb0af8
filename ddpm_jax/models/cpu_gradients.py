"""Which gradients a network has in training on a CPU: sums as products, Winograd's convolutions in both directions.

`train_step` alone asks for them, in float32, where the seconds that they save in all steps of a run outweigh those of
compiling them (`models.cost`). A custom gradient has no forward mode, and what users differentiate themselves keeps
the plain one.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.config.unet import UNetConfig
from ddpm_jax.models import cost, winograd
from ddpm_jax.models.layout import layout
from ddpm_jax.models.pixel_sums import add, group_norm, products

LEAST_CHANNELS = 128  # below, Winograd's transforms cost as much as they save (issue 18)


class Choice(NamedTuple):
    """Which of them a network uses; static in a program.

    Attributes:
        products: sums over pixels as products.
        transformed: paths of the convolutions that go by Winograd's transforms, forward and by their input.
    """

    products: bool = False
    transformed: frozenset[tuple[str, ...]] = frozenset()


def choose(config: UNetConfig, batch_size: int, steps: int) -> Choice:
    """Choose what saves more seconds than it costs to compile.

    Args:
        config: of the network.
        batch_size: images of a step on one device.
        steps: how often the compiled step will run.

    Example:
        >>> choose(ddpm_jax.load("digits-16").config.unet, 2, 1)
        Choice(products=False, transformed=frozenset())
    """
    if jax.default_backend() != "cpu" or config.dtype != "float32":
        return Choice()
    convolutions = layout(config).convolutions
    transformed = frozenset(
        convolution.path
        for convolution in convolutions
        if winograd.can_transform(convolution, batch_size, LEAST_CHANNELS)
        and cost.trained_transform_pays(convolution, batch_size * steps)
    )
    return Choice(cost.products_pay(convolutions, batch_size * steps), transformed)


@contextlib.contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Run networks with these gradients, while a program is traced."""
    token = products.set(choice.products)
    try:
        with nn.intercept_methods(functools.partial(_intercept, choice)):
            yield
    finally:
        products.reset(token)


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve images [b, h, w, in], h a multiple of 4, with a kernel [3, 3, in, out] by `winograd.convolve`.

    The gradient by x is a convolution too, with the kernel turned by half a turn and its channels swapped.

    Example:
        >>> float(convolve(jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 2, 4)))[0, 4, 4, 0].round(3))
        18.0
    """
    return winograd.convolve(x, winograd.combine_kernel(kernel))


def _convolve_forward(x, kernel):
    return convolve(x, kernel), (x, kernel)


def _convolve_backward(kept, d):
    x, kernel = kept
    of_x = winograd.convolve(d, winograd.combine_kernel(jnp.flip(kernel, (0, 1)).swapaxes(2, 3)))
    (of_kernel,) = jax.linear_transpose(lambda kernel: _plain(x, kernel, 1, ((1, 1), (1, 1))), kernel)(d)
    return of_x, of_kernel


convolve.defvjp(_convolve_forward, _convolve_backward)


def _plain(x: jax.Array, kernel: jax.Array, strides, padding) -> jax.Array:
    strides = strides if isinstance(strides, tuple) else (strides, strides)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _intercept(choice: Choice, next_function, args, kwargs, context):
    """Run the norms, convolutions and dense layers of a network by the functions above."""
    module = context.module
    if context.method_name != "__call__":
        return next_function(*args, **kwargs)
    weight = functools.partial(module.get_variable, "params")
    if choice.products and isinstance(module, nn.GroupNorm):
        y = group_norm(args[0], weight("scale"), weight("bias"), module.num_groups, module.epsilon)
        return cast(jax.Array, y)  # its decorator, a partial, hides the type
    if isinstance(module, nn.Conv):
        if module.path in choice.transformed:
            y = convolve(args[0], weight("kernel"))
        elif choice.products:
            y = _plain(args[0], weight("kernel"), module.strides, module.padding)
        else:
            return next_function(*args, **kwargs)
        return _add_bias(y, weight("bias")) if choice.products else y + weight("bias")
    if choice.products and isinstance(module, nn.Dense) and module.use_bias and args[0].ndim > 2:
        return _add_bias(args[0] @ weight("kernel"), weight("bias"))
    return next_function(*args, **kwargs)


def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    return add(x, jnp.broadcast_to(bias, (x.shape[0], bias.size)))
