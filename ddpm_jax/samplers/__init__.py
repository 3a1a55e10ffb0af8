"""Samplers, the list `SAMPLERS` by name, and `run`, which runs a sampler's table on any network."""

from ddpm_jax.samplers.ancestral import DDIM, DDPM
from ddpm_jax.samplers.base import Hooks, Sampler, run
from ddpm_jax.samplers.exponential import DEIS, DPMSolver, DPMSolverPP, UniPC
from ddpm_jax.samplers.inversion import DDIMInverse
from ddpm_jax.samplers.k_diffusion import KDPM2, LMS, Euler, EulerAncestral, Heun, KarrasVe, KDPM2Ancestral
from ddpm_jax.samplers.pndm import PNDM
from ddpm_jax.samplers.registry import SAMPLERS, by_name, from_config, has_sampler
from ddpm_jax.samplers.score_sde_ve import ScoreSdeVe
from ddpm_jax.samplers.table import Rows, Switches, Table

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "KDPM2",
    "LMS",
    "PNDM",
    "SAMPLERS",
    "DDIMInverse",
    "DPMSolver",
    "DPMSolverPP",
    "Euler",
    "EulerAncestral",
    "Heun",
    "Hooks",
    "KDPM2Ancestral",
    "KarrasVe",
    "Rows",
    "Sampler",
    "ScoreSdeVe",
    "Switches",
    "Table",
    "UniPC",
    "by_name",
    "from_config",
    "has_sampler",
    "run",
]
