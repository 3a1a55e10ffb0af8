"""Prepare a run: check the arguments, build the sampler's table, place weights and noise on the devices."""

import dataclasses
import functools
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ddpm_jax import compilation, samplers, sharding
from ddpm_jax.config import Config, ScheduleConfig, UNetConfig
from ddpm_jax.models import winograd
from ddpm_jax.params import Params, check_params
from ddpm_jax.random_keys import image_numbers, threefry_key
from ddpm_jax.samplers import Hooks, Sampler, Table
from ddpm_jax.samplers.base import NO_HOOKS
from ddpm_jax.sampling.guidance import Condition, condition_of
from ddpm_jax.sampling.program import Inputs, Origin, Static
from ddpm_jax.types import Array, Images, Labels, PyTree, RandomKey
from ddpm_jax.validation import as_positive


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that is ready: checked, its arrays placed.

    Attributes:
        static: what its programs are compiled for.
        table: of the sampler.
        weights: on the devices of the mesh.
        condition: class labels and guidance.
        key, indices, begin: as in `program.Origin`.
        quick: compile at LLVM's level 1, which does for plain convolutions.
        hook_data: a tree of arrays for the hooks of `static`.
    """

    static: Static
    table: Table
    weights: PyTree
    condition: Condition
    key: jax.Array | None
    indices: Array
    begin: Array | None = None
    quick: bool = False
    hook_data: Any = None

    def call(self, function: Any, *arguments: Any, num_frames: int = 0) -> Any:
        """Return function(static, *arguments), compiled."""
        static = self.static._replace(num_frames=num_frames)
        keep = static.hooks == NO_HOOKS
        return compilation.call(function, static, *arguments, quick=self.quick, keep=keep)

    @property
    def origin(self) -> Origin:
        """What a program starts from."""
        return Origin(self.key, self.indices, self.begin, np.float32(self.table.init_scale))

    def inputs(self, slots: np.ndarray | None = None) -> Inputs:
        """Return what a program needs to run the rows of the table."""
        return Inputs(self.weights, self.condition, self.table.rows(), slots, self.hook_data)


def prepare(
    params: Params,
    key: RandomKey | None,
    batch_size: Any,
    *,
    sampler: Sampler | str | None,
    class_labels: Labels = None,
    guidance_scale: Any = None,
    null_class: Any = None,
    begin: Images | None = None,
    first_index: Any = 0,
    indices: Any = None,
    mesh: Mesh | None = None,
    expected_calls: Any = 1,
    hooks: Hooks = NO_HOOKS,
    hook_data: Any = None,
) -> Job:
    """Return the job of a run; arguments are those of `sample`.

    Args:
        key: None for a run that draws no noise.
        begin: what the run begins with, to be scaled: x_T, or the images that are inverted. None draws it.
        indices: [batch_size] the images' numbers, by which they draw noise, instead of those from first_index on.
        hooks, hook_data: as in `samplers.run`. On a mesh, data of each image must have the padded batch's length.

    Raises:
        TypeError, ValueError: as `sample`.
    """
    check_params(params)
    unet = params.config.unet
    batch_size = as_positive("batch_size", batch_size)
    size = unet.check_size()
    indices = image_numbers(first_index, batch_size) if indices is None else np.asarray(indices, np.int32)
    if indices.shape != (batch_size,):
        raise ValueError(f"`indices` has shape {indices.shape}; it must be ({batch_size},): a number for each image.")
    expected_calls = as_positive("expected_calls", expected_calls)
    table = table_of(sampler, params.config)
    condition = condition_of(params.config, batch_size, class_labels, guidance_scale, null_class)
    shape = (batch_size, *size, unet.in_channels)
    if begin is not None and jnp.shape(begin) != shape:
        raise ValueError(f"`x_T` has shape {jnp.shape(begin)}; it must be {shape}.")
    if key is None and (begin is None or table.draws):
        what = "the first images are" if begin is None else "the sampler's noise is"
        raise TypeError(f"`key` is None, but {what} drawn by it: pass a key, as jax.random.key(0).")
    key = None if key is None else threefry_key(key)
    begin = None if begin is None else jnp.asarray(begin, jnp.float32)
    job = Job(
        static=static_of(params.config, table, batch_size)._replace(hooks=hooks),
        table=table,
        weights=params.weights,
        condition=condition,
        key=key,
        indices=indices,
        begin=begin,
        hook_data=hook_data,
    )
    arguments = (params.weights, key, begin, condition.labels, hook_data)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments))
    mesh = sharding.mesh_of_call(mesh, params.weights, traced=traced)
    if mesh is None:
        return job
    job = _padded(job, mesh)
    if traced:  # somebody else's program may be for another device, or differentiated
        return job
    return _placed(_with_fast_convolutions(job, mesh, table.num_evals * expected_calls), mesh)


def static_of(config: Config, table: Table, batch_size: int | None) -> Static:
    """Return what a run of a table is compiled for, on no mesh; a batch of None is symbolic."""
    return Static(config.unet, config.schedule.data_range, table.switches, None, batch_size)


def table_of(sampler: Sampler | str | None, config: Config) -> Table:
    """Return the table of a sampler for a checkpoint's network.

    Args:
        sampler: an instance, a name in SAMPLERS, or None for the one that the checkpoint's scheduler config names.
        config: of the checkpoint.

    Raises:
        TypeError: no sampler.
        ValueError: a name that is unknown, a schedule or output channels that the sampler cannot do with.

    Example:
        >>> table_of("ddim", ddpm_jax.load("digits-16").config).num_evals
        50
    """
    unet, table = config.unet, _cached_table(_resolved(sampler, config), config.schedule)
    if unet.time_embedding_type == "learned":  # one row for each whole timestep
        table = dataclasses.replace(table, t=np.round(table.t))
    allowed = tuple(unet.in_channels * factor for factor in ((1, 2) if table.variance == "fixed" else (2,)))
    if unet.out_channels not in allowed:
        raise ValueError(
            f"The network puts out {unet.out_channels} channels for {unet.in_channels} of the image; variance "
            f"{table.variance!r} needs {' or '.join(map(str, allowed))} (twice as many with a learned variance)."
        )
    return table


@functools.lru_cache(maxsize=128)
def _cached_table(sampler: Sampler, schedule: ScheduleConfig) -> Table:
    return sampler.table(schedule)


def _resolved(sampler: Sampler | str | None, config: Config) -> Sampler:
    if sampler is None:
        return samplers.from_config(config.sampler)
    if isinstance(sampler, str):
        return samplers.by_name(sampler)
    if not isinstance(sampler, Sampler):
        raise TypeError(
            f"`sampler` must be a sampler such as samplers.DDIM(num_steps=50), a name in samplers.SAMPLERS, or None; "
            f"not {sampler!r}."
        )
    return sampler


def _padded(job: Job, mesh: Mesh) -> Job:
    """Return the job on a mesh, with images added that split the batch evenly over it; they are cut off at the end."""
    labels, indices, begin = sharding.padded((job.condition.labels, job.indices, job.begin), mesh)
    return dataclasses.replace(
        job,
        static=job.static._replace(mesh=mesh),
        condition=job.condition._replace(labels=labels),
        indices=indices,
        begin=begin,
    )


def _placed(job: Job, mesh: Mesh) -> Job:
    """Return the job with its arrays on the devices: weights and key whole on each, images split."""
    weights, key = sharding.place((job.weights, job.key), mesh, split=False)
    split = (job.indices, job.begin, job.condition.labels)
    indices, begin, labels = sharding.place(split, mesh, split=True)
    condition = job.condition._replace(labels=labels)
    return dataclasses.replace(job, weights=weights, key=key, indices=indices, begin=begin, condition=condition)


def _with_fast_convolutions(job: Job, mesh: Mesh, evaluations: int) -> Job:
    """Return the job with Winograd's kernels where they gain: in float32 on CPU, and where this process holds them."""
    unet: UNetConfig = job.static.unet
    weights = winograd.fast_weights(unet, job.weights, len(job.indices) // mesh.size, evaluations)
    quick = unet.dtype == "float32" and not winograd.is_transformed(weights)
    return dataclasses.replace(job, weights=weights, quick=quick)
