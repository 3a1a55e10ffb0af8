"""`ddpm-jax convert` under the name that people look for."""

import sys

from ddpm_jax.cli import main

main(["convert", *sys.argv[1:]])
