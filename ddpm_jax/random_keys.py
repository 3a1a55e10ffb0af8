"""Convert random keys of any generator to threefry, the only one whose vmap draws for each key on its own.

XLA's generators ("rbg", "unsafe_rbg"), which TPU users set by JAX_DEFAULT_PRNG_IMPL, draw for a batch of keys from the
first key alone: the noise of image 2 would depend on its batch (JAX issue 19085).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.types import ImageKeys, RandomKey
from ddpm_jax.validation import as_integer, check, is_int

THREEFRY = "threefry2x32"
LARGEST_SEED = 2**32 - 1  # without x64, jax.random.key silently drops higher bits


def image_keys(key: RandomKey, indices: Any) -> ImageKeys:
    """Return one key an image, which depends on (key, index) alone.

    Example:
        >>> image_keys(jax.random.key(0), jnp.arange(3)).shape
        (3,)
    """
    key = threefry_key(key)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def image_numbers(first_index: Any, batch_size: int) -> np.ndarray:
    """Return the numbers of a batch's images, from the argument `first_index` on.

    Raises:
        TypeError, ValueError: no integer, or a number that int32 does not hold.

    Example:
        >>> image_numbers(4, 2).tolist()
        [4, 5]
    """
    first_index = as_integer("first_index", first_index)
    if not 0 <= first_index <= 2**31 - 1 - batch_size:
        raise ValueError(f"`first_index` must be from 0 to 2^31 - 1 - batch_size, not {first_index}.")
    return first_index + np.arange(batch_size, dtype=np.int32)


def key_from_seed(seed: int) -> jax.Array:
    """Return the threefry key of a seed, whatever generator is the default. Different seeds give different keys.

    Raises:
        ValueError: a seed that is not an integer from 0 to 2^32 - 1.

    Example:
        >>> bool(key_from_seed(5) == jax.random.key(5, impl="threefry2x32"))
        True
    """
    check_seed(seed)
    bits: Any = np.array([0, seed], np.uint32)  # wrap_key_data takes numpy arrays, whatever its annotation says
    return jax.random.wrap_key_data(bits, impl=THREEFRY)  # jax.random.key does the same, but compiles a program


def check_seed(seed: int) -> None:
    """Refuse a seed whose key would be that of another seed."""
    good = is_int(seed, 0) and seed <= LARGEST_SEED
    check(good, f"`seed` must be an integer from 0 to {LARGEST_SEED} (2^32 - 1), not {seed!r}.")


def threefry_key(key: RandomKey) -> jax.Array:
    """Return a threefry key: the key itself, or one folded from all words of another generator's key.

    Args:
        key: one key of `jax.random`: typed, or an old-style uint32 array (two words of threefry, more of others).

    Raises:
        TypeError: not a key, or several keys.

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
    for word in data.reshape(-1):  # in turn: "rbg" has each word twice, and a sum or XOR would cancel them
        made = jax.random.fold_in(made, word)
    return made
