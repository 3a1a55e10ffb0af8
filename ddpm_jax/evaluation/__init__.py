"""Evaluation: features of images, their statistics, and the distances of two sets.

real = evaluation.gather(evaluation.open_images("photos/"), evaluation.extractor("pixels"))
fake = evaluation.gather(evaluation.open_images("samples/"), evaluation.extractor("pixels"))
evaluation.check_comparable(real, fake)
evaluation.estimate(evaluation.fid, real.features, fake.features)
"""

from ddpm_jax.evaluation.features import Extractor, Features, extractor, from_function
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
from ddpm_jax.evaluation.reference import FeatureSet, check_comparable, read_statistics, write_statistics

__all__ = [
    "DensityCoverage",
    "Estimate",
    "Extractor",
    "FeatureSet",
    "Features",
    "PrecisionRecall",
    "Spread",
    "Statistics",
    "check_comparable",
    "density_coverage",
    "energy_distance",
    "estimate",
    "extractor",
    "fid",
    "floor",
    "from_function",
    "gather",
    "inception_score",
    "kid",
    "kid_subsets",
    "open_images",
    "precision_recall",
    "read_statistics",
    "write_statistics",
]
