"""How functions are compiled: once for each meaning, with options that this XLA knows, or inlined in a trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import compilation

X = np.linspace(-1, 1, 5, dtype=np.float32)


@pytest.fixture
def scaled():
    """A function that nobody has compiled yet, and the static arguments that it was traced for."""
    traced = []

    def scale(static, x):
        traced.append(static)
        return static * jnp.sin(x)

    return scale, traced


def test_an_option_that_xla_does_not_know_is_left_out(scaled, monkeypatch, caplog):
    function, _ = scaled
    monkeypatch.setattr(compilation, "CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    with caplog.at_level("INFO"):
        result = compilation.call(function, 2.0, X)
    assert "This XLA does not take xla_cpu_no_such_option=1" in caplog.text
    np.testing.assert_allclose(result, 2 * np.sin(X), rtol=1e-6)


def test_options_that_xla_knows_are_taken(caplog):
    """Their names are XLA's, and change between versions: what is tested is that a known one passes the sieve."""
    known = {"xla_backend_optimization_level": 1, "xla_cpu_no_such_option": "1"}
    assert compilation.known_options(known) == {"xla_backend_optimization_level": 1}


@pytest.mark.parametrize("unoptimised", [False, True])
def test_quick_programs_are_compiled_at_level_1(unoptimised):
    """Level 1 is no way to optimise more than JAX's own switch allows."""
    before = jax.config.values["jax_disable_most_optimizations"]
    try:
        jax.config.update("jax_disable_most_optimizations", unoptimised)
        levels = [compilation.options(quick=quick).get("xla_backend_optimization_level") for quick in (True, False)]
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    assert levels == [None if unoptimised else 1, None]


def test_a_program_is_compiled_once_for_each_meaning(scaled):
    function, traced = scaled
    for static in (2.0, 3.0, 2.0):
        for x in (X, X + 1):
            np.testing.assert_allclose(compilation.call(function, static, x), static * np.sin(x), rtol=1e-6)
    assert traced == [2.0, 3.0]
    compilation.call(function, 2.0, X[:3])  # another shape
    assert traced == [2.0, 3.0, 2.0]


def test_in_a_trace_it_becomes_a_part_of_the_caller(scaled):
    function, _ = scaled
    inlined = jax.jit(lambda x: compilation.call(function, 2.0, x, quick=True))  # XLA refuses options inside a jit
    np.testing.assert_allclose(inlined(X), 2 * np.sin(X), rtol=1e-6)
    slope = jax.grad(lambda x: compilation.call(function, 2.0, x).sum())(X)
    np.testing.assert_allclose(slope, 2 * np.cos(X), rtol=1e-6)
