"""Keep compiled programs between commands, in the user's cache folder.

The library itself keeps none. A compiled program is code that will run: the folder is created for the user alone, and a
folder that others can write into is not used.
"""

import os
import stat
import sys
from pathlib import Path

NONE = "none"
MOST_BYTES = 2**30  # of each of the two parts; a program of the demo takes 1.5 MB, one of a 256-pixel network 10


def keep_compiled(choice: str | None) -> None:
    """Keep compiled programs in a folder, and reuse those that are there.

    Args:
        choice: the folder, "none" to keep none, or None for the folder of the environment variable
            JAX_COMPILATION_CACHE_DIR or else the user's cache folder.

    Raises:
        OSError: `choice` cannot be made. If the user's cache folder cannot be made, or others can write into it, a line
            on stderr says so and nothing is kept.
    """
    if choice == NONE or (choice is None and os.environ.get("JAX_COMPILATION_CACHE_DIR")):
        return
    folder = usual_folder() if choice is None else Path(choice).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if choice is None:  # a folder that was named is trusted
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
    """Return the package's folder in the user's cache folder, which is the system's own or below XDG_CACHE_HOME."""
    import platformdirs

    return platformdirs.user_cache_path("ddpm-jax", appauthor=False) / "compiled"


def _check_owner(folder: Path) -> None:
    """Refuse a folder that another user can write into."""
    if not hasattr(os, "getuid"):
        return  # Windows: folders below a user's own inherit that user's rights
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} belongs to another user or can be written by others; chmod 700 makes it safe.")
