"""The command line: `ddpm-jax sample | compile | convert | export | info`. Only this writes to the terminal."""

import sys
from collections.abc import Sequence

import tyro

from ddpm_jax.cli.checkpoints import convert, export, info
from ddpm_jax.cli.compile import compile
from ddpm_jax.cli.sampling import sample


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 1 and one line on stderr where the input is wrong."""
    commands = {"sample": sample, "compile": compile, "convert": convert, "export": export, "info": info}
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="ddpm-jax",
            description="Sample from, convert and inspect denoising diffusion models in JAX.",
            args=sys.argv[1:] if argv is None else argv,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, OSError) as error:
        print(f"ddpm-jax: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("ddpm-jax: interrupted", file=sys.stderr)
        sys.exit(130)
