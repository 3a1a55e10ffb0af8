"""Costs of compiling and running convolutions on a CPU, to decide where Winograd's transforms pay.

The constants were measured by `benchmarks/compile_pays.py` on 2 cores. Only their ratio matters, which is similar on
other machines.
"""

import math

from ddpm_jax.models.layout import Convolution

# How much longer a transformed convolution takes to compile, and the seconds it saves for each FLOP of the plain one.
TRANSFORM_SECONDS = 0.068  # 0.03 to 0.10, by network
SAVED_A_FLOP = 2.0e-12  # 0.9e-12 to 3.7e-12


def flops(convolution: Convolution) -> int:
    """Return the floating-point operations of a convolution, for one image.

    Example:
        >>> flops(Convolution((), (3, 3), 1, None, (16, 16, 1), 32))
        147456
    """
    height, width, channels = convolution.in_shape
    strides = convolution.strides if isinstance(convolution.strides, tuple) else (convolution.strides,) * 2
    size = math.prod(convolution.kernel_size) * channels * convolution.features
    return 2 * size * height * width // math.prod(strides)


def transform_pays(convolution: Convolution, images: int) -> bool:
    """Tell whether a convolution's transforms save more seconds than they cost.

    Args:
        convolution: the convolution.
        images: number of images that it will see in all evaluations.

    Example:
        >>> convolution = Convolution((), (3, 3), 1, None, (16, 16, 64), 64)
        >>> transform_pays(convolution, 10), transform_pays(convolution, 10_000)
        (False, True)
    """
    return flops(convolution) * images * SAVED_A_FLOP > TRANSFORM_SECONDS
