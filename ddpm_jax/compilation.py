"""How the public functions run: compiled once a meaning with the backend's options, or as a part of the caller's."""

import functools
import logging
from collections.abc import Callable, Hashable
from typing import Any

import jax

log = logging.getLogger(__name__)

# Experimental and on CPU alone: XLA hands single matrix products and convolutions to the YNN library. One forward of
# the cifar10-32 net took 0.84 to 0.89 of the time without it, of the 256-pixel nets 0.77 (2 cores, jax 0.10.2).
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def call(function: Callable, static: Hashable, *args: Any) -> Any:
    """Return function(static, *args), compiled once for each `function`, `static` and kind of arguments.

    Where an argument is a tracer (somebody jits, vmaps or differentiates the caller) the program becomes a part of the
    caller's, without compiler options, which XLA refuses there.
    """
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))
    if traced or jax.default_backend() != "cpu":
        return _jitted(function)(static, *args)
    try:
        return _jitted(function, tuple(_CPU_OPTIONS.items()))(static, *args)
    except jax.errors.JaxRuntimeError as error:
        if not any(option in str(error) for option in _CPU_OPTIONS):
            raise
        log.info("XLA does not know the options %s: compiled without.", list(_CPU_OPTIONS))
        return _jitted(function)(static, *args)


@functools.cache
def _jitted(function: Callable, options: tuple[tuple[str, str], ...] = ()) -> Callable:
    if options:
        log.info("%s is compiled with %s.", function.__name__, dict(options))
    return jax.jit(function, static_argnums=0, compiler_options=dict(options) or None)
