"""What a run looks at on the way: the loss on held-out images, and a grid of samples. Both of the averaged weights."""

import dataclasses

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddpm_jax import compilation, plotting, sampling, sharding
from ddpm_jax.images.source import Source, centred
from ddpm_jax.losses import traced_per_image
from ddpm_jax.params import Params
from ddpm_jax.pixels import data_from_bytes
from ddpm_jax.random_keys import key_from_seed
from ddpm_jax.samplers.registry import FAST
from ddpm_jax.training.step import Plan
from ddpm_jax.types import PyTree

MOST_HELD_OUT = 2048  # images


class HeldOut:
    """Held-out images, and the loss on them."""

    def __init__(self, plan: Plan, source: Source, mesh: jax.sharding.Mesh):
        self.plan, self.mesh = plan, mesh
        self.images, self.labels = centred(source, plan.network.unet.check_size()[0], MOST_HELD_OUT)
        self.losses = compilation.jit(_losses, static_argnums=0)

    def loss(self, weights: PyTree) -> float:
        """Return the mean loss, at timesteps and with noise that are the same in every call.

        Without dropout of activations and labels; timesteps are uniform whatever the training draws.
        """
        size, key = self.plan.settings.loop.batch_size, key_from_seed(self.plan.settings.loop.seed)
        count, total = len(self.images), 0.0
        for start in range(0, count, size):
            places = np.arange(start, start + size)
            rows = places % count  # the last batch is filled up with the first images, which do not count again
            given = (self.images[rows], places, None if self.labels is None else self.labels[rows])
            values = self.losses(self.plan, weights, key, *sharding.place(given, self.mesh, split=True))
            values = multihost_utils.process_allgather(values, tiled=True) if jax.process_count() > 1 else values
            total += float(np.asarray(values)[places < count].sum())
        return total / count


def _losses(plan: Plan, weights: PyTree, key: jax.Array, images, indices, labels) -> jax.Array:
    """Return the loss of each image [b]."""
    objective = dataclasses.replace(plan.settings.objective, label_dropout=0.0, timestep_sampling="uniform")
    x_0 = data_from_bytes(images, plan.network.schedule.data_range)
    values, _ = traced_per_image((plan.network, objective), weights, key, x_0, labels, None, None, indices)
    return values


def sample_grid(plan: Plan, weights: PyTree) -> np.ndarray:
    """Return a grid of samples, bytes [height, width, c], with captions where classes have names.

    Noise and classes are the same in every call. Classes take turns, the one that stands for none included.
    """
    settings, config = plan.settings.loop, plan.network
    classes = config.unet.num_classes
    labels = np.arange(settings.num_samples) % classes if classes else None
    num_steps = min(settings.sample_evals, config.schedule.num_train_timesteps)
    images = sampling.sample(
        Params(weights, config),
        key_from_seed(settings.seed),
        settings.num_samples,
        sampler=dataclasses.replace(FAST, num_steps=num_steps),
        class_labels=labels,
    )
    if jax.process_count() > 1:
        images = multihost_utils.process_allgather(images, tiled=True)
    names = dict(enumerate(config.class_names))
    captions = (
        [names.get(label, f"class {label}") for label in labels.tolist()] if names and labels is not None else None
    )
    return plotting.grid(images, captions=captions)
