"""The losses that training minimises: functions f(params, key, x_0) that draw a timestep and noise for each image.

The loss of image i depends on (key, i) alone, not on its batch.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import compilation, reverse
from ddpm_jax.config import Config, ScheduleConfig
from ddpm_jax.params import Params, check_images, check_labels, check_params, run_network
from ddpm_jax.random_keys import image_keys, threefry_key
from ddpm_jax.schedule import (
    alphas_cumprod,
    broadcast,
    prediction_coefficients,
    q_sample,
    v_from_x_0_eps,
)
from ddpm_jax.types import Array, Float, Images, Labels, Number, RandomKey, Timesteps
from ddpm_jax.validation import POSITIVE, Rule, check, check_settings, choice, number, where


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A training loss.

    Attributes:
        loss_type: "simple": the mean square error of what the network predicts (Ho et al. 2020, eq. 14). "vlb": the
            variational bound, T L_t in bits/dim (eq. 5). "hybrid": simple + vlb_weight * vlb, whose
            bound trains only the variance (Nichol & Dhariwal 2021, eq. 16).
        weighting: w(SNR) of the simple loss. "constant": the square error of the prediction, unweighted. The others
            weight the square error of eps, whatever the network predicts: "snr" by 1, "min_snr" by
            min(SNR, min_snr_gamma) / SNR (Hang et al. 2023), "p2" by 1 / (p2_k + SNR)^p2_gamma (Choi et al. 2022).
        variance_type: of p(x_s | x_t) in the bound: "fixed_small", "fixed_large", or "learned_range", which the second
            half of the network's output channels interpolates.
        timestep_sampling: "uniform"; "antithetic": images 2j and 2j + 1 take t and T - 1 - t; "importance": t with
            probability proportional to the root mean square of its last ten losses (Nichol & Dhariwal 2021, section
            3.3), which only a training run keeps.
        vlb_weight: lambda of "hybrid".
        min_snr_gamma: gamma of "min_snr".
        p2_gamma, p2_k: gamma and k of "p2".
        label_dropout: probability that an image's class is replaced by the config's `null_class`, or by the last class
            if it names none, which stands for "no class" (classifier-free guidance, Ho & Salimans 2022).

    Example:
        >>> Objective(weighting="min_snr").min_snr_gamma
        5.0
    """

    loss_type: Literal["simple", "vlb", "hybrid"] = "simple"
    weighting: Literal["constant", "snr", "min_snr", "p2"] = "constant"
    variance_type: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_small"
    timestep_sampling: Literal["uniform", "antithetic", "importance"] = "uniform"
    vlb_weight: Number = 0.001
    min_snr_gamma: Number = 5.0
    p2_gamma: Number = 1.0
    p2_k: Number = 1.0
    label_dropout: Number = 0.0

    VALUES: ClassVar[dict[str, Rule]] = {
        "loss_type": choice("simple", "vlb", "hybrid"),
        "weighting": choice("constant", "snr", "min_snr", "p2"),
        "variance_type": choice("fixed_small", "fixed_large", "learned_range"),
        "timestep_sampling": choice("uniform", "antithetic", "importance"),
        "vlb_weight": POSITIVE,
        "min_snr_gamma": POSITIVE,
        "p2_gamma": POSITIVE,
        "p2_k": POSITIVE,
        "label_dropout": number(0, 1),
    }
    ACTS: ClassVar[dict[str, Rule]] = {
        "vlb_weight": where("loss_type", "hybrid"),
        "min_snr_gamma": where("weighting", "min_snr"),
        "p2_gamma": where("weighting", "p2"),
        "p2_k": where("weighting", "p2"),
        "weighting": where("loss_type", "simple", "hybrid"),
    }

    def __post_init__(self):
        check_settings(self)


def loss(
    params: Params,
    key: RandomKey,
    x_0: Images,
    class_labels: Labels = None,
    *,
    objective: Objective = Objective(),
    dropout_key: RandomKey | None = None,
) -> Float[jax.Array, ""]:
    """Return the mean loss of a batch: that of `per_image`.

    Example:
        >>> params, key = ddpm_jax.load("digits-16"), jax.random.key(0)
        >>> value, gradient = jax.value_and_grad(loss)(params, key, jnp.zeros((2, 16, 16, 1)))
        >>> value.shape, gradient.config == params.config
        ((), True)
    """
    values, _ = per_image(params, key, x_0, class_labels, objective=objective, dropout_key=dropout_key)
    return values.mean()


def per_image(
    params: Params,
    key: RandomKey,
    x_0: Images,
    class_labels: Labels = None,
    *,
    objective: Objective = Objective(),
    dropout_key: RandomKey | None = None,
    t: Timesteps | None = None,
    indices: Any = None,
) -> tuple[Float[jax.Array, " b"], Array]:
    """Return the loss of each image at a timestep drawn for it.

    Args:
        params: weights and their config.
        key: of `jax.random`, of any generator and style; image i draws t and noise from fold_in(key, indices[i]).
        x_0: clean images, NHWC in [-1, 1].
        class_labels: for class-conditional networks: an integer for all, or one an image.
        objective: the loss.
        dropout_key: key of the dropout masks; dropout is on exactly when it is given.
        t: integer timesteps that replace the draws, one for all or one an image.
        indices: [b] numbers of the images; 0 .. b-1 if None.

    Returns:
        (loss [b], t [b]): the loss is a mean over the values of an image.

    Raises:
        TypeError: params is not `Params`.
        ValueError: images, labels or an objective that do not fit the network; a schedule that is not
            variance-preserving.

    Example:
        >>> values, t = per_image(ddpm_jax.load("digits-16"), jax.random.key(0), jnp.zeros((2, 16, 16, 1)), t=500)
        >>> values.shape, t.tolist()
        ((2,), [500, 500])
    """
    check_params(params)
    check_objective(params.config, objective)
    check_images("x_0", params.config.unet, x_0)
    key = threefry_key(key)
    batch_size = x_0.shape[0]
    labels = check_labels(params.config.unet, class_labels, batch_size)
    if t is None and objective.timestep_sampling == "importance":
        raise ValueError('`timestep_sampling` "importance" needs the losses so far: pass `t`, or train with it.')
    indices = np.arange(batch_size, dtype=np.int32) if indices is None else indices
    t = None if t is None else jnp.broadcast_to(jnp.asarray(t), (batch_size,))
    return compilation.call(
        traced_per_image, (params.config, objective), params.weights, key, x_0, labels, dropout_key, t, indices
    )


def check_objective(config: Config, objective: Objective) -> None:
    """Refuse an objective that does not fit a network."""
    unet, schedule = config.unet, config.schedule
    check(schedule.kind == "vp", f"Losses are those of variance-preserving schedules, not of {schedule.kind!r}.")
    unet.check_prediction()
    learned = unet.learns_variance
    if learned != (objective.variance_type == "learned_range"):
        raise ValueError(
            f"`variance_type` {objective.variance_type!r} does not go with {unet.out_channels} output channels for "
            f"{unet.in_channels} of the image: 'learned_range' takes twice as many, the others as many."
        )
    check(
        not learned or objective.loss_type != "simple",
        "`loss_type` 'simple' never trains a learned variance; take 'hybrid' or 'vlb'.",
    )
    check(
        learned or objective.loss_type != "hybrid",
        "`loss_type` 'hybrid' is for a learned variance: `variance_type` 'learned_range'.",
    )
    check(
        objective.label_dropout == 0 or unet.num_classes > 0,
        "`label_dropout` needs a table of classes (`num_class_embeds`), whose last row stands for no class.",
    )


def draw_timesteps(key: RandomKey, indices: Array, num_train_timesteps: int, *, antithetic: bool) -> jax.Array:
    """Draw t uniformly from 0 .. T-1 for each image; antithetic: image 2j + 1 takes T - 1 - t of image 2j.

    Example:
        >>> draw_timesteps(jax.random.key(0), jnp.arange(4), 10, antithetic=True).reshape(2, 2).sum(1).tolist()
        [9, 9]
    """
    numbers = indices - indices % 2 if antithetic else indices
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(image_keys(key, numbers))
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_train_timesteps))(keys)
    return jnp.where(indices % 2 == 1, num_train_timesteps - 1 - t, t) if antithetic else t


def traced_per_image(static: tuple[Config, Objective], weights, key, x_0, labels, dropout_key, t, indices):
    """Return what `per_image` returns, without checks and without compiling: for programs that contain the loss."""
    config, objective = static
    schedule, channels = config.schedule, x_0.shape[-1]
    if t is None:
        antithetic = objective.timestep_sampling == "antithetic"
        t = draw_timesteps(key, indices, schedule.num_train_timesteps, antithetic=antithetic)
    keys = image_keys(key, indices)
    eps = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), x_0.shape[1:], x_0.dtype))(keys)
    if objective.label_dropout:
        draw = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 2)))(keys)
        labels = jnp.where(draw < objective.label_dropout, config.dropped_class, labels)
    alpha_bar_t = jnp.asarray(alphas_cumprod(schedule), x_0.dtype)[t]
    x_t = q_sample(x_0, alpha_bar_t, eps)
    out = run_network(config.unet, weights, x_t, t, labels, dropout_key)
    out, fraction = out[..., :channels], out[..., channels:]
    if objective.loss_type == "vlb":
        return bound_term(schedule, objective.variance_type, x_0, x_t, t, out, fraction), t
    target = {
        "epsilon": lambda: eps,
        "sample": lambda: x_0,
        "v_prediction": lambda: v_from_x_0_eps(x_0, alpha_bar_t, eps),
    }[schedule.prediction_type]()
    value = ((target - out) ** 2).mean((1, 2, 3)) * _weight(objective, schedule.prediction_type, alpha_bar_t)
    if objective.loss_type == "hybrid":
        mean_alone = jax.lax.stop_gradient(out)
        bound = bound_term(schedule, objective.variance_type, x_0, x_t, t, mean_alone, fraction)
        value = value + objective.vlb_weight * bound
    return value, t


def _weight(objective: Objective, prediction_type: str, alpha_bar_t: jax.Array) -> jax.Array | float:
    """Return the factor of the prediction's square error at each alpha_bar_t [b]."""
    if objective.weighting == "constant":
        return 1.0
    snr = alpha_bar_t / (1 - alpha_bar_t)
    # the square error of eps is that of x_0 times SNR, that of v times SNR / (SNR + 1) = alpha_bar_t
    of_eps = {"epsilon": 1.0, "sample": snr, "v_prediction": alpha_bar_t}[prediction_type]
    if objective.weighting == "snr":
        return of_eps * jnp.ones_like(snr)
    if objective.weighting == "p2":
        return of_eps / (objective.p2_k + snr) ** objective.p2_gamma
    # of_eps / SNR is written out below, or it would be 0/0 at zero terminal SNR
    if prediction_type == "epsilon":
        return jnp.minimum(1, objective.min_snr_gamma / snr)
    return jnp.minimum(snr, objective.min_snr_gamma) * (1.0 if prediction_type == "sample" else 1 - alpha_bar_t)


def bound_term(
    schedule: ScheduleConfig,
    variance_type: str,
    x_0: Images,
    x_t: Images,
    t: Array,
    out: Images,
    fraction: Array | None = None,
) -> Float[jax.Array, " b"]:
    """Return T L_t in bits/dim, whose mean over uniform t is the variational bound without L_T.

    L_t = KL(q(x_s | x_t, x_0) || p(x_s | x_t)) for t > 0, s = t - 1, and -log p(x_0 | x_t) at t = 0, by a Gaussian over
    the 256 levels of each value (Ho et al. 2020, eqs. 5, 8 and 13).

    Args:
        schedule: variance-preserving; its prediction type says what `out` is.
        variance_type: as in `Objective`.
        x_0, x_t: images, clean and noisy.
        t: [b] integers.
        out: the network's prediction, of the shape of x_0.
        fraction: the second half of the network's channels, for "learned_range": -1 stands for the posterior's
            log-variance, 1 for log beta_t.

    Example:
        >>> image, t = jnp.zeros((1, 2, 2, 1)), jnp.array([3])
        >>> float(bound_term(ScheduleConfig(prediction_type="sample"), "fixed_small", image, image, t, image)[0])
        0.0
    """
    steps = reverse.chain(schedule)

    def at_t(numbers):
        return broadcast(jnp.asarray(numbers, x_0.dtype)[t])

    a, b, _, _ = prediction_coefficients(schedule.prediction_type, alphas_cumprod(schedule))
    x_0_hat = at_t(a) * x_t + at_t(b) * out
    extra = fraction if variance_type in reverse.LEARNED else None
    p_mean, p_log_variance = reverse.p_step(schedule, variance_type, x_t, t, x_0_hat, extra)
    shift = at_t(steps.from_x_0) * (x_0 - x_0_hat)  # of the means
    q_log_variance = at_t(np.log(steps.smallest))
    difference = q_log_variance - p_log_variance
    divergence = (jnp.exp(difference) - 1 - difference + shift**2 * jnp.exp(-p_log_variance)) / 2
    decoder = -reverse.log_probability_of_levels(x_0, p_mean, p_log_variance)
    nats = jnp.where((t == 0)[:, None, None, None], decoder, divergence).mean((1, 2, 3))
    return schedule.num_train_timesteps * nats / np.log(2)
