"""Hooks: functions that step into every row of any sampler, and what they may rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_params
from known_models import EPS, X0, exact, gaussian, own_schedule
from test_sampling import count_compiles

import ddpm_jax
from ddpm_jax import compilation, samplers
from ddpm_jax.config import ScheduleConfig
from ddpm_jax.samplers import DDIM, DDPM, SAMPLERS, Hooks
from ddpm_jax.sampling import program
from ddpm_jax.sampling.job import prepare

KEY = jax.random.key(5)
X_T = np.random.default_rng(0).standard_normal((3, 4, 4, 1)).astype(np.float32)
TRUTH = np.random.default_rng(1).uniform(-1, 1, X_T.shape).astype(np.float32)
SHORT = ScheduleConfig(num_train_timesteps=12)
truth = Hooks(denoise=lambda x_t, row, net, data: data)
silent = Hooks(denoise=lambda x_t, row, net, data: net(x_t))


def to_clean(name, **knobs):
    """A sampler that ends at the clean image."""
    return SAMPLERS[name](num_steps=8, **({"set_alpha_to_one": True} if name == "pndm" else {}), **knobs)


def run(sampler, hooks, data=None, schedule=EPS, net_fn=None, **kwargs):
    table = sampler.table(schedule) if isinstance(sampler, samplers.Sampler) else sampler
    net_fn = exact(schedule) if net_fn is None else net_fn
    jitted = jax.jit(lambda table, data: samplers.run(net_fn, table, X_T, KEY, hooks=hooks, hook_data=data, **kwargs))
    return np.asarray(jitted(table, data))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_truth_for_x_0_hat_returns_the_truth(name):
    """Whatever the network says: its answer is NaN here, and is not asked for."""
    schedule = own_schedule(name)
    x = run(to_clean(name), truth, TRUTH, schedule, net_fn=lambda x, t: jnp.nan * x)
    # the last step divides by signal or sigma of the least noise, 0.01; score-sde-ve tells the network a noise level
    # that is short of the state's by sampling_eps of the range, which leaves 1e-4 of it
    np.testing.assert_allclose(x, TRUTH, atol=2e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_networks_own_x_0_hat_changes_nothing(name):
    """eps_hat follows from it, too."""
    schedule = own_schedule(name)
    sampler = to_clean(name, clip=None)
    # rounding through 1 / sqrt(alpha_bar) = 157 and its inverse
    np.testing.assert_allclose(run(sampler, silent, None, schedule), run(sampler, Hooks(), None, schedule), atol=2e-3)


def test_the_network_of_a_hook_is_clipped_as_the_samplers():
    large = lambda x, t: 3 + 0 * x
    clipped = DDIM(timesteps=(500,), clip=0.5)
    np.testing.assert_allclose(run(clipped, silent, schedule=X0, net_fn=large), 0.5)
    outside = Hooks(denoise=lambda x_t, row, net, data: 4 * net(x_t))
    np.testing.assert_allclose(run(clipped, outside, schedule=X0, net_fn=large), 2.0)  # the hook has the last word


def test_eps_hat_follows_the_hook():
    """DDIM's other half: x_s = signal_s x_0_hat + sigma_s eps_hat."""
    table = DDIM(timesteps=(600, 300)).table(EPS).part(0, 1)
    (signal, sigma), (next_signal, next_sigma) = table.levels[0]
    expected = next_signal * TRUTH + next_sigma * (X_T - signal * TRUTH) / sigma
    np.testing.assert_allclose(run(table, truth, TRUTH), expected, rtol=1e-5, atol=1e-5)


def test_a_learned_variance_stays_the_networks():
    model = lambda x, t: jnp.concatenate([jnp.nan * x, 0 * x + 0.25], axis=-1)
    table = DDPM(variance_type="learned", timesteps=(500, 0), clip=None).table(X0).part(0, 1)
    noise = np.random.default_rng(0).standard_normal((1, *X_T.shape)).astype(np.float32)
    from_x_t, from_x_0, _, _ = table.mix[0, 0]
    x = run(table, truth, TRUTH, net_fn=model, noise=noise)
    np.testing.assert_allclose(x, from_x_t * X_T + from_x_0 * TRUTH + 0.5 * noise[0], rtol=1e-5, atol=1e-6)


class TestAfter:
    @pytest.mark.parametrize("name", ["ddpm", "heun", "pndm", "score-sde-ve"])
    def test_acts_where_a_step_ends(self, name):
        """Once a step, on the image at the level that the row leads to."""
        schedule, seen = own_schedule(name), []

        def after(x_s, row, keys, data):
            jax.debug.callback(lambda levels: seen.append(np.asarray(levels)), row.levels[1], ordered=True)
            return x_s

        sampler = to_clean(name)
        plain = run(sampler, Hooks(), None, schedule)
        np.testing.assert_allclose(run(sampler, Hooks(after=after), None, schedule), plain, rtol=1e-5, atol=1e-5)
        jax.effects_barrier()
        table = sampler.table(schedule)
        np.testing.assert_allclose(seen, table.levels[table.ends_step, 1], rtol=1e-6)

    def test_known_pixels(self):
        """RePaint's line (Lugmayr et al. 2022, algorithm 1): known pixels at the level of x_s, in every step."""

        def after(x_s, row, keys, data):
            signal, sigma = row.levels[1]
            noise = jax.vmap(lambda key: jax.random.normal(key, x_s.shape[1:]))(keys)
            return jnp.where(data["mask"], signal * data["image"] + sigma * noise, x_s)

        data = {"mask": np.arange(16).reshape(4, 4, 1) < 8, "image": TRUTH}
        data["mask"] = np.broadcast_to(data["mask"], TRUTH.shape)
        x = run(DDPM(num_steps=8), Hooks(after=after), data)
        np.testing.assert_allclose(x[data["mask"]], TRUTH[data["mask"]], atol=1e-6)
        assert np.all(np.isfinite(x)) and np.abs(x - TRUTH)[~data["mask"]].max() > 0.1

    def test_its_noise_is_the_images_own(self):
        """From fold_in(fold_in(image_key, r + 1), 1): other than the sampler's, and not the batch's."""
        seen = []

        def after(x_s, row, keys, data):
            jax.debug.callback(lambda data: seen.append(np.asarray(data)), jax.random.key_data(keys), ordered=True)
            return x_s + row.levels[1, 1] * jax.vmap(lambda key: jax.random.normal(key, x_s.shape[1:]))(keys)

        table, hooks = DDPM(num_steps=4).table(EPS), Hooks(after=after)
        draw = lambda x_T, indices: samplers.run(exact(EPS), table, x_T, KEY, indices=indices, hooks=hooks)
        three = draw(X_T, np.arange(3))
        jax.effects_barrier()
        fold = jax.random.fold_in
        expected = [[jax.random.key_data(fold(fold(fold(KEY, i), r + 1), 1)) for i in range(3)] for r in range(4)]
        np.testing.assert_array_equal(seen, expected)
        alone = draw(X_T[2:], np.array([2]))
        np.testing.assert_allclose(alone, three[2:], atol=1e-5)  # the rounding of another batch size
        assert np.abs(alone - draw(X_T[2:], np.array([0]))).max() > 1e-2


@pytest.mark.parametrize("hook", Hooks._fields)
def test_images_of_another_shape_are_refused(hook):
    hooks = Hooks(**{hook: lambda *arguments: jnp.zeros((3, 4, 4, 2))})
    with pytest.raises(ValueError, match=rf"The hook `{hook}` returned images of shape \(3, 4, 4, 2\); they must be"):
        run(DDIM(num_steps=3), hooks)


def test_rows_that_do_not_evaluate_call_no_denoise():
    told = []

    def denoise(x_t, row, net, data):
        jax.debug.callback(lambda index: told.append(int(index)), row.index, ordered=True)
        return net(x_t)

    run(DDIM(num_steps=3).table(EPS).padded(5), Hooks(denoise=denoise))
    jax.effects_barrier()
    assert told == [0, 1, 2]


def measured(x_t, row, net, data):
    """DPS's correction, with the norm of each image (Chung et al. 2023, algorithm 1): it needs the network's vjp."""
    x_0_hat, pull = jax.vjp(net, x_t)
    difference = jnp.where(data["mask"], data["image"] - x_0_hat, 0)
    norm = jnp.sqrt((difference**2).sum((1, 2, 3), keepdims=True)) + 1e-6
    (gradient,) = pull(difference / norm)
    return x_0_hat + data["strength"] * gradient


def test_gradients_pass_through_the_network():
    """Of the exact network of a Gaussian: its Jacobian is a number that is known."""
    table = DDIM(timesteps=(500,), clip=None).table(EPS)
    signal, sigma = table.levels[0, 0]
    gain = signal * 0.25**2 / (signal**2 * 0.25**2 + sigma**2)  # d x_0_hat / d x_t
    hooks = Hooks(denoise=lambda x_t, row, net, data: jax.vjp(net, x_t)[1](data)[0])
    np.testing.assert_allclose(run(table, hooks, TRUTH, net_fn=gaussian(EPS)), gain * TRUTH, rtol=1e-4, atol=1e-6)


class TestThroughTheProgramOfSampling:
    """With time projections hoisted out of the loop, cast weights and a mesh."""

    def job(self, params, hooks, strength, batch_size=2, **kwargs):
        shape = (batch_size, 8, 8, 1)
        image = np.random.default_rng(2).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)[:batch_size]
        data = {"mask": np.broadcast_to(np.arange(64).reshape(8, 8, 1) < 32, shape), "image": image}
        data["strength"] = np.float32(strength)
        sampler = kwargs.pop("sampler", DDIM(num_steps=4, clip=None))
        return prepare(params, KEY, batch_size, sampler=sampler, hooks=hooks, hook_data=data, **kwargs)

    def images(self, *args, **kwargs):
        job = self.job(*args, **kwargs)
        return np.asarray(job.call(program.whole, job.origin, job.inputs())[0])

    def test_gradients_equal_those_of_the_plain_network(self):
        """A step from x_T by hand, whose vjp goes through `apply`, where nothing is hoisted."""
        params = small_params()
        job = self.job(params, Hooks(denoise=measured), 0.3, sampler=DDIM(timesteps=(500,), clip=None))
        images = job.call(program.whole, job.origin, job.inputs())[0]
        keys = [jax.random.fold_in(jax.random.fold_in(KEY, i), 0) for i in range(2)]
        x_T = jnp.stack([jax.random.normal(key, (8, 8, 1)) for key in keys])
        net = lambda x: ddpm_jax.predict(params, x, 500).x_0_hat
        x_0_hat = measured(x_T, None, net, job.hook_data)
        np.testing.assert_allclose(images, np.clip((x_0_hat + 1) / 2, 0, 1), atol=1e-4)  # rounding, over sqrt(0.08)
        still = measured(x_T, None, net, job.hook_data | {"strength": 0.0})
        assert np.abs(images - np.clip((still + 1) / 2, 0, 1)).max() > 1e-2

    def test_other_data_compiles_nothing(self):
        params, hooks = small_params(), Hooks(denoise=measured)
        self.images(params, hooks, 0.3)
        with count_compiles() as compiled:
            other = self.images(params, hooks, 0.9)
        assert compiled == []
        with count_compiles() as compiled:
            still = self.images(params, Hooks(), 0.9)
        assert compiled and np.abs(other - still).max() > 1e-3  # so that the line above can fail

    def test_its_program_is_not_kept_on_disk(self, tmp_path, monkeypatch):
        """A file would not tell one user's function from another's."""
        monkeypatch.setattr(compilation, "_kept", None)  # and back at the end
        compilation.keep_programs(tmp_path, 2**30)
        params = small_params()
        self.images(params, Hooks(denoise=measured), 0.3)
        assert list(tmp_path.iterdir()) == []
        self.images(params, Hooks(), 0.3)
        assert len(list(tmp_path.iterdir())) == 1

    def test_image_i_depends_on_its_key_alone(self):
        params = small_params(schedule=SHORT)

        def after(x_s, row, keys, data):
            return x_s + row.levels[1, 1] * jax.vmap(lambda key: jax.random.normal(key, x_s.shape[1:]))(keys)

        hooks = Hooks(denoise=measured, after=after)
        four = self.images(params, hooks, 0.3, batch_size=4)
        np.testing.assert_allclose(self.images(params, hooks, 0.3, batch_size=2), four[:2], atol=2e-5)  # rounding
