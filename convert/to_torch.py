"""`ddpm-jax export` under the name that people look for."""

import sys

from ddpm_jax.cli import main

main(["export", *sys.argv[1:]])
