"""Costs of compiling and running a network on a CPU, to decide where what costs compiling pays.

The constants of sampling were measured by `benchmarks/compile_pays.py` on 2 cores. Only ratios matter, which are
similar on other machines.
"""

import math
from collections.abc import Sequence

from ddpm_jax.models.layout import Convolution

# How much longer a transformed convolution takes to compile, and the seconds it saves for each FLOP of the plain one.
TRANSFORM_SECONDS = 0.068  # 0.03 to 0.10, by network
SAVED_A_FLOP = 2.0e-12  # 0.9e-12 to 3.7e-12
# The constants of training are of alternating runs of a whole step, with 16 images of 32 x 32 pixels, on the networks
# of the presets small-32 and cifar10 (`benchmarks/training.py --forms`).
# A transformed convolution, whose gradient by the input is transformed too (`models.cpu_gradients`):
TRAINED_TRANSFORM_SECONDS = 0.32  # 0.3 to 1.0
TRAINED_SAVED_A_FLOP = 1.6e-12  # 1.6e-12 to 2.5e-12
# Sums over pixels as products: how much longer each convolution takes to compile, and the seconds saved for each number
# that the convolutions put out.
PRODUCTS_SECONDS = 0.11  # 0.11 to 0.12
PRODUCTS_SAVED = 5.0e-9  # 2.7e-9 to 1.8e-8


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


def trained_transform_pays(convolution: Convolution, images: int) -> bool:
    """Tell the same of training on so many images, with the convolution and its gradient by the input transformed.

    Example:
        >>> convolution = Convolution((), (3, 3), 1, None, (16, 16, 128), 128)
        >>> trained_transform_pays(convolution, 10), trained_transform_pays(convolution, 10_000)
        (False, True)
    """
    return 2 * flops(convolution) * images * TRAINED_SAVED_A_FLOP > TRAINED_TRANSFORM_SECONDS


def products_pay(convolutions: Sequence[Convolution], images: int) -> bool:
    """Tell whether sums over pixels as products save more seconds in training on so many images than they cost.

    Example:
        >>> convolutions = [Convolution((), (3, 3), 1, None, (16, 16, 128), 128)]
        >>> products_pay(convolutions, 10), products_pay(convolutions, 10_000)
        (False, True)
    """
    numbers = sum(math.prod(each.in_shape[:2]) * each.features for each in convolutions)
    return numbers * images * PRODUCTS_SAVED > len(convolutions) * PRODUCTS_SECONDS
