"""Compiled programs that commands keep between runs, in the user's own cache folder.

The library itself keeps nothing. A compiled program is code that runs: the folder has the user's rights alone, and one
that somebody else may write into is not used.
"""

import os
import stat
import sys
from pathlib import Path

NONE = "none"
MOST_BYTES = 2**30  # of each of the two parts; a program of the demo takes 1.5 MB, one of a 256-pixel network 10


def keep_compiled(choice: str | None) -> None:
    """Keep compiled programs in a folder, and take them from there.

    Args:
        choice: the folder, "none" for no folder, or None for the user's cache folder (and the one that the environment
            variable JAX_COMPILATION_CACHE_DIR names, if it does).

    Raises:
        OSError: a folder that was asked for cannot be made. Where the usual one cannot, or others may write into it,
            that is said, and the command goes on without.
    """
    if choice == NONE or (choice is None and os.environ.get("JAX_COMPILATION_CACHE_DIR")):
        return
    folder = usual_folder() if choice is None else Path(choice).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if choice is None:  # whoever names another folder trusts it
            _check_owner(folder)
    except OSError as error:
        if choice is not None:
            raise OSError(f"--compile-cache {choice}: no such folder can be made ({error}).") from error
        print(f"ddpm-jax: compiled programs are not kept: {error} --compile-cache names a folder.", file=sys.stderr)
        return
    import jax

    from ddpm_jax import compilation

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    compilation.keep_programs(folder / "programs", MOST_BYTES)


def usual_folder() -> Path:
    """Return the user's cache folder: below XDG_CACHE_HOME, or where the system keeps such things."""
    import platformdirs

    return platformdirs.user_cache_path("ddpm-jax", appauthor=False) / "compiled"


def _check_owner(folder: Path) -> None:
    """Refuse a folder that another user could put programs into."""
    if not hasattr(os, "getuid"):
        return  # Windows: a user's folders are the user's by inheritance
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} belongs to another user or can be written by others; chmod 700 makes it safe.")
