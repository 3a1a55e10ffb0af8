"""3x3 convolutions with half the multiplications, for sampling on CPU.

Winograd's minimal filtering F(4, 3) along the rows (Lavin & Gray 2016, section 4) computes four rows of outputs from
six rows of inputs by 6 products instead of 12,

    Y = A^T [(G g) * (B^T d)],

where d are six neighbouring rows and g the three rows of the kernel. Each product is a convolution with a kernel (1, 3)
along the columns, which XLA runs. The kernels are transformed once a model and take twice the memory.

On 2 cores with AVX-512 a layer takes 0.55 to 0.7 of the plain time at 32 x 32 and 16 x 16 pixels, for one to sixteen
images, and 0.8 at 256 x 256. F(4x4, 3x3) as 36 matrix products was tried: it took 0.5 to 1.2 of the plain time, four
times the kernels' memory, and had five times the rounding error.
"""

import functools
import operator
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ddpm_jax.config.unet import UNetConfig
from ddpm_jax.models.cost import transform_pays
from ddpm_jax.models.layout import Convolution, layout
from ddpm_jax.types import Array, PyTree

B_T = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
G = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
NAME = "winograd"
LEAST_CHANNELS = 32
LEAST_PIXELS = 256  # of the whole batch; with fewer, reading the larger kernels takes longer than they save


def transform_kernel(kernel: Array) -> tuple[jax.Array, ...]:
    """Return G g for each column of a kernel [3, 3, in, out]: six kernels [1, 3, in, out].

    They are six arrays, since slices of one array would be copied in every step. They are computed by numpy, since
    compiling the transform would take longer than running it.

    Example:
        >>> [part.shape for part in transform_kernel(np.ones((3, 3, 2, 4)))][0]
        (1, 3, 2, 4)
    """
    return tuple(map(jax.device_put, combine_kernel(np.asarray(kernel))))


def combine_kernel(kernel: Array) -> list[Any]:
    """Return G g as `transform_kernel` does, where the kernel lies: in the program that is traced, say."""
    return _combined(G, [kernel[row : row + 1] for row in range(3)])


_made: dict[int, tuple[weakref.ref, tuple[jax.Array, ...]]] = {}  # by the identity of a kernel that lives


def kernels_of(kernel: Array) -> tuple[jax.Array, ...]:
    """Return the transformed kernels of a kernel, made once: they are kept for as long as it lives.

    Those of a numpy array are made anew, since it may change.
    """
    if not isinstance(kernel, jax.Array):
        return transform_kernel(kernel)
    number = id(kernel)
    if number not in _made:
        _made[number] = (weakref.ref(kernel, lambda _: _made.pop(number, None)), transform_kernel(kernel))
    return _made[number][1]


def convolve(x: jax.Array, kernels: Sequence[jax.Array]) -> jax.Array:
    """Convolve images [b, h, w, in] with transformed kernels, padded by one pixel; h must be a multiple of 4.

    Example:
        >>> kernels = transform_kernel(jnp.ones((3, 3, 2, 4)))
        >>> float(convolve(jnp.ones((1, 8, 8, 2)), kernels)[0, 4, 4, 0].round(3))
        18.0
    """
    batch, height, width, channels = x.shape
    rows = jnp.pad(x, ((0, 0), (1, 3), (1, 1), (0, 0)))  # blocks of 4 rows; a tile is a block and 2 rows of the next
    rows = rows.reshape(batch, height // 4 + 1, 4, width + 2, channels)
    tile = [rows[:, :-1, j] for j in range(4)] + [rows[:, 1:, j] for j in range(2)]
    products = [
        jax.lax.conv_general_dilated(part, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        for part, kernel in zip(_combined(B_T, tile), kernels, strict=True)
    ]
    return jnp.stack(_outputs(products), axis=2).reshape(batch, height, width, -1)


def _outputs(products: list[jax.Array]) -> list[jax.Array]:
    """Return A^T m: four rows from six products, behind a barrier so that XLA does not fuse them into their stack.

    Fused kernels took a quarter of the network's compile time. Without fusion a step takes 3 % longer at batch 4, and
    no longer at batch 1.
    """
    m0, m1, m2, m3, m4, m5 = products
    even_12, odd_12, even_34, odd_34 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    rows = [m0 + even_12 + even_34, odd_12 + 2 * odd_34, even_12 + 4 * even_34, odd_12 + 8 * odd_34 + m5]
    return list(jax.lax.optimization_barrier(rows))


def _combined(matrix: np.ndarray, images: Sequence[Any]) -> list[Any]:
    """Return the rows' weighted sums of images, which are jax or numpy arrays."""
    return [sum(float(c) * image for c, image in zip(row, images, strict=True) if c) for row in matrix]


def transform_weights(config: UNetConfig, weights: PyTree, batch_size: int, evaluations: int) -> PyTree:
    """Return the weights, with kernels transformed where that is faster.

    Only a network under `intercept` can run on them. A kernel is transformed if that saves more seconds in all
    evaluations than compiling its transforms takes (`models.cost`).

    Args:
        config: the network.
        weights: its plain weights; they are not changed.
        batch_size: images on one device.
        evaluations: how often the compiled program will run the network, over all calls.
    """
    weights = jax.tree.map(lambda leaf: leaf, weights)  # a copy of the dictionaries
    for convolution in layout(config).convolutions:
        if transforms(convolution, batch_size, evaluations):
            layer = functools.reduce(operator.getitem, convolution.path, weights)
            layer[NAME] = kernels_of(layer.pop("kernel"))
    return weights


def fast_weights(config: UNetConfig, weights: PyTree, batch_size: int, evaluations: int) -> PyTree:
    """Return the weights as `transform_weights` where that gains: in float32 on a CPU, if this process holds them."""
    here = all(
        leaf.is_fully_addressable or leaf.is_fully_replicated
        for leaf in jax.tree.leaves(weights)
        if isinstance(leaf, jax.Array)
    )
    if jax.default_backend() == "cpu" and config.dtype == "float32" and here:
        return transform_weights(config, weights, batch_size, evaluations)
    return weights


def is_transformed(weights: PyTree) -> bool:
    """Tell whether any kernel of a network is transformed."""
    return isinstance(weights, dict) and (NAME in weights or any(map(is_transformed, weights.values())))


def transforms(convolution: Convolution, batch_size: int, evaluations: int) -> bool:
    """Tell whether a convolution can be transformed, and saves time then."""
    return can_transform(convolution, batch_size) and transform_pays(convolution, batch_size * evaluations)


def can_transform(convolution: Convolution, batch_size: int, least_channels: int = LEAST_CHANNELS) -> bool:
    """Tell whether a convolution can be transformed, and is large enough to run faster then."""
    height, width, channels = convolution.in_shape
    return (
        convolution.kernel_size == (3, 3)
        and convolution.strides in (1, (1, 1))
        and tuple(convolution.padding) == ((1, 1), (1, 1))
        and height % 4 == 0
        and min(channels, convolution.features) >= least_channels
        and batch_size * height * width >= LEAST_PIXELS
    )


def intercept(next_function, args, kwargs, context):
    """Convolve with transformed kernels in layers that have them; for `flax.linen.intercept_methods`."""
    module = context.module
    if isinstance(module, nn.Conv) and context.method_name == "__call__" and module.has_variable("params", NAME):
        kernels = module.get_variable("params", NAME)
        return convolve(args[0], kernels) + module.get_variable("params", "bias")[None, None, None]
    return next_function(*args, **kwargs)
