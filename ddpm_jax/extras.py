"""Check that optional packages are installed before the work that needs them begins."""

import importlib.util


class MissingExtra(ModuleNotFoundError):
    """A package of an optional extra is not installed."""


def need(module: str, extra: str, what: str) -> None:
    """Raise if a package is not installed.

    Args:
        module: name by which it is imported.
        extra: the extra of ddpm-jax that installs it.
        what: what needs it, for the message.

    Raises:
        MissingExtra: the package is missing; the message has the command that installs it.

    Example:
        >>> need("a_module_of_nobody", "train", "Training")
        Traceback (most recent call last):
        ddpm_jax.extras.MissingExtra: Training needs a_module_of_nobody: pip install 'ddpm-jax[train]'
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(f"{what} needs {module}: pip install 'ddpm-jax[{extra}]'")
