"""How the public functions run: compiled once a meaning, with the backend's options, or inlined under a trace."""

import logging
from collections.abc import Callable, Hashable
from typing import Any

import jax

log = logging.getLogger(__name__)

# Experimental and on CPU alone: XLA hands single matrix products and convolutions to the YNN library. One forward
# of the cifar10-32 net took 0.84 to 0.89 of the time without it, of the 256-pixel nets 0.77 (2 cores, jax 0.10.2).
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}

_programs: dict[Hashable, jax.stages.Compiled] = {}


def call(function: Callable, static: Hashable, *args: Any) -> Any:
    """Return function(static, *args), through a compiled program wherever that is possible.

    Compiles once for each `function`, `static`, tree structure, shapes, dtypes and shardings. Where an argument is a
    tracer (somebody jits, vmaps or differentiates the caller) the function is jitted without options, which XLA
    refuses inside another program: it becomes a part of the caller's.
    """
    leaves, structure = jax.tree.flatten(args)
    leaves = [leaf if isinstance(leaf, jax.Array) else jax.numpy.asarray(leaf) for leaf in leaves]
    args = jax.tree.unflatten(structure, leaves)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return jax.jit(function, static_argnums=0)(static, *args)
    abstract = tuple((jax.typeof(leaf), leaf.sharding) for leaf in leaves)
    signature = (function, static, structure, abstract, jax.config.jax_enable_x64)
    if signature not in _programs:
        _programs[signature] = _compile(function, static, args)
    return _programs[signature](*args)


def _compile(function: Callable, static: Hashable, args: tuple) -> jax.stages.Compiled:
    lowered = jax.jit(function, static_argnums=0).lower(static, *args)
    if jax.default_backend() != "cpu":
        return lowered.compile()
    try:
        compiled = lowered.compile(compiler_options=_CPU_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if "option" not in str(error).lower():
            raise
        log.info("XLA does not know %s: compiled without.", list(_CPU_OPTIONS))
        return lowered.compile()
    log.info("Compiled %s with %s.", function.__name__, _CPU_OPTIONS)
    return compiled
