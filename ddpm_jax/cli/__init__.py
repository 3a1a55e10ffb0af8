"""The command line, `ddpm-jax COMMAND`. Except for progress bars, only this package writes to the terminal."""

import contextlib
import functools
import gc
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from ddpm_jax.cli.arguments import in_flags
from ddpm_jax.cli.checkpoints import convert, ema, export, info
from ddpm_jax.cli.compile import compile
from ddpm_jax.cli.evaluation import evaluate
from ddpm_jax.cli.figures import figure
from ddpm_jax.cli.sampling import sample
from ddpm_jax.cli.statistics import stats
from ddpm_jax.cli.training import train_command
from ddpm_jax.extras import MissingExtra


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. Wrong input prints one line on stderr and exits with 1."""
    gc.freeze()  # modules stay: searching them for garbage took 0.2 s of a run of 4 s
    argv = list(sys.argv[1:] if argv is None else argv)
    plain = (sample, ema, compile, convert, export, evaluate, figure, info, stats)
    commands = {command.__name__: tyro.conf.configure(tyro.conf.FlagCreatePairsOff)(command) for command in plain}
    try:
        if not argv or argv[0] not in commands:  # the other commands need not import training
            # with pairs of flags: a preset may set one, which --no-flag unsets
            commands["train"] = train_command(argv)
        _parse(argv, commands)()
    except (ValueError, OSError, MissingExtra) as error:
        command = commands.get(argv[0]) if argv else None
        print(f"ddpm-jax: {in_flags(str(error), command)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("ddpm-jax: interrupted", file=sys.stderr)
        sys.exit(130)


def _parse(argv: Sequence[str], commands: dict[str, Callable[..., None]]) -> Callable[[], None]:
    """Return the command with its arguments, ready to run. Errors in them are printed with flags for arguments.

    Raises:
        ValueError: the settings that the arguments make are refused.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(command) for name, command in commands.items()},
                prog="ddpm-jax",
                description="Sample from, train, convert and inspect denoising diffusion models in JAX.",
                args=argv,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as ended:
        # A settings class refused its values: its message alone, without tyro's names for the place.
        error = ended.__context__
        refused = error.__context__ if error and isinstance(getattr(error, "arg", None), str) else None
        if not isinstance(refused, ValueError):
            raise
        said = io.StringIO()
        raise refused from None
    finally:
        sys.stderr.write(in_flags(said.getvalue(), commands.get(argv[0]) if argv else None))


def _deferred(command: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(command)
    def prepared(*args: Any, **kwargs: Any) -> Any:
        return functools.partial(command, *args, **kwargs)

    return prepared
