"""Run some rows of a sampler: from the noisy image that one row sees to the one that another row sees."""

import dataclasses

import jax
from jax.sharding import Mesh

from ddpm_jax.params import Params, check_images, check_params
from ddpm_jax.samplers import Sampler
from ddpm_jax.sampling import program
from ddpm_jax.sampling.job import prepare
from ddpm_jax.types import Array, Images, Labels, RandomKey
from ddpm_jax.validation import as_integer, check


def run_part(
    params: Params,
    key: RandomKey,
    x_t: Images,
    *,
    start: int,
    stop: int | None = None,
    sampler: Sampler | str | None = None,
    class_labels: Labels = None,
    indices: Array | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Run rows `start` up to `stop` of a sampler's table, `table_of(sampler, params.config)`.

    All parts of one sampler run in one compiled program, in which the other rows are idle. Image i draws the noise of
    row r from (key, indices[i], r) alone, so a run in two parts is the run of `sample` to float rounding.

    Args:
        params: weights and their config.
        key: a key of `jax.random`.
        x_t: [b, h, w, c] noisy images on the scale of the data, signal x_0 + sigma eps with `table.levels[start, 0]`.
        start: the first row.
        stop: the row after the last; None is the end.
        sampler, class_labels, mesh: as in `sample`.
        indices: [b] the images' numbers; 0 .. b-1 if None. Images of one number draw the same noise.

    Returns:
        The images that row `stop` sees, or after the last row x_0: [b, h, w, c] on the scale of the data, not clipped.

    Raises:
        TypeError, ValueError: as `sample`; no rows between start and stop; a multistep sampler, whose row `start` uses
            images of the rows before.

    Example:
        >>> params, key = ddpm_jax.load("digits-16"), jax.random.key(0)
        >>> noise, sampler = jax.random.normal(key, (2, 16, 16, 1)), ddpm_jax.samplers.DDPM(num_steps=4)
        >>> x_t = run_part(params, key, noise, start=0, stop=3, sampler=sampler)
        >>> run_part(params, key, x_t, start=3, sampler=sampler).shape
        (2, 16, 16, 1)
    """
    check_params(params)
    check_images("x_t", params.config.unet, x_t)
    job = prepare(
        *(params, key, x_t.shape[0]),
        sampler=sampler,
        class_labels=class_labels,
        begin=x_t,
        indices=indices,
        mesh=mesh,
    )
    whole = job.table
    part = whole.part(as_integer("start", start), stop)
    check(
        not part.looks_back(),
        f"`sampler` is a multistep method, which uses images of the rows before row {start} and cannot begin there. "
        "Begin at row 0, or take a sampler of single steps, such as ddpm, ddim, euler or heun.",
    )
    table = dataclasses.replace(part, init_scale=1.0).padded(whole.num_rows)
    job = dataclasses.replace(job, table=table, static=job.static._replace(switches=table.switches))
    return job.call(program.latents, job.origin, job.inputs())
