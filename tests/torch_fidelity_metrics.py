"""torch-fidelity's values of features, for recorded oracles and for live parity."""

import numpy as np
from torch_peers import peer

SETTINGS = {"kid_subsets": 5, "kid_subset_size": 20, "rng_seed": 7, "verbose": False}
SPLITS, SPLITS_SEED = 4, 11


def values(real: np.ndarray, fake: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Return all metrics of float64 features [n, d], [m, d] and logits [m, classes]; its input 1 is `fake`."""
    import torch

    fid, kid, isc, prc = (peer(f"torch_fidelity.metric_{name}") for name in ("fid", "kid", "isc", "prc"))
    real, fake, logits = (torch.tensor(array, dtype=torch.float64) for array in (real, fake, logits))
    moments = [fid.fid_features_to_statistics(features) for features in (fake, real)]
    return {
        **fid.fid_statistics_to_metric(*moments, verbose=False),
        **kid.kid_features_to_metric(fake, real, **SETTINGS),
        **isc.isc_features_to_metric(logits, splits=SPLITS, rng_seed=SPLITS_SEED),
        **prc.prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False),
    }
