"""How the public functions run: compiled once a meaning with the backend's options, or as a part of the caller's."""

import functools
import logging
from collections.abc import Callable, Hashable
from typing import Any

import jax

log = logging.getLogger(__name__)

# Experimental and on CPU alone: XLA hands single matrix products and convolutions to the YNN library. One forward of
# the cifar10-32 net took 0.84 to 0.89 of the time without it, of the 256-pixel nets 0.77; the gradient of a 3x3
# convolution by its kernel 0.5 to 0.9 (2 cores, jax 0.10.2).
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def call(function: Callable, static: Hashable, *args: Any) -> Any:
    """Return function(static, *args), compiled once for each `function`, `static` and kind of arguments.

    Where an argument is a tracer (somebody jits, vmaps or differentiates the caller) the program becomes a part of the
    caller's, without compiler options, which XLA refuses there.
    """
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))
    return _jitted(function, traced)(static, *args)


@functools.cache
def _jitted(function: Callable, traced: bool) -> Callable:
    return (jax.jit if traced else jit)(function, static_argnums=0)


def jit(function: Callable, **kwargs: Any) -> Callable:
    """Return `jax.jit(function, **kwargs)` with the backend's compiler options, or without those it does not know."""
    plain = jax.jit(function, **kwargs)
    if jax.default_backend() != "cpu":
        return plain
    options = dict(_CPU_OPTIONS)
    chosen = [jax.jit(function, compiler_options=options, **kwargs)]
    log.info("%s is compiled with %s.", function.__name__, options)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        try:
            return chosen[0](*args)
        except jax.errors.JaxRuntimeError as error:
            if not any(option in str(error) for option in options):
                raise
            log.info("XLA does not know the options %s: compiled without.", list(options))
            chosen[0] = plain
            return plain(*args)

    return run
