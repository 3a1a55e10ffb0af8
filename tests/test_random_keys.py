"""Keys of every generator become threefry keys that depend on all their words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import random_keys
from ddpm_jax.random_keys import LARGEST_SEED, image_keys, key_from_seed, threefry_key

OTHERS = ("rbg", "unsafe_rbg")


def data(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def test_threefry_stays():
    for seed in (0, 7, LARGEST_SEED):
        new, old = jax.random.key(seed), jax.random.PRNGKey(seed)
        assert threefry_key(new) is new
        assert data(threefry_key(old)) == data(new)


@pytest.mark.parametrize("impl", OTHERS)
def test_other_keys_differ_where_their_numbers_do(impl):
    key = jax.random.key(3, impl=impl)
    words = jax.random.key_data(key)
    assert str(jax.random.key_impl(threefry_key(key))) == "threefry2x32"
    assert data(threefry_key(key)) == data(threefry_key(words))  # both styles
    made = {tuple(data(threefry_key(words + jnp.eye(4, dtype=jnp.uint32)[i]))) for i in range(4)}
    made |= {tuple(data(threefry_key(jax.random.key(seed, impl=impl)))) for seed in range(8)}
    assert len(made) == 12  # the halves of a seed's are the same, and do not cancel out


@pytest.mark.parametrize("impl", ["threefry2x32", *OTHERS])
def test_an_image_has_its_key_whatever_the_batch(impl):
    key = jax.random.key(3, impl=impl)
    draw = jax.jit(lambda key, indices: jax.vmap(jax.random.normal)(image_keys(key, indices)))
    np.testing.assert_array_equal(draw(key, jnp.arange(4))[2:], draw(key, jnp.array([2, 3])))
    keys = jax.random.split(key, 2)
    mapped = jax.vmap(lambda key: draw(key, jnp.arange(2)))(keys)  # they are one key each under vmap
    np.testing.assert_array_equal(mapped[1], draw(keys[1], jnp.arange(2)))


@pytest.mark.parametrize("key", [0, np.uint32([1]), np.zeros((2, 2), np.uint32), np.zeros(2, np.int32), None])
def test_what_is_no_key_is_refused(key, untyped):
    with pytest.raises(TypeError, match="`key` must be one key"):
        threefry_key(key)


def test_seeds(untyped):
    assert data(key_from_seed(5)) == [0, 5] and data(key_from_seed(LARGEST_SEED)) == [0, LARGEST_SEED]
    for seed in (-1, LARGEST_SEED + 1, 2**32 + 5, 2**64, 1.0, True):
        with pytest.raises(ValueError, match=r"`seed` must be an integer from 0 to 4294967295 \(2\^32 - 1\)"):
            random_keys.check_seed(seed)


def test_the_default_generator_does_not_matter():
    with jax.default_prng_impl("rbg"):
        assert data(key_from_seed(5)) == [0, 5]
        assert data(threefry_key(jnp.uint32([0, 5]))) == [0, 5]  # as an artefact is called
