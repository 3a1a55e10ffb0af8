"""The InceptionV3 of the Frechet inception distance.

It is the network of TensorFlow's `inception-2015-12-05`, which differs from that of Szegedy et al. 2015
(arXiv:1512.00567) and from torchvision's: average pools leave the padding out of their mean, the last block pools with
a maximum, and there are 1008 classes. Its convolutions have the names that pytorch-fid and torch-fidelity share, and
their batch norms are folded into them (`inception_weights`).

In every block but one the average pool follows its 1x1 convolution instead of preceding it. Both are linear, and a mean
keeps the bias, so the numbers are the same to rounding; the pool then has fewer channels, and all 1x1 convolutions that
read the block's input can be one.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

SIDE = 299  # pixels
NUM_CLASSES = 1008
LEVELS = (64, 192, 768, 2048)
# Accelerators would round the factors of float32 products to ten bits. Kernels are read, never drawn.
_EXACT = {"precision": "highest", "kernel_init": nn.initializers.zeros}


class Activations(NamedTuple):
    """Means over the pixels at four depths, and the logits of the classes without the last layer's bias.

    The inception score of Salimans et al. 2016 leaves that bias out, and so does torch-fidelity's.

    Attributes:
        levels: the features [b, level] by their number, of 64, 192, 768 and 2048.
        logits: [b, 1008].
    """

    levels: dict[int, jax.Array]
    logits: jax.Array


class InceptionV3(nn.Module):
    """Map images [b, 299, 299, 3] in [-1, 1] to `Activations`; any size from 75 x 75 up is admitted."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Activations:
        levels = {}
        x = _conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2, "VALID")
        x = _conv(x, "Conv2d_2a_3x3", 32, (3, 3), 1, "VALID")
        x = _conv(x, "Conv2d_2b_3x3", 64, (3, 3))
        x = max_pool(x, strides=2)
        levels[64] = x.mean((1, 2))
        x = _conv(x, "Conv2d_3b_1x1", 80, (1, 1))
        x = _conv(x, "Conv2d_4a_3x3", 192, (3, 3), 1, "VALID")
        x = max_pool(x, strides=2)
        levels[192] = x.mean((1, 2))
        x = InceptionA(32, name="Mixed_5b")(x)
        x = InceptionA(64, name="Mixed_5c")(x)
        x = InceptionA(64, name="Mixed_5d")(x)
        x = InceptionB(name="Mixed_6a")(x)
        x = InceptionC(128, name="Mixed_6b")(x)
        x = InceptionC(160, name="Mixed_6c")(x)
        x = InceptionC(160, name="Mixed_6d")(x)
        x = InceptionC(192, name="Mixed_6e")(x)
        levels[768] = x.mean((1, 2))
        x = InceptionD(name="Mixed_7a")(x)
        x = InceptionE("average", name="Mixed_7b")(x)
        x = InceptionE("maximum", name="Mixed_7c")(x)
        levels[2048] = x.mean((1, 2))
        logits = nn.Dense(NUM_CLASSES, use_bias=False, **_EXACT, name="fc")(levels[2048])
        return Activations(levels, logits)


class InceptionA(nn.Module):
    """A block at 35 x 35 pixels: branches 1x1, 5x5, 3x3 twice, and an average pool."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one, five, three, pool = _entry(
            x,
            {"branch1x1": 64, "branch5x5_1": 48, "branch3x3dbl_1": 64, "branch_pool": self.pooled},
        )
        five = _conv(nn.relu(five), "branch5x5_2", 64, (5, 5))
        three = _conv(nn.relu(three), "branch3x3dbl_2", 96, (3, 3))
        three = _conv(three, "branch3x3dbl_3", 96, (3, 3))
        return jnp.concatenate([nn.relu(one), five, three, nn.relu(average_pool(pool))], -1)


class InceptionB(nn.Module):
    """The block from 35 to 17 pixels: branches 3x3, 3x3 twice, and a maximum."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = _conv(x, "branch3x3", 384, (3, 3), 2, "VALID")
        double = _conv(x, "branch3x3dbl_1", 64, (1, 1))
        double = _conv(double, "branch3x3dbl_2", 96, (3, 3))
        double = _conv(double, "branch3x3dbl_3", 96, (3, 3), 2, "VALID")
        return jnp.concatenate([three, double, max_pool(x, strides=2)], -1)


class InceptionC(nn.Module):
    """A block at 17 x 17 pixels: branches 1x1, 7x7 as 1x7 and 7x1, that twice, and an average pool."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one, seven, double, pool = _entry(
            x,
            {"branch1x1": 192, "branch7x7_1": self.width, "branch7x7dbl_1": self.width, "branch_pool": 192},
        )
        seven = _conv(nn.relu(seven), "branch7x7_2", self.width, (1, 7))
        seven = _conv(seven, "branch7x7_3", 192, (7, 1))
        double = _conv(nn.relu(double), "branch7x7dbl_2", self.width, (7, 1))
        double = _conv(double, "branch7x7dbl_3", self.width, (1, 7))
        double = _conv(double, "branch7x7dbl_4", self.width, (7, 1))
        double = _conv(double, "branch7x7dbl_5", 192, (1, 7))
        return jnp.concatenate([nn.relu(one), seven, double, nn.relu(average_pool(pool))], -1)


class InceptionD(nn.Module):
    """The block from 17 to 8 pixels: branches 3x3, 7x7 and 3x3, and a maximum."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three, seven = map(nn.relu, _entry(x, {"branch3x3_1": 192, "branch7x7x3_1": 192}))
        three = _conv(three, "branch3x3_2", 320, (3, 3), 2, "VALID")
        seven = _conv(seven, "branch7x7x3_2", 192, (1, 7))
        seven = _conv(seven, "branch7x7x3_3", 192, (7, 1))
        seven = _conv(seven, "branch7x7x3_4", 192, (3, 3), 2, "VALID")
        return jnp.concatenate([three, seven, max_pool(x, strides=2)], -1)


class InceptionE(nn.Module):
    """A block at 8 x 8 pixels, whose 3x3 branches end in a 1x3 beside a 3x1; its pool is an average or a maximum."""

    pool: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        widths = {"branch1x1": 320, "branch3x3_1": 384, "branch3x3dbl_1": 448}
        if self.pool == "average":
            one, three, double, pool = _entry(x, widths | {"branch_pool": 192})
            pool = nn.relu(average_pool(pool))
        else:
            one, three, double = _entry(x, widths)
            pool = _conv(max_pool(x, strides=1), "branch_pool", 192, (1, 1))
        three = nn.relu(three)
        double = _conv(nn.relu(double), "branch3x3dbl_2", 384, (3, 3))
        return jnp.concatenate(
            [
                nn.relu(one),
                _conv(three, "branch3x3_2a", 384, (1, 3)),
                _conv(three, "branch3x3_2b", 384, (3, 1)),
                _conv(double, "branch3x3dbl_3a", 384, (1, 3)),
                _conv(double, "branch3x3dbl_3b", 384, (3, 1)),
                pool,
            ],
            -1,
        )


def _conv(x: jax.Array, name: str, features: int, size: tuple[int, int], strides: int = 1, padding="SAME"):
    return nn.relu(nn.Conv(features, size, strides, padding, **_EXACT, name=name)(x))


class _Pointwise(nn.Module):
    """Kernel and bias of a 1x1 convolution."""

    features: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
        zeros = nn.initializers.zeros
        return self.param("kernel", zeros, (1, 1, channels, self.features)), self.param("bias", zeros, (self.features,))


def _entry(x: jax.Array, widths: Mapping[str, int]) -> list[jax.Array]:
    """Return the 1x1 convolutions of a block's input, before their ReLUs, computed as one."""
    parts = [_Pointwise(features, name=name)(x.shape[-1]) for name, features in widths.items()]
    kernel, bias = (jnp.concatenate(part, -1) for part in zip(*parts, strict=True))
    y = (
        jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )
        + bias[None, None, None]
    )
    return jnp.split(y, np.cumsum(list(widths.values()))[:-1], -1)


def max_pool(x: jax.Array, strides: int) -> jax.Array:
    """Take the maximum of 3 x 3 pixels: [b, h, w, c]; with stride 1 the size is kept."""
    return nn.max_pool(x, (3, 3), (strides, strides), "SAME" if strides == 1 else "VALID")


def average_pool(x: jax.Array) -> jax.Array:
    """Average 3 x 3 pixels, at the border those that exist: [b, h, w, c], the size is kept."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
