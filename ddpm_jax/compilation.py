"""Compile each public function once for each (function, static value, argument types), or inline it in a trace."""

import functools
import logging
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.core

from ddpm_jax.kept_programs import KeptPrograms

log = logging.getLogger(__name__)

# An experimental option for CPU: XLA hands single matrix products and convolutions to the YNN library. It takes 0.84 to
# 0.89 of the plain time for a forward pass of the cifar10-32 network, 0.77 for the 256-pixel networks, and 0.5 to 0.9
# for the gradient of a 3x3 convolution with respect to its kernel (2 cores, jax 0.10.2).
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
# LLVM's level 1, for programs that spend their time in library calls. With plain convolutions, sampling compiles in 0.8
# to 0.9 of the time and runs in 0.90 to 1.01 of it (benchmarks/compile_pays.py). Winograd's convolutions would run 25 %
# slower.
_QUICK = {"xla_backend_optimization_level": 1}


_kept: KeptPrograms | None = None


def keep_programs(folder: Path, most_bytes: int) -> None:
    """Keep the programs of `call` in a folder and load them from there, for commands, which run once.

    This is for a single device; with several, only JAX's own cache is used.
    """
    global _kept
    _kept = KeptPrograms(folder, most_bytes) if jax.device_count() == 1 else None


def call(function: Callable, static: Hashable, *args: Any, quick: bool = False, keep: bool = True) -> Any:
    """Return function(static, *args), compiled once for each function, static value and argument types.

    If an argument is a tracer, because the caller is being jitted, vmapped or differentiated, the function is inlined
    into the caller's program. It then has no compiler options, which XLA refuses inside another jit.

    Args:
        function: a function of a static value and of arrays.
        static: a hashable value.
        *args: pytrees of arrays.
        quick: compile at LLVM's level 1, for programs that spend their time in library calls.
        keep: whether `keep_programs` may store the program. Not where `static` holds functions of a user: a file is
            found by what the package is made of, which does not tell them apart.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args)):
        return _inlined(function)(static, *args)
    if _kept is not None and keep:
        return _kept.program(function, static, args, options(quick=quick))(*args)
    return _jitted(function, quick)(static, *args)


@functools.cache
def _inlined(function: Callable) -> Callable:
    return jax.jit(function, static_argnums=0)


@functools.cache
def _jitted(function: Callable, quick: bool) -> Callable:
    return jit(function, quick=quick, static_argnums=0)


def options(*, quick: bool = False) -> dict[str, Any]:
    """Return the compiler options for the backend, without those that this XLA does not know."""
    if jax.default_backend() != "cpu":
        return {}
    optimised = not jax.config.values["jax_disable_most_optimizations"]  # else JAX asks for level 0 itself
    return known_options(CPU_OPTIONS | (_QUICK if quick and optimised else {}))


def jit(function: Callable, *, quick: bool = False, **kwargs: Any) -> Callable:
    """Return `jax.jit(function, **kwargs)` with the backend's compiler options."""
    chosen = options(quick=quick)
    log.info("%s is compiled with %s.", function.__name__, chosen or "no options")
    return jax.jit(function, compiler_options=chosen, **kwargs)


def known_options(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the compiler options that this XLA knows; they change between versions.

    Example:
        >>> known_options({"xla_of_no_version": True})
        {}
    """
    return {name: value for name, value in wanted.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        log.info("This XLA does not take %s=%s: %s", name, value, str(error).splitlines()[0])
        return False
    return True
