"""How probable images are: the variational bound of a DDPM, and the likelihood by its probability flow.

`bits_per_dim` and `log_likelihood` are one number for each image; `bound_terms`, `estimate` and `flow_likelihood` say
more.
"""

from ddpm_jax.likelihood.bound import Bound, Transmission, bits_per_dim, bound_terms, transmit
from ddpm_jax.likelihood.flow import FlowLikelihood, flow_likelihood, log_likelihood
from ddpm_jax.likelihood.quick import Estimate, draw_probabilities, estimate_bits_per_dim

__all__ = [
    "Bound",
    "Estimate",
    "FlowLikelihood",
    "Transmission",
    "bits_per_dim",
    "bound_terms",
    "draw_probabilities",
    "estimate_bits_per_dim",
    "flow_likelihood",
    "log_likelihood",
    "transmit",
]
