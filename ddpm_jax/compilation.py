"""How the public functions run: compiled once a meaning with the backend's options, or as a part of the caller's."""

import functools
import logging
from collections.abc import Callable, Hashable, Mapping
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
    """Return `jax.jit(function, **kwargs)` with those of the backend's compiler options that this XLA knows."""
    options = known_options(_CPU_OPTIONS) if jax.default_backend() == "cpu" else {}
    log.info("%s is compiled with %s.", function.__name__, options or "no options")
    return jax.jit(function, compiler_options=options, **kwargs)


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those compiler options that this XLA knows: they come and go between versions.

    Example:
        >>> known_options({"xla_of_no_version": True})
        {}
    """
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        log.info("This XLA does not take %s=%s: %s", name, value, str(error).splitlines()[0])
        return False
    return True
