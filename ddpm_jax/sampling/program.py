"""What is compiled: a run starts from noise, advances by rows of a table, and finishes as images.

A program is compiled once for each `Static` and each shape of its arguments; all else is data.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ddpm_jax import pixels, sharding
from ddpm_jax.config import UNetConfig
from ddpm_jax.models import hoist
from ddpm_jax.random_keys import image_keys
from ddpm_jax.samplers.base import NO_HOOKS, Frame, Hooks, draw_noise, initial_state, scan_rows
from ddpm_jax.samplers.table import Rows, Switches
from ddpm_jax.sampling.guidance import Condition, guided
from ddpm_jax.types import Array, ImageKeys, PyTree


class Static(NamedTuple):
    """What a program is compiled for, besides the shapes of its arguments.

    Attributes:
        unet, data_range, switches: of the network, its data and the table.
        mesh: the devices that images are split over; None leaves that to the caller's program.
        batch_size: images without the padding that splits them evenly over the mesh; None if it is symbolic.
        num_frames: frames to record on the way.
        hooks: functions that step into every row.
    """

    unet: UNetConfig
    data_range: pixels.DataRange
    switches: Switches
    mesh: Mesh | None
    batch_size: int | None
    num_frames: int = 0
    hooks: Hooks = NO_HOOKS


class Origin(NamedTuple):
    """What a run starts from.

    Attributes:
        key: of the run; None where no row draws noise.
        indices: [b] the images' numbers.
        begin: [b, h, w, c] the image that a run begins with; None draws it.
        init_scale: what that is multiplied with.
    """

    key: jax.Array | None
    indices: Array
    begin: Array | None
    init_scale: Any


class Inputs(NamedTuple):
    """What rows need besides the state.

    Attributes:
        weights: of the network.
        condition: class labels and guidance.
        rows: of the table.
        slots: [n] the frame in which each row is recorded, `num_frames` for none; None without frames.
        hook_data: a tree of arrays for the hooks.
    """

    weights: PyTree
    condition: Condition
    rows: Rows
    slots: Array | None = None
    hook_data: Any = None


def whole(static: Static, origin: Origin, inputs: Inputs) -> tuple[jax.Array, Frame]:
    """Run all rows: return the images and the frames, in [0, 1]."""
    state, keys = start(static, origin)
    state, frames = advance(static, inputs, state, keys)
    return finish(static, state[0]), jax.tree.map(lambda frame: finish(static, frame), frames)


def latents(static: Static, origin: Origin, inputs: Inputs) -> jax.Array:
    """Run all rows: return the last image on its own scale, as an inversion wants it."""
    state, keys = start(static, origin)
    state, _ = advance(static, inputs, state, keys)
    return state[0][: static.batch_size]


def start(static: Static, origin: Origin) -> tuple[jax.Array, ImageKeys | None]:
    """Return the state [k, b, h, w, c] before the first row, and the key of each image."""
    keys = None if origin.key is None else image_keys(origin.key, origin.indices)
    begin = origin.begin
    if begin is None:
        if keys is None:
            raise TypeError("`key` is None, but the first images are drawn by it: pass a key, as jax.random.key(0).")
        shape = (*static.unet.check_size(), static.unet.in_channels)
        begin = draw_noise(keys, 0, shape, jnp.float32)
    return sharding.constrain(initial_state(static.switches, origin.init_scale, begin), static.mesh), keys


def advance(static: Static, inputs: Inputs, state: jax.Array, keys: ImageKeys | None) -> tuple[jax.Array, Frame]:
    """Run rows. What the network computes of the time alone is computed for all of them before the loop."""
    unet, labels = static.unet, inputs.condition.labels
    weights = hoist.cast_weights(unet, inputs.weights)
    times = jnp.asarray(inputs.rows.t)
    projections = hoist.project_times(unet, weights, times) if labels is None else None

    def net_fn(x, cond, labels):
        t, projection = cond
        return hoist.run(unet, weights, x, t, labels, projection)

    is_guided = inputs.condition.guidance_scale is not None
    run_net = guided(net_fn, inputs.condition, unet.in_channels) if is_guided else net_fn
    state, frames = scan_rows(
        lambda x, cond: run_net(x, cond, labels),
        static.switches,
        inputs.rows,
        state,
        keys,
        cond=(times, projections),
        slots=inputs.slots,
        num_frames=static.num_frames,
        hooks=static.hooks,
        hook_data=inputs.hook_data,
    )
    return sharding.constrain(state, static.mesh), frames


def advance_and_show(static: Static, is_last: Array, inputs: Inputs, state: jax.Array, keys: ImageKeys):
    """Run rows; return the state, and the image that `sample` returns or, before the end, the last x_0_hat."""
    state, frames = advance(static, inputs, state, keys)
    return state, finish(static, jnp.where(is_last, state[0], frames.x_0_hat[0]))


def cast_weights(static: Static, weights: PyTree) -> PyTree:
    """Return the weights in the dtype that the network computes in, once for several programs."""
    return hoist.cast_weights(static.unet, weights)


def finish(static: Static, x: jax.Array) -> jax.Array:
    """Map the scale of the data to [0, 1], clip, and cut the batch's padding off."""
    return pixels.to_images(x[..., : static.batch_size, :, :, :], static.data_range)
