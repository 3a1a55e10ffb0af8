"""Evaluation: features of images, the distances of two sets, copies of training images, the figures of the DDPM paper.

real = evaluation.gather(evaluation.open_images("photos/"), evaluation.extractor("pixels"))
fake = evaluation.gather(evaluation.open_images("samples/"), evaluation.extractor("pixels"))
evaluation.check_comparable(real, fake)
evaluation.estimate(evaluation.fid, real.features, fake.features)

`evaluate` does all of it, with every metric, and writes a report that `verify` repeats.
"""

from ddpm_jax.evaluation.copies import CopyScores, Memorisation, copy_scores, memorisation, planted_copies
from ddpm_jax.evaluation.evaluating import evaluate
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
from ddpm_jax.evaluation.report import read_report
from ddpm_jax.evaluation.subjects import Drawn
from ddpm_jax.evaluation.verifying import Verification, verify

__all__ = [
    "CopyScores",
    "DensityCoverage",
    "Drawn",
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
    "Verification",
    "bound_curves",
    "check_comparable",
    "copy_scores",
    "density_coverage",
    "energy_distance",
    "estimate",
    "evaluate",
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
    "read_report",
    "read_statistics",
    "shared_latents",
    "verify",
    "write_statistics",
]
