"""Packages that only some commands need, asked for before any work."""

import importlib.util


class MissingExtra(ModuleNotFoundError):
    """A package of an extra is not installed."""


def need(module: str, extra: str, what: str) -> None:
    """Refuse to begin something without a package that it is going to import.

    Args:
        module: its name at the import.
        extra: of ddpm-jax, which brings it.
        what: is to be begun.

    Raises:
        MissingExtra: with the command that installs it.

    Example:
        >>> need("a_module_of_nobody", "train", "Training")
        Traceback (most recent call last):
        ddpm_jax.extras.MissingExtra: Training needs a_module_of_nobody: pip install 'ddpm-jax[train]'
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(f"{what} needs {module}: pip install 'ddpm-jax[{extra}]'")
