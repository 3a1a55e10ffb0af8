"""One step of training: loss, optimiser, averages, accumulation, importance sampling; and settings that are refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import small_params

import ddpm_jax
from ddpm_jax import losses, sharding
from ddpm_jax.losses import Objective
from ddpm_jax.params import count
from ddpm_jax.training import PRESETS, DataConfig, EmaConfig, LoopConfig, OptimizerConfig, TrainConfig, ema
from ddpm_jax.training.network import network
from ddpm_jax.training.step import Plan, compiled, create, learning_rate, optimizer

OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=0)


def config(**changes):
    return TrainConfig(
        data=DataConfig(data="digits"),
        **{"optimizer": OPTIMIZER, "loop": LoopConfig(batch_size=8, steps=10), **changes},
    )


def batch(number, count=8, classes=None):
    generator = np.random.default_rng(number)
    images = generator.integers(0, 256, (count, 8, 8, 1), np.uint8)
    return images, None if classes is None else generator.integers(0, classes, count)


def do(config, steps, params=None, mesh=None):
    """Train for some steps. Return the state, and the metrics of each step."""
    params = small_params() if params is None else params
    mesh = sharding.data_mesh() if mesh is None else mesh
    plan = Plan(params.config, config)
    state = create(plan, params.weights, mesh)
    step, seen = compiled(plan, state, mesh), []
    for number in range(steps):
        placed = sharding.place(
            batch(number, config.loop.batch_size, params.config.unet.num_class_embeds), mesh, split=True
        )
        state, metrics = step(state, *placed)
        seen.append(metrics)
    return state, seen


def typical_gap(one, other):
    """Return the 99 % quantile of the differences. Adam makes a full step of a zero gradient's rounding."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return np.quantile(np.concatenate([np.abs(np.asarray(a - b)).ravel() for a, b in pairs]), 0.99)


def test_is_optax_on_the_public_loss():
    """A step is the loop that a user would write with `losses.per_image` and optax."""
    params, settings = small_params(), config()
    state, metrics = do(settings, 3)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))

    @jax.jit
    def loss_and_update(mine, opt_state, key, x_0, t):
        mean = lambda params: losses.per_image(params, key, x_0, t=t)[0].mean()
        value, gradient = jax.value_and_grad(mean)(mine)
        updates, opt_state = optimizer.update(gradient, opt_state, mine)
        return value, optax.tree.norm(gradient), optax.apply_updates(mine, updates), opt_state

    mine, opt_state = params, optimizer.init(params)
    for number in range(3):
        key, _, t_key = jax.random.split(jax.random.fold_in(jax.random.key(0), number), 3)
        images, _ = batch(number)
        t = losses.draw_timesteps(t_key, jnp.arange(8), 1000, antithetic=False)
        x_0 = images.astype(np.float32) / 127.5 - 1
        value, norm, mine, opt_state = loss_and_update(mine, opt_state, key, x_0, t)
        np.testing.assert_allclose(metrics[number].loss, value, rtol=1e-4)
        np.testing.assert_allclose(metrics[number].grad_norm, norm, rtol=1e-3)
        counts = np.bincount(np.asarray(t) * 4 // 1000, minlength=4)
        np.testing.assert_array_equal(metrics[number].quarter_counts, counts)
        np.testing.assert_allclose(metrics[number].quarter_sums.sum() / 8, value, rtol=1e-4)
    assert typical_gap(state.weights, mine.weights) < 1e-6
    assert int(state.step) == 3


def test_accumulated_parts_make_the_same_step():
    whole, _ = do(config(), 2)
    parts, _ = do(config(optimizer=dataclasses.replace(OPTIMIZER, accumulate=4)), 2)
    assert typical_gap(whole.weights, parts.weights) < 1e-6


def test_what_is_drawn_depends_on_seed_and_step():
    one, metrics = do(config(), 2)
    again, _ = do(config(), 2)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    other, _ = do(config(loop=LoopConfig(batch_size=8, steps=10, seed=1)), 2)
    assert typical_gap(one.weights, other.weights) > 1e-5
    with jax.default_prng_impl("rbg"):
        same, _ = do(config(), 2)
    jax.tree.map(np.testing.assert_array_equal, one, same)


def test_dropout_is_that_of_the_public_loss_with_another_mask_in_each_step():
    """At a tiny learning rate, the loss of each step is the public loss with the dropout key of that step."""
    params = small_params(dropout=0.5)
    _, metrics = do(config(optimizer=dataclasses.replace(OPTIMIZER, learning_rate=1e-12)), 2, params)
    of_a_step = jax.jit(
        lambda x_0, key, dropout_key, t: losses.per_image(params, key, x_0, t=t, dropout_key=dropout_key)[0].mean()
    )
    masks = []
    for number in range(2):
        key, dropout_key, t_key = jax.random.split(jax.random.fold_in(jax.random.key(0), number), 3)
        t = losses.draw_timesteps(t_key, jnp.arange(8), 1000, antithetic=False)
        x_0 = batch(number)[0].astype(np.float32) / 127.5 - 1
        masks.append(jax.random.fold_in(dropout_key, 0))  # of part 0, the only one
        np.testing.assert_allclose(metrics[number].loss, of_a_step(x_0, key, masks[number], t), rtol=1e-4)
    assert abs(of_a_step(x_0, key, masks[0], t) - metrics[1].loss) > 1e-2 * metrics[1].loss  # the first step's mask


def test_remat_changes_nothing():
    plain, _ = do(config(), 1)
    again, _ = do(config(), 1, small_params(remat=True))
    assert typical_gap(plain.weights, again.weights) < 1e-6


def test_bfloat16_keeps_float32_state():
    state, metrics = do(config(), 1, small_params(dtype="bfloat16"))
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(state))
    plain, expected = do(config(), 1)
    np.testing.assert_allclose(metrics[0].loss, expected[0].loss, rtol=0.03)  # eight bits of mantissa


class TestOptimizer:
    """Three updates of one weight by hand, with no setting at its default."""

    SETTINGS = OptimizerConfig(
        **{"optimizer": "adamw", "learning_rate": 0.1, "lr_schedule": "linear", "warmup_steps": 2, "clip_norm": 0.5},
        **{"adam_b1": 0.8, "adam_b2": 0.95, "adam_eps": 0.01, "weight_decay": 0.3},
    )

    def test_by_hand(self):
        """The updates are AdamW's (Loshchilov & Hutter 2019, algorithm 2) for the clipped gradient."""
        params = small_params()
        adam = optimizer(Plan(params.config, config(optimizer=self.SETTINGS)))
        weights, state, update = params.weights, jax.jit(adam.init)(params.weights), jax.jit(adam.update)
        size = sum(leaf.size for leaf in jax.tree.leaves(weights))
        w, m, v = np.asarray(weights["conv_in"]["bias"][0], np.float64), 0.0, 0.0
        for step, g in enumerate([3.0, -2.0, 1e-3]):
            updates, state = update(jax.tree.map(lambda leaf, g=g: np.full_like(leaf, g), weights), state, weights)
            weights = optax.apply_updates(weights, updates)
            g *= min(1, 0.5 / (abs(g) * size**0.5))
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
            bias_1, bias_2 = 1 - 0.8 ** (step + 1), 1 - 0.95 ** (step + 1)
            rate = [0.0, 0.05, 0.1][step]  # of the warm-up
            w -= rate * (m / bias_1 / (np.sqrt(v / bias_2) + 0.01) + 0.3 * w)
            np.testing.assert_allclose(weights["conv_in"]["bias"][0], w, rtol=1e-5)

    @pytest.mark.parametrize(
        "shape, rates",
        [
            ("constant", [0.1, 0.1, 0.1, 0.1]),
            ("linear", [0.1, 0.075, 0.05, 0.0]),
            ("cosine", [0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.0]),  # (1 + cos(pi share)) / 2
        ],
    )
    def test_shapes_of_the_learning_rate(self, shape, rates):
        """After a warm-up of 2 steps: at 0, 1/4, 1/2 and all of the 8 steps that are left."""
        schedule = learning_rate(dataclasses.replace(self.SETTINGS, lr_schedule=shape), 10)
        np.testing.assert_allclose([schedule(step) for step in (0, 1)], [0, 0.05], rtol=1e-6)
        np.testing.assert_allclose([schedule(step) for step in (2, 4, 6, 10)], rates, rtol=1e-6, atol=1e-9)

    def test_the_rate_that_is_reported_is_that_of_the_update(self):
        settings = config(optimizer=dataclasses.replace(OPTIMIZER, warmup_steps=4, lr_schedule="cosine"))
        _, metrics = do(settings, 3)
        np.testing.assert_allclose([entry.learning_rate for entry in metrics], [0, 2.5e-4, 5e-4], rtol=1e-5)


def test_fixed_weights_stay():
    """Weight decay would move Fourier frequencies, whose gradient is zero."""
    params = small_params(time_embedding_type="fourier")
    plan = Plan(params.config, config(optimizer=OptimizerConfig(optimizer="adamw", weight_decay=0.1, warmup_steps=0)))
    adam = optimizer(plan)
    gradient = jax.tree.map(np.ones_like, params.weights)
    updates, _ = jax.jit(adam.update)(gradient, jax.jit(adam.init)(params.weights), params.weights)
    assert not np.any(updates["time_proj"]["weight"])
    assert np.all(updates["conv_in"]["kernel"])


class TestAverages:
    def test_ema(self):
        """The first update copies the weights; later ones have the decays of the formulas."""
        settings = config(ema=EmaConfig(ema_decay=0.4, ema_power=0.5, ema_inv_gamma=2.0, power_ema=(0.05, 0.2)))
        averages, weights = [], []
        for steps in (1, 2, 3, 4):
            state, _ = do(settings, steps)
            averages.append([np.asarray(tree["conv_in"]["kernel"]) for tree in (state.ema, *state.power_emas)])
            weights.append(np.asarray(state.weights["conv_in"]["kernel"]))
        expected = [weights[0]] * 3
        for step in (1, 2, 3):
            # the plain average's warm-up, which 0.4 cuts off in the last step; (1 - 1 / t)^(gamma + 1) at t = step + 1,
            # with the gammas whose averages have these lengths by Karras et al. 2024, eq. 3
            decays = [min(0.4, 1 - (1 + step / 2) ** -0.5)]
            decays += [(1 - 1 / (step + 1)) ** (gamma + 1) for gamma in (16.9722, 1.8262)]
            expected = [d * mean + (1 - d) * weights[step] for d, mean in zip(decays, expected, strict=True)]
            for found, one in zip(averages[step], expected, strict=True):
                np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-8)
        for found in averages[0]:
            np.testing.assert_array_equal(found, weights[0])

    def test_post_hoc_average_of_any_length(self):
        """An average solved from snapshots of two others is that of its definition, for a known curve."""
        lengths, wanted, stop = (0.05, 0.10), 0.15, 2000
        curve = lambda step: np.sin(np.asarray(step) / 300) + np.asarray(step) / 1000
        gammas = [ema.gamma_from_length(length) for length in lengths]
        averages, snapshots, values = [0.0, 0.0], [], []
        for step in range(stop):
            for number, gamma in enumerate(gammas):
                decay = float(ema.power_decay_at(step, gamma))
                averages[number] = decay * averages[number] + (1 - decay) * curve(step)
            if (step + 1) % 200 == 0:
                snapshots += [(step + 1, gamma) for gamma in gammas]
                values += averages
        gamma = ema.gamma_from_length(wanted)
        steps = np.arange(1, stop + 1)
        share = (steps / stop) ** (gamma + 1) - ((steps - 1) / stop) ** (gamma + 1)
        direct = (share * curve(steps - 1)).sum()
        found = ema.solve(snapshots, stop, wanted) @ values
        assert abs(share.sum() - 1) < 1e-12
        assert abs(found - direct) < 2e-3 * abs(direct)  # ten snapshots; the nearest kept average is 4 % off
        assert min(abs(value - direct) for value in averages) > 0.02 * abs(direct)

    def test_length_is_a_standard_deviation(self):
        """The length is the standard deviation of the weighting tau^gamma on [0, 1]."""
        for length in (0.03, 0.1, 0.2):
            gamma = ema.gamma_from_length(length)
            tau = (np.arange(2_000_000) + 0.5) / 2_000_000
            weight = tau**gamma / (tau**gamma).sum()
            mean = (weight * tau).sum()
            np.testing.assert_allclose(np.sqrt((weight * (tau - mean) ** 2).sum()), length, rtol=1e-5)

    def test_bad_lengths(self):
        with pytest.raises(ValueError, match="relative length"):
            ema.gamma_from_length(0.3)
        with pytest.raises(ValueError, match="no snapshots"):
            ema.solve([], 10, 0.1)


def test_importance_sampling_is_unbiased_and_prefers_large_losses():
    """Once every timestep has ten losses, a draw of probability p has the weight 1 / (T p)."""
    from ddpm_jax.training.step import draw_weighted_timesteps, remembered

    total, generator = 8, np.random.default_rng(0)
    history = (jnp.zeros((total, 10)), jnp.zeros(total, jnp.int32))
    for _ in range(30):
        t = jnp.asarray(generator.permutation(total))
        history = jax.jit(remembered)(history, t, (t + 1.0))
    assert np.all(history[1] == 10)
    np.testing.assert_array_equal(history[0], np.repeat(np.arange(1.0, total + 1)[:, None], 10, axis=1))
    objective = Objective(timestep_sampling="importance")
    t, weights = draw_weighted_timesteps(objective, history, jax.random.key(0), jnp.arange(40_000), total)
    shares = np.bincount(t, minlength=total) / 40_000
    np.testing.assert_allclose(shares, np.arange(1, total + 1) / 36, atol=0.01)  # five deviations of 40,000 draws
    np.testing.assert_allclose((weights * (t + 1.0)).mean(), np.arange(1, total + 1).mean(), rtol=1e-2)
    young = (history[0], history[1].at[3].set(9))
    t, weights = draw_weighted_timesteps(objective, young, jax.random.key(0), jnp.arange(4000), total)
    assert np.all(weights == 1) and abs(np.mean(t) - 3.5) < 0.2


def test_the_oldest_loss_falls_out():
    from ddpm_jax.training.step import remembered

    history = (jnp.zeros((2, 10)), jnp.zeros(2, jnp.int32))
    for value in range(12):
        history = jax.jit(remembered)(history, jnp.array([1]), jnp.array([float(value)]))
    assert history[0][1].tolist() == list(range(2, 12)) and history[1].tolist() == [0, 10]


def test_importance_sampling_trains():
    settings = config(objective=Objective(timestep_sampling="importance"))
    state, _ = do(settings, 2)
    assert int(state.history[1].sum()) == 16


@pytest.mark.parametrize("label_dropout", [0.0, 0.5])
def test_classes_and_their_dropout_reach_the_loss(label_dropout):
    """The loss of the first step is the public loss with these classes and this label dropout."""
    params, objective = small_params(num_class_embeds=4), Objective(label_dropout=label_dropout)
    _, (metrics,) = do(config(objective=objective), 1, params)
    key, _, t_key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 3)
    t = losses.draw_timesteps(t_key, jnp.arange(8), 1000, antithetic=False)
    images, labels = batch(0, classes=4)
    of = lambda labels: losses.per_image(
        params, key, images.astype(np.float32) / 127.5 - 1, labels, t=t, objective=objective
    )[0].mean()
    np.testing.assert_allclose(metrics.loss, of(labels), rtol=1e-4)
    assert len(set(labels)) > 1 and abs(of(np.zeros(8, int)) - metrics.loss) > 1e-3 * metrics.loss


def test_runs_that_differ_in_their_files_share_a_program(monkeypatch):
    """The second run traces nothing. Another seed, or other steps of a decaying rate, is another program."""
    traced, decay_at = [], ema.decay_at
    monkeypatch.setattr(ema, "decay_at", lambda *args: traced.append(args) or decay_at(*args))
    own = EmaConfig(ema_decay=0.123)  # of no other test
    do(config(ema=own), 1)
    assert len(traced) == 1
    saving = LoopConfig(batch_size=8, steps=99, save_every=7, log_every=3)
    do(dataclasses.replace(config(ema=own, loop=saving), data=DataConfig(data="photos", flip=False)), 1)
    assert len(traced) == 1
    plans = [
        Plan(small_params().config, config(loop=LoopConfig(**values), optimizer=optimizer)).of_the_step()
        for optimizer in (OPTIMIZER, dataclasses.replace(OPTIMIZER, lr_schedule="cosine"))
        for values in ({"steps": 10}, {"steps": 20}, {"steps": 10, "seed": 1}, {"steps": 10, "sharding": "fsdp"})
    ]
    assert plans[0] == plans[1] and len(set(plans)) == 7


def test_the_input_state_is_donated():
    """Otherwise a step would hold weights, moments and averages twice."""
    params, mesh = small_params(), sharding.data_mesh()
    plan = Plan(params.config, config())
    state = create(plan, params.weights, mesh)
    after, _ = compiled(plan, state, mesh)(state, *sharding.place(batch(0), mesh, split=True))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params.weights))  # which the caller still has


class TestPaper:
    """The recipe of Ho et al. 2020 for CIFAR-10, as the preset has it."""

    preset = PRESETS["cifar10"]

    def test_parameters(self):
        from ddpm_jax.models.layout import layout

        built = network(self.preset, 32, 3)
        assert count(layout(built.unet).weights) == 35_746_307
        assert count(layout(network(PRESETS["lsun-256"], 256, 3).unet).weights) == 113_673_219

    def test_learning_rate(self):
        rate = learning_rate(self.preset.optimizer, self.preset.loop.steps)
        np.testing.assert_allclose(
            [rate(step) for step in (0, 1, 2500, 5000, 700_000)], [0, 4e-8, 1e-4, 2e-4, 2e-4], rtol=1e-3
        )

    def test_average(self):
        """The first update copies the weights; all later ones have decay 0.9999."""
        settings = self.preset.ema
        decays = [
            ema.decay_at(step, settings.ema_decay, settings.ema_inv_gamma, settings.ema_power) for step in (0, 1, 9)
        ]
        np.testing.assert_allclose(decays, [0, 0.9999, 0.9999], rtol=1e-6)

    def test_clipping_and_adam(self):
        settings = self.preset.optimizer
        assert (settings.clip_norm, settings.optimizer) == (1.0, "adam")
        assert (settings.adam_b1, settings.adam_b2, settings.adam_eps) == (0.9, 0.999, 1e-8)

    def test_the_rest(self):
        preset, built = self.preset, network(self.preset, 32, 3)
        assert (preset.loop.batch_size, preset.loop.steps, preset.data.flip) == (128, 800_000, True)
        assert built.unet.dropout == 0.1 and built.sampler.to_dict()["variance_type"] == "fixed_large"
        assert (built.schedule.beta_start, built.schedule.beta_end) == (0.0001, 0.02)

    def test_initial_loss(self):
        """conv_out is initialised to nearly zero, so the first loss is the mean square of eps."""
        model = dataclasses.replace(self.preset.model, channels=32, channel_multipliers=(1,), attention_resolutions=())
        params = ddpm_jax.init(jax.random.key(0), network(dataclasses.replace(self.preset, model=model), 32, 3))
        value = ddpm_jax.loss(params, jax.random.key(1), jnp.zeros((4, 32, 32, 3)))
        assert abs(value - 1) < 0.04  # 12,288 squares of deviation sqrt(2): 0.0128
