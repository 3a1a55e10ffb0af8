"""Random keys of whatever make become keys of threefry, the only generator whose vmap goes key by key.

XLA's own generators ("rbg", "unsafe_rbg"), which TPU users set by JAX_DEFAULT_PRNG_IMPL, draw for a batch of keys from
the first of them: what image 2 gets would depend on the batch that it is part of (JAX issue 19085).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.types import ImageKeys, RandomKey
from ddpm_jax.validation import check, is_int

THREEFRY = "threefry2x32"
LARGEST_SEED = 2**32 - 1  # jax.random.key takes no more bits of it without x64, and says nothing


def image_keys(key: RandomKey, indices: Any) -> ImageKeys:
    """Return the key of each image of a set: it depends on (key, index) alone.

    Example:
        >>> image_keys(jax.random.key(0), jnp.arange(3)).shape
        (3,)
    """
    key = threefry_key(key)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def key_from_seed(seed: int) -> jax.Array:
    """Return the key of a seed: another one for each, whatever generator is the default.

    Raises:
        ValueError: a seed that is no integer from 0 to 2^32 - 1.

    Example:
        >>> bool(key_from_seed(5) == jax.random.key(5, impl="threefry2x32"))
        True
    """
    check_seed(seed)
    bits: Any = np.array([0, seed], np.uint32)  # wrap_key_data takes numpy arrays, whatever its annotation says
    return jax.random.wrap_key_data(bits, impl=THREEFRY)  # what `key` does, but compiles


def check_seed(seed: int) -> None:
    """Refuse what would give the numbers of another seed."""
    good = is_int(seed, 0) and seed <= LARGEST_SEED
    check(good, f"`seed` must be an integer from 0 to {LARGEST_SEED} (2^32 - 1), not {seed!r}.")


def threefry_key(key: RandomKey) -> jax.Array:
    """Return a key of threefry: the key itself if it is one, else one made from all of its numbers.

    Args:
        key: one key of `jax.random`, new style of any generator, or old style, which is its numbers: two of threefry,
            more of others.

    Raises:
        TypeError: no key, or several.

    Example:
        >>> key = jax.random.key(0, impl="rbg")
        >>> threefry_key(key).dtype
        key<fry>
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ():
        if str(jax.random.key_impl(key)) == THREEFRY:
            return key
        data = jax.random.key_data(key)
    elif dtype == np.uint32 and shape is not None and len(shape) == 1 and shape[0] >= 2:
        if shape == (2,):
            return jax.random.wrap_key_data(key, impl=THREEFRY)
        data = jnp.asarray(key)
    else:
        raise TypeError(f"`key` must be one key of jax.random, as jax.random.key(0), not {key!r}.")
    made = jax.random.key(0, impl=THREEFRY)
    for word in data.reshape(-1):  # one after the other: those of "rbg" come twice, and must not cancel out
        made = jax.random.fold_in(made, word)
    return made
