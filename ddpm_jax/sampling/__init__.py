"""From `Params` and a key to images.

`doors` holds the public functions, `part` runs some rows of a sampler, `job` is what they check and prepare, `program`
what is compiled, `guidance` how a class is guided to.
"""

from ddpm_jax.sampling.doors import Trajectory, as_function, invert, sample, sample_chunks, sample_path
from ddpm_jax.sampling.guidance import check_guidance
from ddpm_jax.sampling.job import table_of
from ddpm_jax.sampling.part import run_part

__all__ = [
    "Trajectory",
    "as_function",
    "check_guidance",
    "invert",
    "run_part",
    "sample",
    "sample_chunks",
    "sample_path",
    "table_of",
]
