"""Evaluation: features of images, the distances of two sets, copies of training images, the figures of the DDPM paper.

real = evaluation.gather(evaluation.open_images("photos/"), evaluation.extractor("pixels"))
fake = evaluation.gather(evaluation.open_images("samples/"), evaluation.extractor("pixels"))
evaluation.check_comparable(real, fake)
evaluation.estimate(evaluation.fid, real.features, fake.features)
"""

from ddpm_jax.evaluation.copies import CopyScores, Memorisation, copy_scores, memorisation, planted_copies
from ddpm_jax.evaluation.features import Extractor, Features, extractor, from_function
from ddpm_jax.evaluation.figures import (
    Interpolations,
    Quality,
    SharedLatents,
    bound_curves,
    interpolate,
    quality_over_steps,
    shared_latents,
)
from ddpm_jax.evaluation.gathering import gather, open_images
from ddpm_jax.evaluation.intervals import Estimate, estimate, floor
from ddpm_jax.evaluation.metrics import (
    DensityCoverage,
    PrecisionRecall,
    Spread,
    density_coverage,
    energy_distance,
    fid,
    inception_score,
    kid,
    kid_subsets,
    precision_recall,
)
from ddpm_jax.evaluation.moments import Statistics
from ddpm_jax.evaluation.neighbours import Neighbours, nearest_neighbours
from ddpm_jax.evaluation.reference import FeatureSet, check_comparable, read_statistics, write_statistics

__all__ = [
    "CopyScores",
    "DensityCoverage",
    "Estimate",
    "Extractor",
    "FeatureSet",
    "Features",
    "Interpolations",
    "Memorisation",
    "Neighbours",
    "PrecisionRecall",
    "Quality",
    "SharedLatents",
    "Spread",
    "Statistics",
    "bound_curves",
    "check_comparable",
    "copy_scores",
    "density_coverage",
    "energy_distance",
    "estimate",
    "extractor",
    "fid",
    "floor",
    "from_function",
    "gather",
    "inception_score",
    "interpolate",
    "kid",
    "kid_subsets",
    "memorisation",
    "nearest_neighbours",
    "open_images",
    "planted_copies",
    "precision_recall",
    "quality_over_steps",
    "read_statistics",
    "shared_latents",
    "write_statistics",
]
