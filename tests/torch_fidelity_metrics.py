"""torch-fidelity's values of features, for recorded oracles and for live parity."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from unittest import mock

import numpy as np

SETTINGS = {"kid_subsets": 5, "kid_subset_size": 20, "rng_seed": 7, "verbose": False}
SPLITS, SPLITS_SEED = 4, 11
_PARTS = ("", ".datasets", ".models", ".transforms", ".transforms.functional")


@contextlib.contextmanager
def without_torchvision() -> Iterator[None]:
    """Stand in for torchvision, which torch-fidelity and pytorch-fid import; arithmetic of features does not use it.

    torchvision fails to import beside a build of torch that is not its own, such as one for CPUs alone.
    """
    names = [f"torchvision{part}" for part in _PARTS]
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: mock.MagicMock() for name in names})
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def values(real: np.ndarray, fake: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Return all metrics of float64 features [n, d], [m, d] and logits [m, classes]; its input 1 is `fake`."""
    import torch

    with without_torchvision():
        fid, kid, isc, prc = (
            importlib.import_module(f"torch_fidelity.metric_{name}") for name in "fid kid isc prc".split()
        )
    real, fake, logits = (torch.tensor(array, dtype=torch.float64) for array in (real, fake, logits))
    moments = [fid.fid_features_to_statistics(features) for features in (fake, real)]
    return {
        **fid.fid_statistics_to_metric(*moments, verbose=False),
        **kid.kid_features_to_metric(fake, real, **SETTINGS),
        **isc.isc_features_to_metric(logits, splits=SPLITS, rng_seed=SPLITS_SEED),
        **prc.prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False),
    }
