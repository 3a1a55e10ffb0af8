"""Compiled programs that commands keep between runs, in the user's cache folder.

The library itself keeps nothing. A compiled program is code that will run, so only the user may access the folder, and
a folder that others may write into is not used.
"""

import os
import stat
import sys
from pathlib import Path

NONE = "none"
MOST_BYTES = 2**30  # for each of the two caches; a program of the demo takes 1.5 MB, of a 256-pixel network 10 MB


def keep_compiled(choice: str | None) -> None:
    """Keep compiled programs in a folder, and load them from there.

    Args:
        choice: the folder; "none" for no folder; None for the user's cache folder, or for JAX's own cache alone if the
            environment variable JAX_COMPILATION_CACHE_DIR is set.

    Raises:
        OSError: `choice` names a folder that cannot be made. If the user's cache folder cannot be made, or others may
            write into it, a message is printed and nothing is kept.
    """
    if choice == NONE or (choice is None and os.environ.get("JAX_COMPILATION_CACHE_DIR")):
        return
    folder = usual_folder() if choice is None else Path(choice).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if choice is None:  # a folder that the user names is trusted
            _check_owner(folder)
    except OSError as error:
        if choice is not None:
            raise OSError(
                f"--compile-cache {choice}: this folder cannot be made ({error}). Name another one."
            ) from error
        print(f"ddpm-jax: compiled programs are not kept: {error} Name a folder with --compile-cache.", file=sys.stderr)
        return
    import jax

    from ddpm_jax import compilation

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    compilation.keep_programs(folder / "programs", MOST_BYTES)


def usual_folder() -> Path:
    """Return the user's cache folder: below XDG_CACHE_HOME, or where the system has it."""
    import platformdirs

    return platformdirs.user_cache_path("ddpm-jax", appauthor=False) / "compiled"


def _check_owner(folder: Path) -> None:
    """Refuse a folder that another user can write into."""
    if not hasattr(os, "getuid"):
        return  # Windows: folders below a user's own inherit its rights
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"{folder} belongs to another user, or others can write into it; chmod 700 makes it safe."
        )
