"""`Params`: weights and their config as one pytree, and the functions that need nothing else."""

import functools
import math
from typing import Any, Literal, cast

import flax.struct
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ddpm_jax import compilation
from ddpm_jax.config import Config, ScheduleConfig, UNetConfig
from ddpm_jax.models.layers import shapes_only
from ddpm_jax.models.layout import layout
from ddpm_jax.models.unet import UNet
from ddpm_jax.schedule import alphas_cumprod, broadcast, output_coefficients
from ddpm_jax.types import Array, Images, Labels, Outputs, PyTree, RandomKey, Timesteps


@flax.struct.dataclass
class Params:
    """Hold weights, and their config as static data: a pytree whose leaves are the network's parameters.

    `jax.grad`, optax, `jax.tree.map` and sharding see the weights; `jax.jit` sees the config as part of the type.
    Without this package's functions: `UNet(params.config.unet).apply({"params": params.weights}, x, t)`.

    Attributes:
        weights: the plain Flax "params" dict, float32.
        config: the network, the schedule and the sampler.

    Example:
        >>> params = ddpm_jax.load("digits-16")
        >>> params.config.unet.block_out_channels
        (32, 64, 64)
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        1112801
    """

    weights: PyTree
    config: Config = flax.struct.field(pytree_node=False)


class Prediction(flax.struct.PyTreeNode):
    """The network's estimates of the clean image and of the noise in a noisy image, NHWC, never clipped."""

    x_0_hat: Array
    eps_hat: Array


def init(key: RandomKey, config: Config, *, scheme: Literal["paper", "torch"] = "paper") -> Params:
    """Draw the weights of an untrained network.

    Args:
        key: a key of `jax.random`.
        config: the network, the schedule and the sampler.
        scheme: "paper" is that of hojonathanho/diffusion: uniform with variance 1 / fan_avg, with scale 1e-10 for the
            last layer of a branch (conv2, attention's output, conv_out), and biases of 0. "torch" is that of
            diffusers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases, in every layer. In both, norms have
            scale 1 and bias 0, tables are N(0, 1) and Fourier frequencies N(0, 16^2).

    Returns:
        Params of float32 weights.

    Raises:
        ValueError: another scheme.

    Example:
        >>> params = init(jax.random.key(0), ddpm_jax.load("digits-16").config)
        >>> float(jnp.abs(params.weights["conv_out"]["kernel"]).max()) < 1e-5
        True
    """
    if scheme not in ("paper", "torch"):
        raise ValueError(f'`scheme` must be "paper" or "torch", not {scheme!r}.')
    return Params(weights=_draw_weights((config.unet, scheme), key), config=config)


@functools.partial(jax.jit, static_argnums=0)
def _draw_weights(static: tuple[UNetConfig, str], key: jax.Array) -> PyTree:
    config, scheme = static
    leaves, structure = jax.tree_util.tree_flatten_with_path(layout(config).weights)
    names = [tuple(entry.key for entry in path) for path, _ in leaves]
    shapes = {name: leaf.shape for name, (_, leaf) in zip(names, leaves, strict=True)}
    # one draw for all uniform values: one for each of a large network's 450 tensors would compile for a minute
    ends = np.cumsum([math.prod(shapes[name]) for name in names])
    uniform_key, normal_key = jax.random.split(key)
    uniform = jax.random.uniform(uniform_key, (int(ends[-1]),), jnp.float32, minval=-1.0)
    values = []
    for name, part in zip(names, jnp.split(uniform, ends[:-1].tolist()), strict=True):
        *module, kind = name
        if kind == "weight":  # a table of embeddings, or Fourier frequencies
            table_key = jax.random.fold_in(normal_key, len(values))
            scale = 16.0 if len(shapes[name]) == 1 else 1.0
            values.append(scale * jax.random.normal(table_key, shapes[name], jnp.float32))
        elif (*module, "scale") in shapes:  # a norm
            values.append(jnp.full(shapes[name], 1.0 if kind == "scale" else 0.0, jnp.float32))
        else:
            bound = _bound(scheme, module[-1], kind, shapes[(*module, "kernel")])
            values.append(bound * part.reshape(shapes[name]))
    return jax.tree.unflatten(structure, values)


def _bound(scheme: str, layer: str, kind: str, kernel: tuple[int, ...]) -> float:
    """Return half the width of the uniform distribution of a layer's kernel or bias."""
    *receptive, fan_in, fan_out = kernel
    fan_in, fan_out = fan_in * math.prod(receptive), fan_out * math.prod(receptive)
    if scheme == "torch":
        return 1 / math.sqrt(fan_in)
    scale = 1e-10 if layer in ("conv2", "to_out_0", "conv_out") else 1.0
    return math.sqrt(3 * scale / ((fan_in + fan_out) / 2)) if kind == "kernel" else 0.0


def trainable_mask(params: Params) -> Params:
    """Return a tree like params, with True for trained weights and False for fixed ones.

    The Fourier frequencies of google/ncsnpp-* are fixed. The optimiser must leave them out (`optax.masked`, or
    `optax.multi_transform` with `optax.set_to_zero`): weight decay would move them even with a zero gradient.

    Example:
        >>> all(jax.tree.leaves(trainable_mask(ddpm_jax.load("digits-16"))))
        True
    """
    fourier = params.config.unet.time_embedding_type == "fourier"

    def trained(path, _leaf) -> bool:
        return not (fourier and any(getattr(entry, "key", None) == "time_proj" for entry in path))

    return jax.tree_util.tree_map_with_path(trained, params)


def count(weights: PyTree) -> int:
    """Return the number of parameters in a tree of weights, or of their shapes.

    Example:
        >>> count(ddpm_jax.load("digits-16"))
        1112801
    """
    return sum(leaf.size for leaf in jax.tree.leaves(weights))


def apply(
    params: Params,
    x: Images,
    t: Timesteps,
    class_labels: Labels = None,
    *,
    dropout_key: RandomKey | None = None,
) -> Outputs:
    """Run the network once: `UNet2DModel.forward`.

    Args:
        params: weights and their config.
        x: noisy images [b, h, w, in_channels]; sides must be multiples of 2^(levels - 1).
        t: timesteps 0 .. T-1, one for all images or one for each. They may be fractions, except for "learned" time
            embeddings, which have rows for integers only. A "fourier" network takes the noise level sigma instead.
        class_labels: an integer for all images or one for each; embeddings [b, time_embed_dim] for "identity"
            networks; None if and only if the network has no classes.
        dropout_key: draws the dropout masks; dropout is on if and only if it is given.

    Returns:
        The raw output [b, h, w, out_channels], float32: eps, x_0 or v, by the schedule's `prediction_type`. Networks
        with a learned variance return it in the second half of the channels.

    Raises:
        TypeError: params is no `Params`.
        ValueError: a shape does not fit the network; class labels are missing, superfluous or out of range.

    Example:
        >>> params = ddpm_jax.load("digits-16")
        >>> apply(params, jnp.zeros((2, 16, 16, 1)), 999).shape
        (2, 16, 16, 1)
    """
    check_params(params)
    config = params.config.unet
    check_images("x", config, x)
    if jnp.ndim(t) > 0 and jnp.shape(t) != (x.shape[0],):
        raise ValueError(
            f"`t` has shape {jnp.shape(t)}; it must be one number, or one for each image: ({x.shape[0]},)."
        )
    _check_table_index(config, t)
    labels = check_labels(config, class_labels, x.shape[0])
    return compilation.call(run_network, config, params.weights, x, t, labels, dropout_key)


def _check_table_index(config: UNetConfig, t: Timesteps) -> None:
    """Refuse timesteps for which a learned time embedding has no row."""
    if config.time_embedding_type != "learned" or isinstance(t, jax.core.Tracer):
        return
    values, rows = np.asarray(t), config.num_train_timesteps or 0
    if np.any(values != np.floor(values)) or np.any(values < 0) or np.any(values >= rows):
        raise ValueError(
            f"`t` must be integers in 0 .. {rows - 1}, the rows of the time embedding, not {values.tolist()}."
        )


def run_network(config: UNetConfig, weights: PyTree, x, t, labels=None, dropout_key=None) -> jax.Array:
    """Run the network without checks and without compiling it, for programs that contain it."""
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    deterministic = dropout_key is None
    with shapes_only():
        out = UNet(config).apply({"params": weights}, x, t, labels, deterministic, rngs=rngs)
    return cast(jax.Array, out)  # `apply` returns collections too, where some are mutable


def predict(params: Params, x_t: Images, t: Timesteps, class_labels: Labels = None) -> Prediction:
    """Estimate the clean image and the noise in x_t, whatever the network was trained to predict.

    x_0_hat = (x_t - sigma_t eps_hat) / sqrt(alpha_bar_t)  for "epsilon" (Ho et al. 2020, eq. 15),
    x_0_hat = sqrt(alpha_bar_t) x_t - sigma_t v_hat  for "v_prediction" (Salimans & Ho 2022).

    Args:
        params, class_labels: as in `apply`.
        x_t: noisy images, NHWC.
        t: integer timesteps 0 .. T-1, one for all images or one for each; the noise level sigma for a
            variance-exploding schedule.

    Returns:
        Prediction(x_0_hat, eps_hat), never clipped. A learned variance is left out.

    Raises:
        TypeError, ValueError: as in `apply`; a timestep is outside the schedule, or no integer.

    Example:
        >>> predict(ddpm_jax.load("digits-16"), jnp.zeros((2, 16, 16, 1)), 500).x_0_hat.shape
        (2, 16, 16, 1)
    """
    check_params(params)
    schedule = params.config.schedule
    unet = params.config.unet
    unet.check_prediction()
    if schedule.kind == "other":
        raise ValueError(
            f"What networks of {params.config.sampler.class_name} predict is not known. `apply` returns their output."
        )
    out = apply(params, x_t, t, class_labels)[..., : x_t.shape[-1]]
    if schedule.kind == "ve":
        level = jnp.asarray(t, jnp.float32)
    else:
        _check_index(schedule, t)
        level = jnp.asarray(alphas_cumprod(schedule), x_t.dtype)[jnp.asarray(t)]
    a, b, c, d = map(broadcast, output_coefficients(schedule, level))
    return Prediction(x_0_hat=a * x_t + b * out, eps_hat=c * x_t + d * out)


def _check_index(schedule: ScheduleConfig, t: Timesteps) -> None:
    """Refuse timesteps for which the schedule's tables have no entry."""
    if not isinstance(t, jax.core.Tracer):
        steps = schedule.num_train_timesteps
        good = np.issubdtype(np.asarray(t).dtype, np.integer)
        if not good or np.any(np.asarray(t) < 0) or np.any(np.asarray(t) >= steps):
            raise ValueError(f"`t` must be integers in 0 .. {steps - 1}, not {t!r}.")


def check_params(params: Any) -> None:
    """Refuse anything but Params; say how a plain dict of weights becomes one."""
    if not isinstance(params, Params):
        raise TypeError(
            f"`params` must be ddpm_jax.Params, not {type(params).__name__}. `load` and `init` return it; a plain "
            "dict of weights becomes one by Params(weights=weights, config=config)."
        )


def check_images(name: str, config: UNetConfig, images: Any) -> None:
    """Refuse images whose shape the network cannot take."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[-1] != config.in_channels:
        raise ValueError(
            f"`{name}` has shape {shape}; this network takes [batch, height, width, {config.in_channels}]."
        )
    if any(side % config.smallest_size for side in shape[1:3]):
        raise ValueError(
            f"`{name}` is {shape[1]} x {shape[2]} pixels; the {len(config.block_out_channels)} levels of this network "
            f"need multiples of {config.smallest_size}."
        )


def _as_array(labels: Any) -> Any:
    """Return a list of labels as an array; JAX no longer takes lists."""
    if not isinstance(labels, list | tuple | range):
        return labels
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(labels))
    try:
        return jnp.asarray(labels) if traced else np.asarray(labels)
    except ValueError:  # lists of several lengths
        raise ValueError(f"`class_labels` must be one label, or one for each image, not {labels!r}.") from None


def check_labels(config: UNetConfig, labels: Labels, batch_size: int) -> jax.Array | None:
    """Return class labels as an array with one entry for each image, or None for a network without classes.

    Raises:
        ValueError: they do not fit the network.
    """
    if not config.has_classes:
        if labels is not None:
            raise ValueError("`class_labels` is given, but this network has no classes. Leave it out.")
        return None
    if labels is None:
        kind = config.class_embed_type or f"{config.num_class_embeds} classes"
        raise ValueError(f"This network is class-conditional ({kind}): it needs `class_labels`.")
    array = _as_array(labels)
    if config.class_embed_type == "identity":
        width = config.time_embed_dim
        if jnp.shape(array) != (batch_size, width):
            raise ValueError(
                f"`class_labels` has shape {jnp.shape(array)}; this network takes embeddings [{batch_size}, {width}]."
            )
        return jnp.asarray(array, jnp.float32)
    if jnp.shape(array) not in ((), (batch_size,)):
        raise ValueError(
            f"`class_labels` has shape {jnp.shape(array)}; it must be one label, or one an image: ({batch_size},)."
        )
    count = config.num_classes
    if count and not isinstance(array, jax.core.Tracer):
        values = np.asarray(array)
        integers = np.issubdtype(values.dtype, np.integer)
        if not integers or np.any(values < 0) or np.any(values >= count):
            raise ValueError(f"`class_labels` must be integers in 0 .. {count - 1}, not {values.tolist()}.")
    return jnp.broadcast_to(jnp.asarray(array), (batch_size,))
