"""Compiled programs on disk, so that a later process neither traces nor compiles them.

JAX's own cache saves only the compilation: its key is the lowered program, and tracing and lowering take as long as the
rest of a warm start. Here the key is what a program is made from.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pickle
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from ddpm_jax.files import versions, whole_file

log = logging.getLogger(__name__)

SUFFIX = ".program"
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")


class KeptPrograms:
    """A folder of compiled programs, for one device.

    The name of a program is a digest of its function, static argument, shapes and compiler options, of JAX's settings,
    of the versions of JAX and related packages, of this package's source, and of the processor. The files are pickles,
    which are trusted like installed packages, so only the user may be able to write into the folder.
    """

    def __init__(self, folder: Path, most_bytes: int):
        """Open a folder.

        Args:
            folder: the folder; it is made if it does not exist.
            most_bytes: largest size of all programs together; the least recently used ones are removed.
        """
        self.folder, self.most_bytes = folder, most_bytes
        self.loaded: dict[Hashable, Callable] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def program(self, function: Callable, static: Hashable, args: tuple, options: Mapping[str, Any]) -> Callable:
        """Return `function(static, ...)` compiled for such arguments, loaded from the folder or saved into it."""
        definition = (function, static, *_shapes(args), tuple(sorted(options.items())), _settings())
        if definition not in self.loaded:
            key = _digest(definition)
            self.loaded[definition] = self._read(key) or self._compile(key, function, static, args, options)
        return self.loaded[definition]

    def _read(self, key: str) -> Callable | None:
        path = self.folder / f"{key}{SUFFIX}"
        if not path.exists():
            return None
        try:
            program = serialize_executable.deserialize_and_load(*pickle.loads(path.read_bytes()))
            os.utime(path)
            return program
        except Exception as error:  # whatever is wrong with the file, the program can be compiled again
            log.info("The kept program %s cannot be used: %s", path, error)
            return None

    def _compile(self, key: str, function: Callable, static: Hashable, args: tuple, options: Mapping[str, Any]):
        lowered = jax.jit(function, static_argnums=0, compiler_options=dict(options)).lower(static, *args)
        with _without_jax_cache():
            compiled = lowered.compile()
        try:
            with whole_file(self.folder / f"{key}{SUFFIX}") as partial:
                partial.write_bytes(pickle.dumps(serialize_executable.serialize(compiled)))
            self._prune()
        except Exception as error:  # a full disk, or a backend that cannot serialise: the program still runs
            log.info("The program of %s is not kept: %s", function.__name__, error)
        return compiled

    def _prune(self) -> None:
        """Remove the least recently used programs until the others are small enough."""
        files = [(path.stat(), path) for path in self.folder.glob(f"*{SUFFIX}")]
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime):
            if total <= self.most_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size


@contextlib.contextmanager
def _without_jax_cache() -> Iterator[None]:
    """Compile anew. A program that a cache has loaded is saved by XLA without its functions, and does not run."""
    before = jax.config.values["jax_enable_compilation_cache"]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX asks its setting once
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _shapes(args: tuple) -> tuple[Hashable, tuple]:
    leaves, structure = jax.tree.flatten(args)
    types = [jax.typeof(leaf) for leaf in leaves]  # of plain numbers too
    return structure, tuple((kind.shape, kind.dtype, kind.weak_type) for kind in types)


def _digest(definition: tuple) -> str:
    function, *rest = definition
    parts = (function.__module__, function.__qualname__, *rest, _world())
    return hashlib.blake2b("\n".join(map(repr, parts)).encode(), digest_size=16).hexdigest()


def _settings() -> str:
    """Return JAX's settings, which may change between two calls."""
    return repr(sorted((name, value) for name, value in jax.config.values.items() if "cache" not in name))


@functools.cache
def _world() -> str:
    """Describe what a program depends on besides its definition and JAX's settings."""
    device = jax.devices()[0]
    source = hashlib.blake2b()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        source.update(path.read_bytes())
    return repr(
        (
            versions(*_PACKAGES),
            source.hexdigest(),
            [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")],
            (device.platform, device.device_kind, device.client.platform_version, jax.device_count()),
            _processor(),
        )
    )


def _processor() -> list[str]:
    """Describe the processor: machines may share a home folder, but not each other's programs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        return list(os.uname()) if hasattr(os, "uname") else [os.environ.get("PROCESSOR_IDENTIFIER", "")]
    return sorted({line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))})
