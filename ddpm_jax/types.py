"""The array types of the signatures; the only file that imports jaxtyping.

They are read by people everywhere and enforced by beartype under pytest alone. Images may be jax or numpy arrays. Equal
letters must agree within one call.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Key, PRNGKeyArray, PyTree, Real, Shaped

Array: TypeAlias = jax.Array | np.ndarray
Number: TypeAlias = int | float

Images: TypeAlias = Float[Array, "b h w c"]
Outputs: TypeAlias = Float[Array, "b h w out"]
Frames: TypeAlias = Float[Array, "frames b h w c"]
Coefficient: TypeAlias = int | float | Float[Array, ""] | Float[Array, " b"]
Timesteps: TypeAlias = int | float | Real[Array, ""] | Real[Array, " b"]
Labels: TypeAlias = int | Sequence[Any] | Shaped[Array, "..."] | None
RandomKey: TypeAlias = PRNGKeyArray
ImageKeys: TypeAlias = Key[jax.Array, " b"]
NetFn: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]

__all__ = [
    "Array",
    "Coefficient",
    "Float",
    "Frames",
    "ImageKeys",
    "Images",
    "Labels",
    "NetFn",
    "Number",
    "Outputs",
    "PyTree",
    "RandomKey",
    "Timesteps",
]
